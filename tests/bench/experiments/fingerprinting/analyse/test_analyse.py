"""What is read of a run's records, and which pairs of a large run are judged and shown."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import modelassay.experiments.fingerprinting.analyse as module
from modelassay import zoo
from modelassay.experiments.fingerprinting.analyse import _an_example, _pairs_to_judge, _worth_showing, analyse
from modelassay.experiments.fingerprinting.analyse.read import STRATUM, models_of
from modelassay.fingerprints.methods import ModelSummary
from modelassay.fingerprints.placement import place_among
from modelassay.recording.log import Log
from modelassay.recording.tables import RunData, read_tables
from support.evidence_cases import CHILDREN, MINIS, OTHERS, evidence_of, models, numbers


def record(folder: Path, summaries: dict[str, ModelSummary], *, outcome: str = "done",
           inner: dict[str, int | None] | None = None, keys: dict[str, str] | None = None) -> RunData:  # fmt: skip
    """The tables of a run that measured these models."""
    cells = {}
    for place, (reference, model) in enumerate(summaries.items()):
        cell = f"{place:016x}"
        (folder / cell).mkdir(parents=True)
        log = Log(folder / cell / "attempt-1.jsonl", cell=cell, attempt=1, resumed_at=0)
        sizes = {name: getattr(model.sizes, name) for name in STRATUM if name != "num_layers"}
        about = {"num_layers": model.curves.num_layers, **sizes, "weights": (keys or {}).get(reference, reference)}
        about["intermediate_size"] = (inner or {}).get(reference, 7)
        log.append("fact", {"fact": "model", "value": about, "labels": {}})
        for role, curve in model.curves.sigma.items():
            for layer, value in enumerate(curve.tolist()):
                log.append("metric", {"name": "sigma", "value": value, "labels": {"role": role, "layer": layer}})
        log.append("status", {"outcome": outcome, "reason": "", "wall_s": 1.0})
        log.close()
        cells[cell] = (folder / cell, {"model": reference, "family": None, "alpha": 0.05})
    return read_tables(cells, profile="mine")


def three() -> dict[str, ModelSummary]:
    return {name: numbers(name, name, num_layers=5) for name in ("x", "y", "z")}


@pytest.mark.parametrize("order", [("x", "y", "z"), ("z", "y", "x")])
def test_models_are_read_as_they_were_recorded(order: tuple[str, ...], tmp_path: Path) -> None:
    summaries = {name: three()[name] for name in order}
    read = models_of(
        record(tmp_path, summaries, inner={"x": 192, "y": None, "z": 64}, keys={"x": "12", "y": "34", "z": "e5"})
    )
    assert list(read) == list(order)
    assert {name: model.sizes.intermediate_size for name, model in read.items()} == {"x": 192, "y": None, "z": 64}
    assert {name: model.curves.weights_key for name, model in read.items()} == {"x": "12", "y": "34", "z": "e5"}
    for name, model in read.items():
        assert model.curves.num_layers == 5
        assert replace(model.sizes, intermediate_size=144) == summaries[name].sizes
        for role, curve in summaries[name].curves.sigma.items():
            np.testing.assert_array_equal(model.curves.sigma[role], curve)


def test_a_copy_is_told(tmp_path: Path) -> None:
    summaries = models(MINIS[:3])
    tables = record(tmp_path, summaries, keys={"zoo:mini-1": "same", "zoo:mini-3": "same"})
    assert "mini-3 holds the same attention weights as mini-1: it counts as no stranger" in analyse(tables).caveats


def test_all_pairs_of_a_small_run_are_judged() -> None:
    summaries = models(MINIS)
    curves = [model.curves for model in summaries.values()]
    assert _pairs_to_judge(curves, evidence_of(summaries)) == list(combinations(curves, 2))


def test_of_a_large_run_relatives_roots_and_the_unknown_are_judged() -> None:
    summaries = models([*MINIS, *OTHERS, *CHILDREN])
    summaries["models/asked"] = numbers("models/asked", "asked")
    curves = [model.curves for model in summaries.values()]
    judged = {frozenset((a.name, b.name)) for a, b in _pairs_to_judge(curves, evidence_of(summaries))}
    expected = set()
    for (one, a), (two, b) in combinations(summaries.items(), 2):
        if "models/asked" in (one, two):
            expected.add(frozenset((a.curves.name, b.curves.name)))
            continue
        rooted = [zoo.parent(reference) is None for reference in (one, two)]
        own_root = zoo.related(one, two) and any(rooted)
        if own_root or (all(rooted) and a.curves.stratum == b.curves.stratum):
            expected.add(frozenset((a.curves.name, b.curves.name)))
    assert judged == expected
    assert len(judged) < len(curves) * (len(curves) - 1) / 2


def test_of_a_large_run_surprises_are_shown_and_an_example_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    summaries = models([*MINIS, *CHILDREN[:8]])
    curves = [model.curves for model in summaries.values()]
    background = evidence_of(summaries).background
    placements = [place_among(a, b, background) for a, b in combinations(curves, 2)]
    ancestries = {
        (a.name, b.name): "family" if a.family == b.family else "strangers" for a, b in combinations(curves, 2)
    }
    shown = _worth_showing(placements, {}, ancestries)
    wrong = [v for v in placements if (ancestries[v.a, v.b], v.word) in
             {("strangers", "closer than all strangers"), ("family", "among strangers")}]  # fmt: skip
    assert {(v.a, v.b) for v in shown} == {(v.a, v.b) for v in wrong}
    assert 0 < len(shown) < len(placements)
    monkeypatch.setattr(module, "MAX_ROWS", 1)
    assert len(_worth_showing(placements, {}, ancestries)) == 1
    assert _worth_showing(placements[:50], {}, ancestries) == placements[:50]
    example = [model.name for model in _an_example(curves, placements, ancestries)]
    related = [v for v in placements if ancestries[v.a, v.b] == "family" and not v.corrected.reason]
    middle = float(np.sort([v.corrected.value for v in related])[len(related) // 2])
    assert any({v.a, v.b} <= set(example) for v in related if v.corrected.value == middle)
    assert len(example) in (2, 3)
    assert [model.name for model in _an_example(curves, [], ancestries)] == [model.name for model in curves[:3]]
