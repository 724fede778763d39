"""The real experiment is killed at random moments and started again: identical metrics under identical unit keys."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest

from toy_suite import environ, metrics_of, modelassay, only_run, start


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [2, pytest.param(10, marks=pytest.mark.nightly)])
def test_kill_at_random_moments_loses_nothing(tmp_path: Path, num_kills: int) -> None:
    """Every second trial starts from an empty artifact store, so that kills hit training as well as measuring."""
    cache = tmp_path / "cache"
    env = environ(MODELASSAY_CACHE=str(cache))
    began = time.monotonic()
    code, _, err = modelassay("run", "fingerprinting", "--profile", "smoke", "--runs", tmp_path / "reference", env=env)
    assert code == 0, err
    seconds = time.monotonic() - began
    expected = metrics_of(only_run(tmp_path / "reference"))
    assert {name for _, name, _ in expected} >= {"model", "sigma", "product", "score", "utility"}
    moments = random.Random(20260126)
    for trial in range(num_kills):
        if trial % 2 == 0:
            shutil.rmtree(cache)
        root = tmp_path / f"runs-{trial}"
        process = start("run", "fingerprinting", "--profile", "smoke", "--runs", root, env=env)
        time.sleep(moments.uniform(0.1, 0.9) * seconds)
        process.kill()
        process.communicate()
        begun = list(root.glob("*/run.json"))
        target = (begun[0].parent,) if begun else ("fingerprinting", "--profile", "smoke")
        code, out, err = modelassay("run", *target, "--runs", root, "--json", env=env)
        assert code == 0, err
        assert metrics_of(only_run(root)) == expected
        assert {cell["outcome"] for cell in json.loads(out)["cells"]} == {"done"}
