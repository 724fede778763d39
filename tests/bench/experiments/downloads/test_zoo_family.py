"""A family of the zoo: who is in it, and that a cell cut off anywhere ends with the same records."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import cycle
from pathlib import Path

import pytest

from modelassay.errors import CheckpointError, UsageError
from modelassay.experiments.downloads import run as downloads
from modelassay.experiments.downloads.analyse import analyse
from modelassay.experiments.downloads.members import family_listing, zoo_listing
from modelassay.experiments.downloads.params import Params
from modelassay.machine.code import SourceGraph
from modelassay.recording.context import CellContext
from modelassay.recording.log import CellLog, read_cell
from modelassay.recording.tables import read_tables
from modelassay.storage.store import Store
from modelassay.zoo.resolve import resolve
from support.cell_attempts import attempt

BASE, MEMBERS = "zoo:smoke/base+cpt-25", ["zoo:smoke/base+cpt-25+sft-en", "zoo:smoke/base+cpt-25+sft-en+int8"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def records(log: CellLog) -> Counter[str]:
    """Metrics and facts, each as often as it is recorded; when the zoo was asked differs between cells."""
    lines = [{**line, "seq": 0, "attempt": 0} for line in (*log.metrics, *log.facts) if line.get("fact") != "listing"]
    return Counter(str(sorted(line.items())) for line in lines)


@pytest.mark.parametrize("rhythm", [(True,), (False, True), (False,)])
def test_a_cell_cut_off_at_any_unit_ends_with_the_same_records(
    store: Store, tmp_path: Path, rhythm: tuple[bool, ...]
) -> None:
    params = Params(model=BASE, bases=(BASE, "zoo:smoke/stranger-1"))
    assert attempt(tmp_path / "whole", params, store, cycle([False]), None, experiment=downloads)
    uninterrupted = read_cell(tmp_path / "whole")
    assert [unit["stage"] for unit in uninterrupted.microbatches] == ["grow"] * 2 + ["fetch", "answer", "overlap"] * 2
    members = [fact for fact in uninterrupted.facts if fact["fact"] == "member"]
    assert [fact["labels"]["member"] for fact in members] == MEMBERS
    assert {(fact["value"]["status"], fact["value"]["downloads"]) for fact in members} == {("measured", None)}
    overlaps = {(m["labels"]["method"], m["labels"]["base"], m["labels"]["member"]) for m in uninterrupted.metrics}
    assert overlaps == {(method, base, member) for method in ("paper-exact", "corrected")
                        for base in params.bases for member in MEMBERS}  # fmt: skip
    assert set(records(uninterrupted).values()) == {1}
    for at in range(len(uninterrupted.microbatches)):
        folder = tmp_path / f"cut-{at}"
        assert not attempt(folder, params, store, cycle(rhythm), at, experiment=downloads)
        assert attempt(folder, params, store, cycle(rhythm), None, experiment=downloads)
        assert records(read_cell(folder)) == records(uninterrupted)


def test_members_are_those_that_descend_from_the_base(store: Store) -> None:
    listing = zoo_listing(BASE, store=store)
    assert [(member.name, member.reference, member.downloads) for member in listing.members] == [
        (name, name, None) for name in MEMBERS
    ]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(listing.members[0].files)
    assert listing.members[0].architectures == ("Qwen2ForCausalLM",)
    with pytest.raises(CheckpointError, match="zoo:smoke/stranger-1: no member of the zoo descends from it"):
        zoo_listing("zoo:smoke/stranger-1", store=store)


def test_a_listing_of_another_family_is_refused(store: Store, tmp_path: Path) -> None:
    zoo_listing(BASE, store=store).save(tmp_path / "listing.json")
    path = str(tmp_path / "listing.json")
    listing = family_listing(Params(model=BASE, listing=path), tmp_path / "saved.json", store=store)
    assert [member.name for member in listing.members] == MEMBERS
    for base in ("zoo:smoke/base", "hf:lab/base"):
        with pytest.raises(UsageError, match=f"lists the family of {BASE}, not of {base}".replace("+", r"\+")):
            family_listing(Params(model=base, listing=path), tmp_path / "other.json", store=store)


def test_a_base_that_cannot_ask_is_left_out_and_said(store: Store, tmp_path: Path) -> None:
    """A base of another family without a tokenizer: its members are asked the others' prompts all the same."""
    mute = tmp_path / "mute"
    shutil.copytree(resolve("zoo:smoke/stranger-1", store=store).folder, mute, ignore=shutil.ignore_patterns("token*"))
    params, folder = Params(model=BASE, bases=(str(mute), BASE)), tmp_path / "cell"
    folder.mkdir()
    cell = CellContext(folder, cell="cell", seed=0, store=store, sources=SourceGraph())
    downloads.run(params, cell)
    cell.meter.log.append("status", {"outcome": "done", "reason": "", "wall_s": 0.0})
    cell.meter.log.close()
    data = read_tables({"cell": (folder, params.model_dump(mode="json"))}, profile="theirs")
    assert set(data.metrics["base"]) == {BASE}
    (caveat,) = [caveat for caveat in analyse(data).caveats if "prompts of" in caveat]
    assert caveat.startswith(f"no member of {BASE}'s family was given the prompts of {mute}: {mute}: ")
    assert "has no tokenizer" in caveat
