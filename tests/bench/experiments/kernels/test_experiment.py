"""The registry and the whole path of a cell, in this process, at sizes that mean nothing."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from modelassay.experiments.kernels.analyse import Group, analyse, findings_of, without_number
from modelassay.experiments.kernels.models import registry
from modelassay.experiments.kernels.params import Params
from modelassay.experiments.kernels.run import run
from modelassay.machine import peaks
from modelassay.machine.code import SourceGraph
from modelassay.recording.context import CellContext
from modelassay.recording.tables import read_tables
from modelassay.statistics.estimate import Estimate
from modelassay.storage.store import Store
from modelassay.suite import load_suite

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


def test_a_peer_is_set_over_plain_pytorch_and_we_over_both() -> None:
    """Rounds of 1, 2 and 4 s: the peer is twice as fast as torch, we are four times."""
    group = Group(op="bottom_k", labels={"shape": "s", "dtype": "f32", "cache": "cold", "device": "cuda"}, bytes=10**9)
    for provider, seconds in (("modelassay", 1.0), ("flashinfer", 2.0), ("torch.topk", 4.0)):
        group.outcomes[provider].append(("done", ""))
        group.seconds[provider]["c"] = {number: seconds * (1 + number / 100) for number in range(6)}
    speeds = {(f.name, f.labels.get("peer") or f.labels.get("provider")): f.estimate.value for f in findings_of(group)}
    assert speeds["speed_of", "flashinfer"] == pytest.approx(2.0)
    assert speeds["speed_over", "flashinfer"] == pytest.approx(2.0)
    assert speeds["speed_over", "torch.topk"] == pytest.approx(4.0)
    assert ("speed_of", "torch.topk") not in speeds


def test_a_share_is_of_what_was_measured_beside_it() -> None:
    """Three processes, one on a machine half as fast: each reads at four fifths of its own ceiling."""
    group = Group(op="layer_std", labels={"shape": "s", "dtype": "f32", "cache": "cold", "device": "cpu"}, bytes=10**9)
    group.outcomes["modelassay"] += [("done", "")] * 3
    for cell, slower in (("a", 1.0), ("b", 2.0), ("c", 1.1)):
        group.seconds["modelassay"][cell] = {number: slower * (0.1 + number / 1000) for number in range(7)}
        group.peaks["gbps"]["read"][cell] = [1 / (0.8 * slower * 0.103)] * 7
        group.peaks["gbps"]["copy"][cell] = [1.0] * 7
    share = group.share("modelassay")
    assert share is not None
    assert (share.value, share.low, share.high) == pytest.approx((0.8, 0.8, 0.8))
    assert share.note == "of the median of the probe read"


def test_who_has_no_number_is_told_where_and_why() -> None:
    groups = [
        Group(op="softmax_ggn", labels={"shape": "s", "dtype": dtype, "cache": "cold", "device": "cpu"})
        for dtype in ("bf16", "f32")
    ]
    for group in groups:
        group.outcomes["flashinfer"].append(("absent", "needs a CUDA device"))
    groups[1].outcomes["torch"] += [("wrong", "differs")] * 2
    table = without_number(groups)
    assert table is not None
    assert list(table.rows) == [
        ["softmax_ggn", "flashinfer", "everywhere", "absent", "needs a CUDA device"],
        ["softmax_ggn", "torch", "s, f32, cold", "wrong", "differs"],
    ]


def test_claims_name_what_an_analysis_can_give() -> None:
    """A selector with another label, or without one, would stay `not testable` for ever and nobody would see why."""
    claims = load_suite("kernels").claims
    keys = {"share_of_measured": {"provider"}, "speed_over": {"peer"}, "speed_of": {"provider", "over"}}
    for claim in claims:
        labels = claim.metric.labels
        assert labels.keys() == {"op", "shape", "dtype", "cache", "device", *keys[claim.metric.name]}, claim.id
        assert labels["shape"] in registry()
