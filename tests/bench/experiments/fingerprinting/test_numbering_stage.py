"""A cell's tests of numbering: which pairs, what is recorded, kept for the next run and gone on with after a kill."""

from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modelassay.experiments.fingerprinting.numbering import numbered_with
from modelassay.experiments.fingerprinting.params import Params
from modelassay.fingerprints.independence import independence, matrices_of
from modelassay.recording.log import read_cell
from modelassay.storage.store import Store
from modelassay.zoo.resolve import resolve
from support.cell_attempts import attempt
from support.zoo_needs import store_with_zoo

AGAINST = ("zoo:smoke/base", "zoo:smoke/stranger-1", "zoo:smoke/stranger-data", "zoo:smoke/stranger-shape")
CHILD = Params(model="zoo:smoke/child-noise", against=AGAINST, numbering=True, strangers=1, whole=False)


def model(reference: str, family: str, width: int = 8) -> Any:
    return SimpleNamespace(reference=reference, family=family, sizes=lambda: SimpleNamespace(hidden_size=width))


def test_a_root_meets_all_and_a_descendant_its_own_and_some_strangers_of_its_width() -> None:
    roots = [model(name, name) for name in "abcdef"] + [model("wide", "wide", 16)]
    heir = model("a+x", "a")
    everything = numbered_with(roots[0], roots[1:], is_root=True, strangers=2, random=np.random.default_rng(0))
    assert everything == roots[1:]
    chosen = {tuple(other.reference for other in numbered_with(heir, roots, is_root=False, strangers=2, random=np.random.default_rng(seed)))
              for seed in range(40)}  # fmt: skip
    assert all(names[0] == "a" and len(names) == 3 and "wide" not in names for names in chosen)
    assert len(chosen) == 10  # all twos of five
    (alone,) = numbered_with(heir, roots, is_root=False, strangers=0, random=np.random.default_rng(0))
    assert alone.reference == "a"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_with_zoo(tmp_path_factory.mktemp("cache") / "artifacts")


def numberings(folder: Path) -> list[dict[str, Any]]:
    return [{**fact["labels"], **fact["value"]} for fact in read_cell(folder).facts if fact["fact"] == "numbering"]


def test_what_a_cell_records_is_what_the_tests_say_and_is_recalled(store: Store, tmp_path: Path) -> None:
    assert attempt(tmp_path / "cell", CHILD, store, cycle([False]), None)
    parent, stranger = numberings(tmp_path / "cell")
    assert (parent["other"], parent["word"]) == ("zoo:smoke/base", "inherited")
    assert stranger["other"] in AGAINST[1:3]
    assert stranger["word"] == "not distinguishable from independent"
    for recorded in (parent, stranger):
        a, b = (matrices_of(resolve(name, store=store)) for name in (recorded["other"], CHILD.model))
        expected = independence(a, b)
        assert recorded["log10_p"] == expected.log10_p
        assert [(test["name"], test["count"], test["log10_p"]) for test in recorded["tests"]] == [
            (test.name, test.count, test.log10_p) for test in expected.tests
        ]
    assert attempt(tmp_path / "again", CHILD, store, cycle([False]), None)
    assert numberings(tmp_path / "again") == numberings(tmp_path / "cell")
    units = [unit for unit in read_cell(tmp_path / "again").microbatches if unit["stage"] == "numbering"]
    assert [unit.get("reused", False) for unit in units] == [True, True]


def test_a_cell_cut_off_between_two_pairs_ends_with_the_same_records(store: Store, tmp_path: Path) -> None:
    params = CHILD.model_copy(update={"strangers": 2})  # another question: nothing of it is kept
    assert not attempt(tmp_path / "cut", params, store, cycle([True]), 1 + 4 + 1)
    assert attempt(tmp_path / "cut", params, store, cycle([True]), None)
    assert [one["other"] for one in numberings(tmp_path / "cut")] == list(AGAINST[:3])
