"""Scores of models that have an identity are kept: a second run of the same code recalls them, and nothing else does."""

import json
import math
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelassay import zoo
from modelassay.experiments.fingerprinting import compare
from modelassay.experiments.fingerprinting import run as fingerprinting
from modelassay.experiments.fingerprinting.params import Params
from modelassay.fingerprints.peers import Peer, PeerFingerprint, PeerScore
from modelassay.machine.code import SourceGraph
from modelassay.recording.log import read_cell
from modelassay.storage.store import Store
from support.cell_attempts import attempt, keyed
from support.toy_suite import modelassay_with_models
from support.zoo_needs import make_needs, store_with_zoo

BASE = "zoo:smoke/base"
AGAINST = (BASE, "zoo:smoke/stranger-1", "zoo:smoke/stranger-shape")
CHILD = Params(model="zoo:smoke/child-noise", against=AGAINST)
MEASURED, RECALLED = False, True
UNITS = ["compare", "derive", "compare", "compare"]
"""Of the child against all three, of which the first is its parent."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that holds the models, and scores once a test has made them."""
    return store_with_zoo(tmp_path_factory.mktemp("cache") / "artifacts")


@pytest.fixture(scope="module")
def uninterrupted(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cell that measured the scores first."""
    folder = tmp_path_factory.mktemp("first") / "whole"
    assert measure(folder, CHILD, store)
    return folder


@pytest.fixture
def unscored(uninterrupted: Path, store: Store, tmp_path: Path) -> Store:
    """A store with the models and what was read of each, without the scores."""
    root = tmp_path / "unscored"
    root.mkdir()
    for folder in store.root.iterdir():
        if folder.name != "stages":
            (root / folder.name).symlink_to(folder)
    return Store(root)


def measure(
    folder: Path, params: Params, store: Store, due: Iterator[bool] | None = None, at: int | None = None
) -> bool:
    return attempt(folder, params, store, due or cycle([False]), at)


def scoring_units(folder: Path) -> list[tuple[str, bool]]:
    """The units of a cell's comparisons, and whether each was recalled."""
    units = [unit for unit in read_cell(folder).microbatches if unit["stage"] not in ("hash", "layer")]
    return [(unit["stage"], unit.get("reused", False)) for unit in units]


def all_of(units: list[str], recalled: bool) -> list[tuple[str, bool]]:
    return [(unit, recalled) for unit in units]


def test_a_second_run_recalls_what_the_first_measured(uninterrupted: Path, store: Store, tmp_path: Path) -> None:
    assert scoring_units(uninterrupted) == all_of(UNITS, MEASURED)
    assert measure(tmp_path / "again", CHILD, store)
    assert scoring_units(tmp_path / "again") == all_of(UNITS, RECALLED)
    np.testing.assert_equal(keyed(tmp_path / "again"), keyed(uninterrupted))
    logs = read_cell(tmp_path / "again"), read_cell(uninterrupted)
    assert [m["labels"] for m in logs[0].metrics] == [m["labels"] for m in logs[1].metrics]
    assert [u.get("labels") for u in logs[0].microbatches] == [u.get("labels") for u in logs[1].microbatches]
    times = [[u["host_ns"] for u in log.microbatches if u["stage"] in UNITS] for log in logs]
    assert times[0] == times[1]  # of whoever measured
    others = [unit for log in logs for unit in log.microbatches if unit["stage"] not in UNITS]
    assert not any(unit.get("reused", False) for unit in others)
    assert not (uninterrupted / "stages").exists()


def test_other_code_measures_anew(
    uninterrupted: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[str] = []

    def closure(sources: SourceGraph, *roots: str) -> dict[str, str]:
        questions.extend(roots)
        return {roots[0]: "of another day"}

    seen_code = SourceGraph().closure(compare.__name__)
    monkeypatch.setattr(SourceGraph, "closure", closure)
    assert measure(tmp_path / "changed", CHILD, store)
    assert scoring_units(tmp_path / "changed") == all_of(UNITS, MEASURED)
    np.testing.assert_equal(keyed(tmp_path / "changed"), keyed(uninterrupted))
    assert questions == [compare.__name__]
    deciding = ("experiments/fingerprinting/compare", "fingerprints/methods", "fingerprints/peers/modeldna", "fingerprints/weights",
                "fingerprints/aligned", "fingerprints/bottom_k/overlap", "fingerprints/lineage/deltas")  # fmt: skip
    assert seen_code.keys() >= {f"modelassay/{module}.py" for module in deciding}


@pytest.mark.parametrize("other", [
    CHILD.model_copy(update={"against": AGAINST[:2]}),
    CHILD.model_copy(update={"against": tuple(reversed(AGAINST))}),
    CHILD.model_copy(update={"model": "zoo:smoke/child-sft"}),
])  # fmt: skip
def test_another_question_is_measured(other: Params, uninterrupted: Path, store: Store, tmp_path: Path) -> None:
    assert measure(tmp_path / "other", other, store)
    units = scoring_units(tmp_path / "other")
    assert units
    assert {recalled for _, recalled in units} == {MEASURED}


def test_declared_ancestry_decides_what_is_derived(uninterrupted: Path, store: Store, tmp_path: Path) -> None:
    orphan = CHILD.model_copy(update={"family": "nobody's"})
    assert measure(tmp_path / "orphan", orphan, store)
    assert scoring_units(tmp_path / "orphan") == all_of(["compare"] * 3, MEASURED)
    adopted = orphan.model_copy(update={"families": {AGAINST[1]: "nobody's"}})
    assert measure(tmp_path / "adopted", adopted, store)
    assert scoring_units(tmp_path / "adopted") == all_of(["compare", "compare", "derive", "compare"], MEASURED)


def test_what_was_cut_off_is_not_taken_for_whole(uninterrupted: Path, unscored: Store, tmp_path: Path) -> None:
    units = len(read_cell(uninterrupted).microbatches)
    assert not measure(tmp_path / "cut", CHILD, unscored, cycle([True]), units - 1)
    (part,) = (unscored.root / "stages/scores").glob("*.part")
    assert not part.with_suffix("").exists()
    assert scoring_units(tmp_path / "cut") == []
    assert measure(tmp_path / "cut", CHILD, unscored, cycle([True]))
    assert scoring_units(tmp_path / "cut") == [*all_of(UNITS[:-1], RECALLED), (UNITS[-1], MEASURED)]
    np.testing.assert_equal(keyed(tmp_path / "cut"), keyed(uninterrupted))
    assert json.loads((part.with_suffix("") / "record.json").read_text())["attempts"] == 2
    assert measure(tmp_path / "after", CHILD, unscored)
    assert scoring_units(tmp_path / "after") == all_of(UNITS, RECALLED)
    np.testing.assert_equal(keyed(tmp_path / "after"), keyed(uninterrupted))


def test_another_cell_goes_on_with_what_was_cut_off(uninterrupted: Path, unscored: Store, tmp_path: Path) -> None:
    units = len(read_cell(uninterrupted).microbatches)
    assert not measure(tmp_path / "cut", CHILD, unscored, cycle([True]), units - 1)
    assert measure(tmp_path / "other", CHILD, unscored)
    assert scoring_units(tmp_path / "other") == [*all_of(UNITS[:-1], RECALLED), (UNITS[-1], MEASURED)]
    np.testing.assert_equal(keyed(tmp_path / "other"), keyed(uninterrupted))


def test_models_from_elsewhere_are_always_measured(store: Store, tmp_path: Path) -> None:
    folder = str(zoo.ensure("smoke/stranger-1", store=store))
    params = CHILD.model_copy(update={"against": (AGAINST[0], folder)})
    folders = sorted(store.root.glob("stages/scores/*"))
    for name in ("first", "second"):
        assert measure(tmp_path / name, params, store)
        assert scoring_units(tmp_path / name) == all_of(["compare", "derive", "compare"], MEASURED)
        assert len(list((tmp_path / name / "stages").glob("scores-0-*/record.json"))) == 1
    assert sorted(store.root.glob("stages/scores/*")) == folders


class SomePeer(Peer):
    """Installed as the version it says."""

    def installed_version(self) -> str:
        return self.version


def some_peer(version: str) -> SomePeer:
    """A peer that compares the sizes of weights, and refuses where they differ."""

    def extract(folder: Path, *, name: str | None = None) -> PeerFingerprint:
        return PeerFingerprint(model=str(name), content={"bytes": (folder / "model.safetensors").stat().st_size})

    def score(a: PeerFingerprint, b: PeerFingerprint) -> PeerScore:
        assert a.content
        assert b.content
        if a.content["bytes"] == b.content["bytes"]:
            return PeerScore(value=0.75, parts={"size": 1.0, "name": len(b.model)})
        return PeerScore(value=math.nan, parts={"size": 0.0, "name": math.nan}, reason=f"{b.model}: another size")

    return SomePeer(
        name="modeldna", version=version, fingerprint=extract, score=score, parts={}, threshold=0.5, reached=True
    )


def use_peer(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    for module in (compare, fingerprinting):
        monkeypatch.setattr(module, "PEERS", {"modeldna": some_peer(version)})


def peer_records(folder: Path) -> dict[tuple[Any, ...], Any]:
    """What a cell recorded of a peer: (other, signal) -> value, (other, method) -> value and reason."""
    recorded: dict[tuple[Any, ...], Any] = {}
    for metric in read_cell(folder).metrics:
        labels, value = metric["labels"], metric["value"]
        if metric["name"] == "peer-signal":
            assert labels["peer"] == "modeldna"
            recorded[labels["other"], labels["signal"]] = value
        if labels.get("method") == "modeldna":
            recorded[labels["other"], metric["name"]] = value, labels.get("reason")
    return recorded


def test_what_a_peer_says_is_recorded_and_kept_by_its_version(
    uninterrupted: Path, unscored: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = CHILD.model_copy(update={"peers": ("modeldna",)})
    units = ["compare", "derive", "peer", "compare", "peer", "compare", "peer"]
    use_peer(monkeypatch, "1")
    assert measure(tmp_path / "cell", params, unscored)
    assert scoring_units(tmp_path / "cell") == all_of(units, MEASURED)
    base, stranger, other_shape = AGAINST
    expected = {
        (base, "size"): 1.0, (base, "name"): len(base), (base, "score"): (0.75, None),
        (stranger, "size"): 1.0, (stranger, "name"): len(stranger), (stranger, "score"): (0.75, None),
        (other_shape, "size"): 0.0, (other_shape, "name"): math.nan,
        (other_shape, "score"): (math.nan, f"{other_shape}: another size"),
    }  # fmt: skip
    np.testing.assert_equal(peer_records(tmp_path / "cell"), expected)
    ours = {key: value for key, value in keyed(tmp_path / "cell").items() if "modeldna" not in key[1]}
    np.testing.assert_equal(ours, keyed(uninterrupted))
    assert measure(tmp_path / "again", params, unscored)
    assert scoring_units(tmp_path / "again") == all_of(units, RECALLED)
    np.testing.assert_equal(peer_records(tmp_path / "again"), expected)
    use_peer(monkeypatch, "2")
    assert measure(tmp_path / "newer", params, unscored)
    assert scoring_units(tmp_path / "newer") == all_of(units, MEASURED)


@pytest.mark.nightly
def test_a_cell_with_peers_and_behaviour_cut_off_at_any_unit_ends_with_the_same_records(
    uninterrupted: Path, unscored: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second model has no identity: its scores lie in the cell's folder, so each cell measures its own."""
    use_peer(monkeypatch, "1")
    folder = str(zoo.ensure("smoke/stranger-1", store=unscored))
    params = CHILD.model_copy(update={"peers": ("modeldna",), "behaviour": True, "against": (BASE, folder)})
    assert measure(tmp_path / "whole", params, unscored)
    expected = read_cell(tmp_path / "whole")
    units = ["listen", "compare", "ask", "derive", "peer", "compare", "ask", "peer"]
    assert scoring_units(tmp_path / "whole") == all_of(units, MEASURED)
    keys = [(unit["stage"], unit["index"], unit.get("labels")) for unit in expected.microbatches]
    first = len(keys) - len(units)
    for at in range(first, len(keys)):
        cell = tmp_path / f"cut-{at}"
        assert not measure(cell, params, unscored, cycle([True]), at)
        assert measure(cell, params, unscored, cycle([True]))
        np.testing.assert_equal(keyed(cell), keyed(tmp_path / "whole"))
        assert [(u["stage"], u["index"], u.get("labels")) for u in read_cell(cell).microbatches] == keys
        recalled = 5 if at >= first + 5 else 0  # up to the checkpoint after the first comparison
        assert scoring_units(cell) == [*all_of(units[:recalled], RECALLED), *all_of(units[recalled:], MEASURED)]
        assert len(list((cell / "stages").glob("scores-0-*/record.json"))) == 1


@pytest.mark.nightly
def test_a_run_says_how_many_scores_it_recalled(
    uninterrupted: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELASSAY_CACHE", str(store.root.parent))
    make_needs(store, CHILD.model, *AGAINST)
    models, against = ", ".join([CHILD.model, *AGAINST]), ", ".join(AGAINST)
    suite = tmp_path / "mine.yaml"
    suite.write_text(
        f"suite: fingerprinting\nquestion: again?\nprofiles: {{mine: {{against: [{against}]}}}}\nmatrix:\n  model: [{models}]\n"
    )
    for number in ("1 of 4", "3 of 4"):  # the child's were there; the base is compared with nobody before it
        code, out, err = modelassay_with_models("run", suite, "--runs", tmp_path / "runs", "--json")
        assert code == 0, err
        caveat = f"scores of {number} models, or some of them, were measured by an earlier run or attempt of the same code, and kept"
        assert caveat in json.loads(out)["caveats"]
