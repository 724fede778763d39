"""`ci/nightly --quick` with its suites in the image: one night, and a second one that reads the first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelassay.compare.history import read
from modelassay.containers.images import locked_image
from modelassay.runs.directory import open_run
from support.toy_suite import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
SUITES = {path.stem for path in (REPOSITORY / "suites").glob("*.yaml")}
NIGHT_S = 1800
"""What a quick night may take on two cores that are its own."""


def a_night(nights: Path, image: str) -> tuple[int, Path]:
    """Run one, and return its exit code and folder."""
    environ = {"NIGHTLY": str(nights), "NIGHTLY_IN": "container", "NIGHTLY_UNLOCKED": "1", "VIRTUAL_ENV": sys.prefix}
    before = set(nights.glob("2*"))
    done = subprocess.run([REPOSITORY / "ci/nightly", "--quick"], env=os.environ | environ, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False, timeout=4 * NIGHT_S)  # fmt: skip
    (folder,) = set(nights.glob("2*")) - before
    assert done.returncode in (0, 5), done.stdout[-4000:]  # 5: on a machine that others use the gate decides nothing
    return done.returncode, folder


def test_two_quick_nights_in_the_image(cpu_image: str, tmp_path: Path) -> None:
    if cpu_image != locked_image("cpu").reference:
        pytest.skip(f"the night runs {locked_image('cpu').reference}, not {cpu_image}")
    if not Path(sys.prefix, "modelassay-installed").exists():
        pytest.skip("ci/venv has not set this environment up, and would do so first")
    nights = tmp_path / "nights"
    for number in (1, 2):
        code, folder = a_night(nights, cpu_image)
        assert {path.parent.name for path in folder.glob("*/run.json")} == SUITES
        assert not any(open_run(folder / suite).data().missing for suite in SUITES)
        gate = json.loads((folder / "gate.json").read_text())
        assert (code == 5) == (gate["verdict"] in ("inconclusive", "invalid"))
        assert gate["gate"]["looks"] == 0 or gate["gate"]["false_alarms"]["n"] > 0
        assert (folder / "gate.html").stat().st_size > 10_000
        assert (folder / "summary.md").read_text().startswith(f"# Night {folder.name}\n")
        frame, left_out = read(nights / "history")
        assert left_out == []
        assert frame.filter(frame["suite"] == "kernels")["utc"].n_unique() == number
        assert (nights / "history/trend-kernels.png").exists() == (number == 2)
