"""Make a virtual environment of some packages and what they depend on: ``python ci/bare_environment.py FOLDER PACKAGE...``.

Its packages are links to those of the environment that runs this; nothing else of it can be imported there.
"""

from __future__ import annotations

import re
import sys
import sysconfig
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


def main(folder: Path, names: list[str]) -> None:
    """Make the environment and say what is in it."""
    venv.create(folder, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    distributions = sorted(with_dependencies(names))
    for name in distributions:
        link(name, packages)
    print("bare environment:", " ".join(f"{name}=={metadata.version(name)}" for name in distributions))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
