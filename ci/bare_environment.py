"""Run a command in an environment of some packages and what they depend on: ``python ci/bare_environment.py PACKAGE... -- COMMAND``.

Its packages are links to those of the environment that runs this; nothing else of it can be imported there. The command finds its
Python in the variable PYTHON.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib import metadata
from pathlib import Path


def with_dependencies(names: list[str]) -> set[str]:
    """Return the installed distributions that these need, extras left out."""
    found: set[str] = set()
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in found:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # asked for by another platform or version
        found.add(name)
        names += [re.match(r"[\w.-]+", line)[0] for line in requires if "extra ==" not in line]  # type: ignore[index]
    return found


def link(name: str, folder: Path) -> None:
    """Link what a distribution has installed beside each other."""
    distribution = metadata.distribution(name)
    tops = {file.parts[0] for file in distribution.files or () if file.parts[0] not in {"..", "__pycache__"}}
    for top in tops:
        target = folder / top
        if not target.exists():
            target.symlink_to(Path(str(distribution.locate_file(top))).resolve())


def make(folder: Path, names: list[str]) -> Path:
    """Make the environment, say what is in it, and return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    distributions = sorted(with_dependencies(names))
    for name in distributions:
        link(name, packages)
    print("bare environment:", *(f"{name}=={metadata.version(name)}" for name in distributions), flush=True)
    return folder / "bin" / "python"


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    end = arguments.index("--")
    with tempfile.TemporaryDirectory() as folder:
        python = make(Path(folder), arguments[:end])
        return subprocess.run(arguments[end + 1 :], env={**os.environ, "PYTHON": str(python)}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
