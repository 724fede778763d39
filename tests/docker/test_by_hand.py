"""`docker run IMAGE run SUITE` by hand: what would be lost with the container is said first, with the line that keeps it."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from modelassay.containers.images import locked_image
from modelassay.runs.directory import open_run
from support.toy_suite import only_run

from .conftest import ToyImages

pytestmark = pytest.mark.slow
SMOKE = ["run", "fingerprinting", "--profile", "smoke", "-o", "matrix.model=[zoo:smoke/base]", "-o", "against=[]"]

# Prints the warning of a run that would lie in ./runs, or nothing.
ASKS = """
import os, sys
from pathlib import Path
from modelassay.containers.mounts import loss_warning
print(loss_warning(Path("runs/a"), mounted=Path("runs"), arguments=["run", "walk"], environ=os.environ) or "kept")
"""


def read_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a log as they come."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode() for line in lines)


def test_image_says_which_it_is(engine: Any, cpu_image: str) -> None:
    assert f"MODELASSAY_IMAGE={locked_image('cpu').reference}" in engine.images.get(cpu_image).attrs["Config"]["Env"]


def test_results_without_a_mount_are_told_before_the_work_and_the_line_keeps_them(
    engine: Any, cpu_image: str, tmp_path: Path
) -> None:
    container = engine.containers.run(cpu_image, SMOKE, detach=True, environment={"MODELASSAY_IMAGE": cpu_image})
    log = container.logs(stream=True, stdout=False)
    try:
        lines = list(islice(read_lines(log), 3))
    finally:
        log.close()
        container.remove(force=True)
    assert lines[0].startswith("warning: runs/fingerprinting-")
    assert "lies inside this container and is lost when the container is removed" in lines[0]
    assert lines[1] == (
        f'  mkdir -p runs && docker run --rm -v "$PWD"/runs:/runs {cpu_image} run fingerprinting --profile smoke'
        " -o 'matrix.model=[zoo:smoke/base]' -o 'against=[]'"
    )
    assert lines[2] == "fingerprinting: 1 of 1 cells to run"
    if shutil.which("docker") is None:
        pytest.skip("no docker command to run the line with")
    folder = tmp_path / "work"
    folder.mkdir()
    done = subprocess.run(["sh", "-c", lines[1]], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning: " not in done.stderr
    run = open_run(only_run(folder / "runs"))
    assert run.suite.name == "fingerprinting"
    assert (run.folder.stat().st_uid, run.folder.stat().st_gid) == (os.geteuid(), os.getegid())


@pytest.mark.parametrize(
    ("mount", "is_kept"),
    [
        ("none", False),
        ("bind", True),
        ("bind above", True),
        ("named volume", True),
        ("volume without a name", False),
        ("tmpfs", False),
    ],
)
def test_only_a_mount_that_stays_keeps_results(
    engine: Any, toy: ToyImages, tmp_path: Path, mount: str, is_kept: bool
) -> None:
    name = f"modelassay-test-{uuid.uuid4().hex[:8]}"
    options: dict[str, Any] = {
        "none": {},
        "bind": {"volumes": {str(tmp_path / "runs"): {"bind": "/runs"}}},
        "bind above": {"volumes": {str(tmp_path): {"bind": "/work"}}, "working_dir": "/work"},
        "named volume": {"volumes": {name: {"bind": "/runs"}}},
        "volume without a name": {"volumes": ["/runs"]},
        "tmpfs": {"tmpfs": {"/runs": "mode=1777"}},
    }[mount]
    try:
        output = engine.containers.run(
            toy.locked, ["-c", ASKS], entrypoint="/opt/modelassay/bin/python", remove=True, **options
        ).decode()
    finally:
        if mount == "named volume":
            engine.volumes.get(name).remove(force=True)
    assert (output == "kept\n") == is_kept, output


def test_line_of_a_caller_who_named_a_user_names_one(engine: Any, toy: ToyImages) -> None:
    output = engine.containers.run(
        toy.locked, ["-c", ASKS], entrypoint="/opt/modelassay/bin/python", remove=True, user="1234:0"
    ).decode()
    assert '-v "$PWD"/runs:/runs --user "$(id -u):0" ' in output


@pytest.mark.parametrize("mounted", ["runs", "results"])
def test_suite_kernels_leaves_its_results_to_the_caller(
    engine: Any, cpu_image: str, tmp_path: Path, owner: tuple[int, int], mounted: str
) -> None:
    """`docker run --rm -v "$PWD/results:/results" IMAGE run kernels` at the scale that means nothing."""
    folder = tmp_path / mounted
    if mounted == "results":
        (tmp_path / "runs").rename(folder)
    engine.containers.run(cpu_image, ["run", "kernels", "--profile", "smoke"], remove=True,
                          volumes={str(folder): {"bind": f"/{mounted}"}})  # fmt: skip
    run = open_run(only_run(folder if mounted == "runs" else folder / "runs"))
    assert run.suite.name == "kernels"
    assert not run.data().missing
    assert {(path.stat().st_uid, path.stat().st_gid) for path in folder.rglob("*")} == {owner}
