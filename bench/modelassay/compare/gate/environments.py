"""The environments that a gate measures: a Python, a folder of packages, a wheel, or an image."""

from __future__ import annotations

import shutil
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from modelassay.errors import HostError, UsageError

INSIDE: Final = Path(__file__).parent / "inside"
"""What is run in an environment; on an image it is at `MOUNTED`."""
MOUNTED: Final = "/gate"
IMAGE: Final = "image:"
KERNELS: Final = INSIDE / "kernels.py"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a measured process runs."""

    name: str
    """As the user wrote it."""
    python: tuple[str, ...]
    """The command that starts its Python, to which the script and the request are added."""
    first: tuple[str, ...] = ()
    """Folders that its imports look into before all else."""
    mounts: dict[Path, str] = field(default_factory=dict)
    """Folder here to where it is in there; empty where both are the same."""

    def inside(self, path: Path) -> str:
        """Return where a file of this machine is in there."""
        for folder, there in self.mounts.items():
            if path.is_relative_to(folder):
                return f"{there}/{path.relative_to(folder).as_posix()}"
        return str(path)


def environment(reference: str, scratch: Path, *, workload: Path = KERNELS) -> Environment:
    """Return the environment meant by ``reference``.

    Args:
        reference: a Python executable; the folder of a virtual environment; a folder that holds packages (a checkout's, or of
            ``pip install --target``); a wheel, which is unpacked into ``scratch`` and used with this Python's libraries; or
            ``image:REFERENCE``.
        scratch: a folder for what is unpacked and asked.
        workload: the file of the workload, which an image is given too.

    Raises:
        UsageError: it names none of these.
        HostError: an image without docker's command line.
    """
    if reference.startswith(IMAGE):
        return _image(reference, scratch, workload)
    path = Path(reference)
    if path.is_dir():
        python = path / "bin" / "python"
        if python.exists():
            return Environment(name=reference, python=(str(python.absolute()),))
        return Environment(name=reference, python=(sys.executable,), first=(str(path.absolute()),))
    if path.suffix == ".whl" and path.is_file():
        folder = scratch / path.stem
        try:
            with zipfile.ZipFile(path) as wheel:
                wheel.extractall(folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise UsageError(f"{path}: not a wheel that can be unpacked ({error}); build it anew") from error
        return Environment(name=reference, python=(sys.executable,), first=(str(folder),))
    if path.is_file():
        return Environment(name=reference, python=(str(path.absolute()),))
    raise UsageError(f"{reference}: no environment; name a Python executable, a virtual environment, a folder of packages, "
                     "a wheel (.whl) or image:REFERENCE")  # fmt: skip


def _image(reference: str, scratch: Path, workload: Path) -> Environment:
    docker = shutil.which("docker")
    if docker is None:
        raise HostError(f"{reference}: docker's command line is not on PATH; install it, or name a Python")
    mounts = {INSIDE: MOUNTED, scratch.absolute(): "/request"}
    if not workload.is_relative_to(INSIDE):
        mounts[workload.absolute().parent] = "/workload"
    binds = [word for folder, there in mounts.items() for word in ("-v", f"{folder}:{there}:ro")]
    gpus = ["--gpus", "all"] if shutil.which("nvidia-smi") else []
    command = [docker, "run", "--rm", "-i", "--network", "none", "--cap-drop", "ALL", *gpus, *binds,
               "--entrypoint", "python", reference.removeprefix(IMAGE)]  # fmt: skip
    return Environment(name=reference, python=tuple(command), mounts=mounts)
