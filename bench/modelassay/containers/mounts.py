"""Whether what a run inside an image writes outlives its container, and the command that keeps it where it would not."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelassay.machine.scrub import known_secrets, scrub_argv

MOUNTS: Final = Path("/proc/self/mountinfo")
IMAGE: Final = "MODELASSAY_IMAGE"
"""The variable that holds an image's name; docker/Dockerfile sets it, and ``--in container`` sets it again."""

_ANONYMOUS_VOLUME: Final = re.compile(r"/volumes/[0-9a-f]{64}/_data(/|$)")
"""Where Docker and Podman keep a volume that nobody named; ``--rm`` removes it with its container."""


@dataclass(frozen=True, kw_only=True)
class MountPoint:
    """One line of mountinfo."""

    path: Path
    root: str
    """What of the file system is mounted: a bind mount's own folder, / for all of it."""
    kind: str
    """Of the file system."""

    @property
    def outlives_container(self) -> bool:
        """Whether it is anything but the container's own root, memory, or a volume without a name."""
        is_memory = self.kind in {"tmpfs", "ramfs"} and self.root == "/"
        return self.path != Path("/") and not is_memory and not _ANONYMOUS_VOLUME.search(self.root)


def parse_mounts(text: str) -> list[MountPoint]:
    r"""Read the lines of mountinfo (proc(5)).

    >>> parse_mounts("36 35 98:0 /my\\040runs /runs rw,noatime master:1 - ext4 /dev/root rw\n")
    [MountPoint(path=PosixPath('/runs'), root='/my runs', kind='ext4')]
    """
    mounts = []
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        root, path = (
            re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field) for field in fields.split()[3:5]
        )
        mounts.append(MountPoint(path=Path(path), root=root, kind=rest.split()[0]))
    return mounts


def mount_of(folder: Path, mounts: Sequence[MountPoint]) -> MountPoint | None:
    """Return the mount that holds ``folder``, absolute and free of links; of two on one path the later hides the earlier."""
    above = [mount for mount in reversed(mounts) if folder.is_relative_to(mount.path)]
    return max(above, key=lambda mount: len(mount.path.parts), default=None)


def loss_warning(
    folder: Path, *, mounted: Path, arguments: Sequence[str], environ: Mapping[str, str], mounts_file: Path = MOUNTS
) -> str | None:
    """Return what to say before a run whose results would go with its container; None where they stay.

    Args:
        folder: the run directory, which need not exist.
        mounted: the folder to mount so that it stays.
        arguments: the command line of modelassay.
        environ: says whether this is one of our images.
        mounts_file: the mounts of this process.
    """
    if IMAGE not in environ:
        return None
    try:
        mounts = parse_mounts(mounts_file.read_text(errors="surrogateescape"))
    except OSError:  # a sandbox without /proc: nothing is known, and the run can do without
        return None
    mount = mount_of(folder.resolve(), mounts)
    if mount is None or mount.outlives_container:
        return None
    shown = scrub_argv(arguments, known_secrets(environ))
    line = command_that_keeps(mounted, arguments=shown, image=environ[IMAGE])
    return (
        f"warning: {folder}: lies inside this container and is lost when the container is removed; to keep the results,"
        f" stop this and run, with what else you gave to docker run:\n  {line}"
    )


def command_that_keeps(mounted: Path, *, arguments: Sequence[str], image: str) -> str:
    """Return the line for a shell outside that mounts its own folder at ``mounted`` and runs the same.

    >>> command_that_keeps(Path("/data/out"), arguments=["run", "kernels", "--runs", "/data/out"], image="modelassay/cpu:0.1.0")
    'mkdir -p out && docker run --rm -v "$PWD"/out:/data/out --user "$(id -u):0" modelassay/cpu:0.1.0 run kernels --runs /data/out'
    """
    mounted = mounted.absolute()
    if mounted == Path("/"):  # no place for a mount
        mounted, arguments = Path("/runs"), [*arguments, "--runs", "/runs"]
    name = shlex.quote(mounted.name)
    options = [f'-v "$PWD"/{name}:{shlex.quote(str(mounted))}']
    if not _entrypoint_chooses_user(mounted):
        options.append('--user "$(id -u):0"')
    if Path("/dev/nvidiactl").exists():
        options.append("--gpus all")
    return f"mkdir -p {name} && docker run --rm {' '.join(options)} {shlex.quote(image)} {shlex.join(arguments)}"


def _entrypoint_chooses_user(mounted: Path) -> bool:
    """Tell whether the container was started as root, which becomes the owner of ./runs (docker/entrypoint.sh)."""
    return mounted == Path("runs").absolute() and mounted.is_dir() and os.geteuid() in {0, mounted.stat().st_uid}
