"""A wheel installed away from the checkout lists and runs the shipped suites; without the extension too."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FEW = ("-o", "matrix.model=[zoo:smoke/base, zoo:smoke/child-noise]", "-o", "against=[zoo:smoke/base]")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel, and the libraries of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(build, check=True, env={**os.environ, "MODELASSAY_SKIP_CPP": "true"}, cwd=folder)
    (wheel,) = folder.glob("modelassay-*.whl")
    venv.create(folder / "env", symlinks=True)
    (site,) = (folder / "env").glob("lib/python3.*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    # A path line does not read the .pth files of the folder it adds, so the editable checkout stays out.
    libraries = {sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))}
    (site / "libraries.pth").write_text("\n".join(sorted(libraries)) + "\n")
    return folder / "env" / "bin" / "python"


def modelassay(python: Path, *arguments: str) -> str:
    outside = python.parents[2]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, "-m", "modelassay.cli", *arguments], cwd=outside, env=environment, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_lists_the_shipped_suites(installed: Path) -> None:
    listed = [suite["suite"] for suite in json.loads(modelassay(installed, "show", "--json"))["suites"]]
    assert listed == sorted(path.stem for path in (ROOT / "suites").glob("*.yaml"))
    source = json.loads(modelassay(installed, "show", "fingerprinting", "--json"))["source"]
    assert "site-packages" in str(Path(source))


def test_wheel_names_the_pinned_images(installed: Path) -> None:
    listed = json.loads(modelassay(installed, "images", "--json"))
    pinned = json.loads((ROOT / "docker/images.lock.json").read_text())["images"]
    assert {name: image["lock_sha256"] for name, image in listed.items()} == {
        name: image["lock"]["sha256"] for name, image in pinned.items()
    }


@pytest.mark.nightly
def test_wheel_runs_a_shipped_suite_on_the_reference(installed: Path) -> None:
    where = modelassay(installed, "doctor", "--json")
    native = next(check for check in json.loads(where) if check["name"] == "native extension")
    assert native["status"] == "missing"
    answer = json.loads(modelassay(installed, "run", "fingerprinting", "--profile", "smoke", "--json", *FEW))
    assert {cell["outcome"] for cell in answer["cells"]} == {"done"}
