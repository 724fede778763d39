"""The runner is killed at fifty random moments of a suite with needs and stages: nothing lost, doubled, or made again."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from pathlib import Path

import pytest

from modelassay.recording.log import read_cell
from support.toy_suite import SUITE, metrics_of, modelassay, only_run, start, write_suite

NUM_KILLS = 50
STAGED = SUITE.replace("pause_ms: 3.0", "pause_ms: 3.0, staged_steps: 20, timed: false")


def written(*roots: Path) -> int:
    """Bytes of all logs of cells and stages, while folders get their final names."""
    with suppress(FileNotFoundError):
        return sum(path.stat().st_size for root in roots for path in root.rglob("attempt-*.jsonl"))
    return 0


@pytest.mark.nightly
def test_kill_at_fifty_random_moments_of_a_suite_with_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is killed once and started again; then the units of stages that were done twice are counted."""
    suite = write_suite(tmp_path, STAGED)

    def use_cache(name: str) -> Path:
        monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / name))
        return tmp_path / name

    cache = use_cache("reference-cache")
    assert modelassay("run", suite, "--runs", tmp_path / "reference")[0] == 0
    expected = metrics_of(only_run(tmp_path / "reference"))
    assert len(expected) == 4 * (24 + 2 * 20)
    num_bytes = written(tmp_path / "reference", cache)
    moments, num_in_stages, redone = random.Random(20261128), 0, []
    for trial in range(NUM_KILLS):
        root, cache = tmp_path / f"runs-{trial}", use_cache(f"cache-{trial}")
        process = start("run", suite, "--runs", root)
        place = moments.randrange(num_bytes)
        while written(root, cache) <= place and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.communicate()
        parts = {path: read_cell(path, cell=path.stem) for path in cache.glob("artifacts/stages/sum/*.part")}
        begun = list(root.glob("*/run.json"))
        code, _, err = modelassay("run", begun[0].parent if begun else suite, "--runs", root)
        assert code == 0, err
        assert metrics_of(only_run(root)) == expected
        assert not list(cache.rglob("*.part"))
        num_in_stages += bool(parts)
        for part, before in parts.items():
            after = read_cell(part.with_suffix(""))
            assert len(after.microbatches) == 20
            redone.append(len(before.microbatches) - sum(unit["attempt"] == 1 for unit in after.microbatches))
    assert num_in_stages > NUM_KILLS // 5
    assert max(redone) <= 1, redone  # the step that no checkpoint had seen yet
