"""The registry and the whole path of a cell, in this process, at sizes that mean nothing."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from modelassay.experiments.kernels.analyse import analyse
from modelassay.experiments.kernels.models import registry
from modelassay.experiments.kernels.params import Params
from modelassay.experiments.kernels.run import run
from modelassay.machine import peaks
from modelassay.machine.code import SourceGraph
from modelassay.recording.context import CellContext
from modelassay.recording.tables import read_tables
from modelassay.statistics.estimate import Estimate
from modelassay.storage.store import Store

TINY = {"hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "intermediate": 64, "vocabulary": 500}
OPS = ("layer_std", "bottom_k", "linear_bottom_k", "softmax_ggn", "linear_cross_entropy", "attention")


def test_the_registry_holds_consistent_shapes_with_their_sources() -> None:
    shapes = registry()
    assert len(shapes) >= 12
    for shape in shapes.values():
        assert shape.heads % shape.kv_heads == 0
        assert "/" in shape.source
    assert shapes["Qwen2.5-0.5B"].vocabulary == 151_936


def test_an_unknown_shape_is_named_with_the_closest_one() -> None:
    with pytest.raises(ValidationError, match=r"did you mean 'Qwen2.5-0.5B'"):
        Params(op="layer_std", shapes=("Qwen2.5-0.5",))


@pytest.mark.parametrize("op", OPS)
def test_a_cell_records_what_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: Any) -> None:
    monkeypatch.setattr("modelassay.experiments.kernels.rounds.FLUSH_BYTES", {"cpu": 1 << 16})
    monkeypatch.setattr(peaks, "implausible", lambda rate, best: False)
    monkeypatch.setattr("modelassay.experiments.kernels.rounds.implausible", lambda rate, best: False)
    params = Params(op=op, shape=TINY, dtypes=("f32",), rows=8, weight_mib=1, min_rounds=6, max_rounds=6, device="cpu",
                    caches=("cold",), providers=("torch", "torch.topk", "sdpa", "liger", "flashinfer"))  # fmt: skip
    folder = tmp_path / "cells" / "c"
    folder.mkdir(parents=True)
    cell = CellContext(folder, cell="c", seed=0, store=Store(tmp_path / "store"), sources=SourceGraph())
    run(params, cell)
    cell.meter.settle()
    cell.meter.log.append("status", {"outcome": "done", "reason": "", "wall_s": 1.0})
    cell.meter.log.close()
    tables = read_tables({"c": (folder, params.model_dump(mode="json"))}, profile="smoke")
    outcomes = {fact["provider"]: fact["value"]["outcome"] for fact in tables.facts("outcome")}
    assert outcomes.pop("modelassay") == "done"
    assert outcomes.pop("liger", "absent") == outcomes.pop("flashinfer", "absent") == "absent"
    assert set(outcomes.values()) == {"done"}
    assert set(tables.units["stage"]) == {op}
    assert tables.units.height == 6 * (1 + len(outcomes))
    assert tables.units["round"].max() == 5
    findings = analyse(tables)
    (speed,) = [finding for finding in findings.findings if finding.name == "speed_over"]
    by_round = tables.units.pivot("provider", index="round", values="host_ms")
    ratio = by_round[speed.labels["peer"]] / by_round["modelassay"]
    assert speed.estimate.n == 6
    assert speed.estimate.low == pytest.approx(ratio.min())
    assert speed.estimate.high == pytest.approx(ratio.max())
    assert op in findings.figures
    assert findings.figures[op]


def test_a_rate_is_implausible_above_both_intervals_only() -> None:
    ceiling = Estimate(value=10.0, low=9.5, high=10.5)
    assert peaks.implausible(Estimate(value=11.0, low=10.6, high=11.4), ceiling)
    assert not peaks.implausible(Estimate(value=11.0, low=10.4, high=11.6), ceiling)


def test_the_ceiling_is_the_best_probe() -> None:
    name, best = peaks.ceiling({"slow": [1.0] * 6, "fast": [2.0, 3.0, 2.5, 2.4, 2.6, 2.7]})
    assert (name, best.low, best.high) == ("fast", 2.0, 3.0)
