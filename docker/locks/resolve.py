"""Resolve the hashed requirements of the images, and fetch their wheels into a folder that an image is built from.

::

    python docker/locks/resolve.py lock [NAME...]        # writes docker/locks/NAME.txt and build.txt
    python docker/locks/resolve.py fetch NAME FOLDER     # the wheels of NAME and build.txt, and no others

pip resolves what pyproject.toml asks for under ci/constraints.txt, for the Python and platform of the image and without
installing anything. What the base image keeps for itself (its torch, or all that vLLM brings) is left out of the lock,
with everything that only it needs. Downloads nothing but metadata and, for a file that its index gives no hash of, the file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "docker" / "locks"
BUILD_REQUIREMENTS = ("scikit-build-core", "nanobind", "cmake", "ninja")

# vllm/vllm-openai stands on Ubuntu 22.04, whose glibc is 2.35; the other bases are newer.
NEWEST_GLIBC_MINOR = 35


def main() -> None:
    """Read the arguments and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    lock = verbs.add_parser("lock")
    lock.add_argument("names", nargs="*", default=[*sorted(images()), "build"])
    fetch = verbs.add_parser("fetch")
    fetch.add_argument("name", choices=sorted(images()))
    fetch.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.verb == "fetch":
        fetch_wheels(arguments.name, arguments.folder)
        return
    for name in arguments.names:
        print(f"resolving {name}", file=sys.stderr)
        (LOCKS / f"{name}.txt").write_text(build_lock() if name == "build" else image_lock(name))


def images() -> dict[str, Any]:
    """Return the images of docker/images.lock.json by name."""
    found: dict[str, Any] = json.loads((ROOT / "docker" / "images.lock.json").read_text())["images"]
    return found


def image_lock(name: str) -> str:
    """Return the text of the lock of image ``name``."""
    image = images()[name]
    wanted = [Requirement(text) for text in project()["dependencies"]]
    pins = constraints()
    kept = [Requirement(text) for text in image["base_keeps"]]
    asked = [requirement for requirement in kept if requirement.specifier]
    left_out = {canonicalize_name(requirement.name) for requirement in kept}
    if asked:
        # The base's own choices win over our pins, since they are already there and tested together.
        left_out |= {canonicalize_name(found["metadata"]["name"]) for found in resolve(asked, [], image["python"])}
        pins = [pin for pin in pins if canonicalize_name(pin.name) not in left_out - {"torch", "triton"}]
    found = resolve([*wanted, *asked], pins, image["python"])
    chosen = needed(wanted, found, image["python"], without=left_out)
    rest = "all that it needs" if asked else "what only they need"
    words = f"; the base keeps {', '.join(image['base_keeps'])} and {rest}" if kept else ""
    title = f"image {name}: Python {image['python']} on x86-64 Linux{words}"
    return lock_text(title, chosen)


def build_lock() -> str:
    """Return the text of the lock of what builds the project's own wheel, for any Python."""
    wanted = [Requirement(text) for text in BUILD_REQUIREMENTS]
    texts = set()
    for python in sorted({image["python"] for image in images().values()}):
        found = resolve(wanted, constraints(), python)
        texts.add(lock_text("what builds the project's own wheel, on any Python", needed(wanted, found, python)))
    if len(texts) > 1:
        raise SystemExit("the build requirements differ between Pythons; give each its own lock")
    return texts.pop()


def project() -> dict[str, Any]:
    """Return the [project] table of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def constraints() -> list[Requirement]:
    """Return the pins of ci/constraints.txt."""
    lines = (line.strip() for line in (ROOT / "ci" / "constraints.txt").read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def resolve(wanted: Iterable[Requirement], pins: Iterable[Requirement], python: str) -> list[dict[str, Any]]:
    """Return what pip would install, as its report says."""
    with tempfile.TemporaryDirectory() as folder:
        pinned, report = Path(folder, "pins.txt"), Path(folder, "report.json")
        pinned.write_text("\n".join(str(pin) for pin in pins))
        pip("install", "--dry-run", "--ignore-installed", "--report", str(report), "--target", str(Path(folder, "none")),
            *platform_options(python), "--constraint", str(pinned), *(str(requirement) for requirement in wanted))  # fmt: skip
        installed: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return installed


def platform_options(python: str) -> list[str]:
    """Return pip's options for wheels of ``python`` on x86-64 Linux, whatever this machine is."""
    tags = [*(f"manylinux_2_{minor}" for minor in range(5, NEWEST_GLIBC_MINOR + 1)), "manylinux1", "manylinux2010",
            "manylinux2014"]  # fmt: skip
    chosen = [option for tag in tags for option in ("--platform", f"{tag}_x86_64")]
    return ["--only-binary", ":all:", "--python-version", python, "--implementation", "cp", *chosen]


