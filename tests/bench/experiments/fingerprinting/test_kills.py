"""The real experiment is killed at random moments and started again: identical metrics and facts, each unit once."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from modelassay.recording.log import CellLog, read_cell
from support.toy_suite import environ, metrics_of, modelassay_with_models, only_run, start

FEW = ("-o", "matrix.model=[zoo:smoke/base, zoo:smoke/stranger-1, zoo:smoke/child-sft]", "-o", "against=[zoo:smoke/base, zoo:smoke/stranger-1]")  # fmt: skip
"""The smoke profile with a root, a stranger and a child; all of it at night."""


def logs_of(run: Path) -> dict[str, CellLog]:
    return {cell.name: read_cell(cell) for cell in (run / "cells").iterdir()}


def facts_of(run: Path) -> dict[str, list[Any]]:
    """The facts of each cell, in order."""
    return {
        cell: [(fact["fact"], fact["value"], fact["labels"]) for fact in log.facts]
        for cell, log in logs_of(run).items()
    }


def units_of(run: Path) -> dict[str, list[Any]]:
    """What each cell timed, in order."""
    return {
        cell: [(unit["stage"], unit["index"], unit.get("labels")) for unit in log.microbatches]
        for cell, log in logs_of(run).items()
    }


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(("num_kills", "options"), [(1, FEW), (10, ())], ids=["1", "10"])
def test_kill_at_random_moments_loses_nothing(tmp_path: Path, num_kills: int, options: tuple[str, ...]) -> None:
    """Every second trial starts from an empty artifact store, so that kills hit what the cells need as well as measuring."""
    cache = tmp_path / "cache"
    env = environ(MODELASSAY_CACHE=str(cache))
    began = time.monotonic()
    suite = ("fingerprinting", "--profile", "smoke", *options)
    code, _, err = modelassay_with_models("run", *suite, "--runs", tmp_path / "reference", env=env)
    assert code == 0, err
    seconds = time.monotonic() - began
    reference = only_run(tmp_path / "reference")
    expected = metrics_of(reference)
    assert {name for _, name, _ in expected} >= {"sigma", "product", "score", "utility"}
    kinds = [[kind for kind, _, _ in facts] for facts in facts_of(reference).values()]
    assert all(each[0] == "model" and {"model"} <= set(each) <= {"model", "connections", "numbering"} for each in kinds)
    assert any("numbering" in each for each in kinds)
    moments = random.Random(20260126)
    for trial in range(num_kills):
        if trial % 2 == 0:
            shutil.rmtree(cache)
        root = tmp_path / f"runs-{trial}"
        process = start("run", *suite, "--runs", root, env=env)
        time.sleep(moments.uniform(0.1, 0.9) * seconds)
        process.kill()
        process.communicate()
        begun = list(root.glob("*/run.json"))
        target = (begun[0].parent,) if begun else suite
        code, out, err = modelassay_with_models("run", *target, "--runs", root, "--json", env=env)
        assert code == 0, err
        assert metrics_of(only_run(root)) == expected
        assert facts_of(only_run(root)) == facts_of(reference)
        assert units_of(only_run(root)) == units_of(reference)
        assert {cell["outcome"] for cell in json.loads(out)["cells"]} == {"done"}
