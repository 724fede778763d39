"""Scores of zoo models are kept: a second run of the same code recalls them, and nothing else does."""

import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from cell_attempts import attempt, keyed
from modelassay.experiments.fingerprinting import compare
from modelassay.experiments.fingerprinting.params import Params
from modelassay.models import zoo
from modelassay.record import read_cell
from modelassay.state import Store
from toy_suite import modelassay

AGAINST = ("zoo:smoke/base", "zoo:smoke/stranger-1", "zoo:smoke/stranger-shape")
CHILD = Params(model="zoo:smoke/child-noise", against=AGAINST)
SIBLINGS = [CHILD, *(Params(model=model, against=AGAINST) for model in AGAINST)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that holds the models, and scores once a test has made them."""
    return Store(tmp_path_factory.mktemp("cache") / "artifacts")


@pytest.fixture(scope="module")
def whole(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cell that measured the scores first."""
    folder = tmp_path_factory.mktemp("first") / "whole"
    assert measure(folder, CHILD, store)
    return folder


def measure(
    folder: Path, params: Params, store: Store, due: Iterator[bool] | None = None, at: int | None = None
) -> bool:
    return attempt(folder, params, SIBLINGS, store, due or cycle([False]), at)


def stages(folder: Path) -> list[str]:
    """The units of a cell without those that made the zoo and its layers'."""
    return [u["stage"] for u in read_cell(folder).microbatches if u["stage"] not in ("zoo-make", "hash", "layer")]


def test_a_second_run_recalls_what_the_first_measured(whole: Path, store: Store, tmp_path: Path) -> None:
    assert stages(whole) == ["compare", "derive", "compare", "compare"]
    assert measure(tmp_path / "again", CHILD, store)
    assert stages(tmp_path / "again") == ["recall"]
    np.testing.assert_equal(keyed(tmp_path / "again"), keyed(whole))
    assert [m["labels"] for m in read_cell(tmp_path / "again").metrics] == [
        m["labels"] for m in read_cell(whole).metrics
    ]


def test_other_code_measures_anew(whole: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "code_key", lambda: "of another day")
    assert measure(tmp_path / "changed", CHILD, store)
    assert stages(tmp_path / "changed") == stages(whole)
    np.testing.assert_equal(keyed(tmp_path / "changed"), keyed(whole))


@pytest.mark.parametrize("other", [
    CHILD.model_copy(update={"against": AGAINST[:2]}),
    CHILD.model_copy(update={"against": tuple(reversed(AGAINST))}),
    CHILD.model_copy(update={"model": "zoo:smoke/child-sft"}),
])  # fmt: skip
def test_another_question_is_measured(other: Params, whole: Path, store: Store, tmp_path: Path) -> None:
    assert measure(tmp_path / "other", other, store)
    assert "recall" not in stages(tmp_path / "other")
    assert stages(tmp_path / "other")


def test_declared_ancestry_decides_what_is_derived(whole: Path, store: Store, tmp_path: Path) -> None:
    orphan = CHILD.model_copy(update={"family": "nobody's"})
    assert attempt(tmp_path / "orphan", orphan, [orphan, *SIBLINGS[1:]], store, cycle([False]), None)
    assert stages(tmp_path / "orphan") == ["compare"] * 3


def test_what_was_cut_off_is_not_taken_for_whole(whole: Path, store: Store, tmp_path: Path) -> None:
    made, store = store.root, Store(tmp_path / "store")
    for name in ("zoo", "zoo-loss", "zoo-text", "weights"):  # the models, not the scores
        (tmp_path / "store").mkdir(exist_ok=True)
        (tmp_path / "store" / name).symlink_to(made / name)
    units = sum(unit["stage"] != "zoo-make" for unit in read_cell(whole).microbatches)
    assert not measure(tmp_path / "cut", CHILD, store, cycle([True]), units - 1)
    assert measure(tmp_path / "cut", CHILD, store, cycle([True]))
    np.testing.assert_equal(keyed(tmp_path / "cut"), keyed(whole))
    assert "recall" not in stages(tmp_path / "cut")
    assert measure(tmp_path / "after", CHILD, store)
    assert "recall" not in stages(tmp_path / "after"), "a comparison in two parts was kept"
    assert measure(tmp_path / "at last", CHILD, store)
    assert stages(tmp_path / "at last") == ["recall"]


def test_models_from_elsewhere_are_always_measured(store: Store, tmp_path: Path) -> None:
    folder = str(zoo.ensure("smoke/stranger-1", store=store))
    params = CHILD.model_copy(update={"against": (AGAINST[0], folder)})
    for name in ("first", "second"):
        assert measure(tmp_path / name, params, store)
        assert stages(tmp_path / name) == ["compare", "derive", "compare"]


def test_a_run_says_how_many_scores_it_recalled(
    whole: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELASSAY_CACHE", str(store.root.parent))
    models, against = ", ".join([CHILD.model, *AGAINST]), ", ".join(AGAINST)
    suite = tmp_path / "mine.yaml"
    suite.write_text(
        "suite: fingerprinting\nquestion: again?\n"
        f"profiles: {{mine: {{against: [{against}]}}}}\nmatrix:\n  model: [{models}]\n"
    )
    for number in ("1 of 4", "3 of 4"):  # the child's were there; the base is compared with nobody before it
        code, out, err = modelassay("run", suite, "--runs", tmp_path / "runs", "--json")
        assert code == 0, err
        said = f"scores of {number} models were measured by an earlier run of the same code, and kept"
        assert said in json.loads(out)["caveats"]