def needed(wanted: Iterable[Requirement], found: Sequence[dict[str, Any]], python: str, *,
           without: Collection[str] = ()) -> list[dict[str, Any]]:  # fmt: skip
    """Return those of ``found`` that ``wanted`` needs without passing through a package in ``without``.

    pip evaluates markers for the Python it runs on; here they are evaluated for the image's, and what that asks for and
    pip did not find is an error.
    """
    environment = {"python_version": python, "python_full_version": f"{python}.0", "platform_system": "Linux",
                   "platform_machine": "x86_64", "sys_platform": "linux", "os_name": "posix",
                   "implementation_name": "cpython", "platform_python_implementation": "CPython"}  # fmt: skip
    by_name = {canonicalize_name(item["metadata"]["name"]): item for item in found}
    seen: set[tuple[str, str]] = set()

    def visit(requirement: Requirement, extra: str) -> None:
        name = canonicalize_name(requirement.name)
        if name in without or (requirement.marker and not requirement.marker.evaluate({**environment, "extra": extra})):
            return
        if name not in by_name:
            raise SystemExit(f"{requirement}: asked for on Python {python}, and not in what pip resolved")
        for own in ("", *sorted(requirement.extras)):
            if (name, own) not in seen:
                seen.add((name, own))
                for text in by_name[name]["metadata"].get("requires_dist", []):
                    visit(Requirement(text), own)

    for requirement in wanted:
        visit(requirement, "")
    return [by_name[name] for name in sorted({name for name, _ in seen})]


def lock_text(title: str, chosen: Iterable[dict[str, Any]]) -> str:
    """Return a requirements file that pins ``chosen`` by version and hash, in which no address stands."""
    lines = [f"# Hashed requirements of the {title}." if title.startswith("image") else f"# Hashed requirements: {title}.",
             "# Written by ci/lock from pyproject.toml and ci/constraints.txt; do not edit."]  # fmt: skip
    for item in chosen:
        name = canonicalize_name(item["metadata"]["name"])
        lines.append(f"{name}=={item['metadata']['version']} --hash=sha256:{sha256_of(item['download_info'])}")
    return "\n".join(lines) + "\n"


def sha256_of(download: dict[str, Any]) -> str:
    """Return the hash of the file that pip chose; of a local file without one in its index, by reading it."""
    stated: str | None = download.get("archive_info", {}).get("hashes", {}).get("sha256")
    if stated:
        return stated
    address = urlsplit(download["url"])
    if address.scheme != "file":
        raise SystemExit(f"{Path(address.path).name}: its index states no sha256")
    with Path(unquote(address.path)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pinned(path: Path) -> Iterator[Requirement]:
    """Yield the requirements of a lock file."""
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            yield Requirement(line.split(" --hash=")[0])


def fetch_wheels(name: str, folder: Path) -> None:
    """Fill ``folder`` with the wheels of the locks of ``name`` and of the build; remove other wheels there."""
    locks = [LOCKS / f"{name}.txt", LOCKS / "build.txt"]
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {(canonicalize_name(pin.name), str(pin.specifier)[2:]) for lock in locks for pin in pinned(lock)}
    for wheel in folder.glob("*.whl"):
        found, version, _, _ = parse_wheel_filename(wheel.name)
        if (found, str(version)) not in wanted:
            wheel.unlink()
    for lock in locks:
        pip("download", "--no-deps", "--require-hashes", "--dest", str(folder),
            *platform_options(images()[name]["python"]), "--requirement", str(lock))  # fmt: skip


def pip(*arguments: str) -> None:
    """Run pip, quietly; end with its exit code where it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", arguments[0], *arguments[1:]]
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
