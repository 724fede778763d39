"""The profile from listing to figure against a stand-in Hub with 59 listed models, killed once in the middle and resumed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from modelassay.charts import data_of, write_figure
from modelassay.experiments.downloads.analyse import analyse
from modelassay.experiments.downloads.families import Family, families_of
from modelassay.experiments.findings import Findings
from modelassay.recording.log import read_cell
from modelassay.runs.directory import Run, open_run
from support.hub_families import BASES, FEW, MANY, Families, put_families, suite_text
from support.hub_server import serve_hub
from support.toy_suite import environ, modelassay_with_models, only_run, start

KILL_AFTER = 12
"""Measured members of the first family, of 20 or so."""


class World(NamedTuple):
    """The Hub, and a run over it that was killed once."""

    families: Families
    folder: Path
    environment: dict[str, str]
    run: Run
    fetched: frozenset[str]
    """Repositories whose weights, or headers, were asked for."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with serve_hub() as hub:
        hub.page_size = 7
        families = put_families(hub, folder / "models")
        hub.refusals["api/models"] = [(503, "Busy")]
        (folder / "suite.yaml").write_text(suite_text())
        env = environ(HF_HOME=str(folder / "home"), HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", NO_PROXY="127.0.0.1")
        process = start("run", folder / "suite.yaml", "--runs", folder / "runs", env=env)
        while num_measured(folder / "runs") < KILL_AFTER and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        _move(families)
        code, _, err = modelassay_with_models("run", only_run(folder / "runs"), env=env)
        assert code == 0, err
        fetched = {
            path.partition("/resolve/")[0]
            for path in (request.path for request in hub.requests)
            if path.endswith("/model.safetensors")
        }
        yield World(families, folder, env, open_run(only_run(folder / "runs")), frozenset(fetched))


def _move(families: Families) -> None:
    """A day passes on the Hub: downloads change, and a member is uploaded."""
    for response in families.hub.listed.values():
        response["downloads"] = None if response["downloads"] is None else 3 * response["downloads"] + 1
    families.add("lab/alpha", "late/alpha", families.root / "lab/alpha-3", downloads=5_000)
    families.members["lab/alpha"].remove("late/alpha")


def num_measured(root: Path) -> int:
    return sum(line.count('"status":"measured"') for path in root.glob("*/cells/*/attempt-*.jsonl")
               for line in path.read_text().splitlines())  # fmt: skip


def everything(run: Run) -> Counter[tuple[str, str, str, str]]:
    """Every metric and fact by model, name, labels and value, each as often as it is recorded."""
    logs = [(cell.params.model, read_cell(run.cell_dir(cell))) for cell in run.suite.cells]  # type: ignore[attr-defined]
    metrics = [(model, line["name"], line["value"], line["labels"]) for model, log in logs for line in log.metrics]
    facts = [(model, line["fact"], line["value"], line["labels"]) for model, log in logs for line in log.facts]
    return Counter(
        (model, name, repr(value), str(sorted(labels.items()))) for model, name, value, labels in metrics + facts
    )


def listings(run: Run) -> dict[str, Path]:
    paths = [(cell.params.model, run.cell_dir(cell) / "artifacts/listing.json") for cell in run.suite.cells]  # type: ignore[attr-defined]
    return {model.removeprefix("hf:"): path for model, path in paths}


@pytest.fixture(scope="module")
def findings(world: World) -> Findings:
    return analyse(world.run.data())


def family(world: World, name: str) -> Family:
    return next(family for family in families_of(world.run.data()) if family.name == name)


@pytest.mark.nightly
def test_killed_run_equals_an_undisturbed_one_from_its_snapshots(world: World) -> None:
    attempts = [read_cell(world.run.cell_dir(cell)).num_attempts for cell in world.run.suite.cells]
    assert attempts == [2, 1, 1]
    folder = world.folder / "again"
    folder.mkdir()
    (folder / "suite.yaml").write_text(suite_text(listings(world.run)))
    world.families.hub.requests.clear()
    code, _, err = modelassay_with_models(
        "run", folder / "suite.yaml", "--runs", folder / "runs", env=world.environment
    )
    assert code == 0, err
    assert not [request for request in world.families.hub.requests if request.path == "/api/models"]
    again, once = everything(open_run(only_run(folder / "runs"))), everything(world.run)
    assert len(once) > 340
    assert set(once.values()) == {1}
    assert again == once


def test_listing_is_of_the_moment_the_cell_began(world: World) -> None:
    """The first family's was taken before the Hub moved, the others' after; each page was asked for."""
    listing_of = {base: json.loads(path.read_text()) for base, path in listings(world.run).items()}
    assert {base: [member["name"] for member in listing["members"]] for base, listing in listing_of.items()} == {
        base: sorted({*names, *(["else/alpha-gamma"] if base == "lab/gamma" else [])})
        for base, names in world.families.members.items()
    }
    assert sum(len(listing["members"]) for listing in listing_of.values()) >= 59
    downloads = {
        member["name"]: member["downloads"] for listing in listing_of.values() for member in listing["members"]
    }
    assert [downloads[f"lab/alpha-{at}"] for at in range(len(FEW))] == list(FEW)
    assert downloads["lab/beta-0"] == 3 * FEW[0] + 1
    assert listing_of["lab/alpha"]["taken"] < listing_of["lab/beta"]["taken"]


def test_nobody_who_cannot_be_measured_is_counted_as_little_downloaded(world: World) -> None:
    alpha = family(world, "alpha")
    reasons = {member.name.removeprefix("else/alpha-"): (member.status, member.reason)
               for member in alpha.members if member.status in ("excluded", "missing")}  # fmt: skip
    assert reasons == {
        "lora": ("excluded", "adapter, not a whole model"), "gguf": ("excluded", "GGUF only"),
        "awq": ("excluded", "packed by a quantiser"), "sees": ("excluded", "task of computer vision"),
        "pickled": ("excluded", "no safetensors"), "judge": ("excluded", "architecture is no causal language model"),
        "damaged": ("excluded", "would not load"), "silent": ("excluded", "would not answer (IndexError)"), "torn": ("excluded", "damaged config.json"),
        "gone": ("missing", "no such repository, or a private one"),
        "gated": ("missing", "the repository is gated"), "down": ("missing", "the Hub answered 520 for config.json"),
    }  # fmt: skip
    assert alpha.copies == {"else/alpha-8-again": "lab/alpha-8", "else/alpha-mirror": "its base"}
    few = {member.name for member in alpha.counted("paper-exact") if alpha.fails(member)}
    many = {member.name for member in alpha.counted("paper-exact") if alpha.passes(member)}
    assert few == {f"lab/alpha-{at}" for at in range(len(FEW))} - {
        lost.name for lost in alpha.members if lost.status == "not drawn"
    }
    assert many >= {"else/alpha-flaky", "else/alpha-gamma"}
    assert not (few | many) & {"else/alpha-shy", *alpha.copies, *(f"else/alpha-{name}" for name in reasons)}
    unasked = {f"/else/alpha-{name}" for name in ("awq", "sees", "judge", "pickled", "gguf", "lora", "gated", "down")}
    assert "/lab/alpha-3" in world.fetched
    assert not world.fetched & unasked


def test_numbers_follow_from_the_logs(world: World, findings: Findings) -> None:
    """Recomputed from the lines of the logs, with downloads as they were put on the Hub."""
    values = {(f.name, *(str(value) for value in f.labels.values())): f for f in findings.findings}
    (cell,) = (cell for cell in world.run.suite.cells if cell.params.model == "hf:lab/alpha")  # type: ignore[attr-defined]
    overlap = {line["labels"]["member"]: line["value"] for line in read_cell(world.run.cell_dir(cell)).metrics
               if line["name"] == "overlap" and line["labels"]["base"] == "hf:lab/alpha" and line["labels"]["method"] == "paper-exact"}  # fmt: skip
    drawn = [f"lab/alpha-{at}" for at in range(len(FEW)) if f"lab/alpha-{at}" in overlap]
    few = np.array([overlap[name] for name in drawn])
    others = {"else/alpha-flaky", "else/alpha-gamma"}
    many = np.array([value for name, value in overlap.items() if name in others or name in
                     {f"lab/alpha-{at}" for at in range(len(FEW), len(FEW) + len(MANY))}])  # fmt: skip
    ratio = values["spread-ratio", "alpha", "paper-exact"]
    assert ratio.value == pytest.approx(few.std(ddof=1) / many.std(ddof=1), rel=1e-12)
    assert ratio.estimate.low is not None
    assert (
        1 < ratio.estimate.low < ratio.value
    )  # put there: the noise of the few has many times the range of that of the many
    after = values["fnr", "alpha", "paper-exact", "published", "after"]
    assert after.value == np.mean(many < 0.05)
    before = values["fnr", "alpha", "paper-exact", "published", "before"]
    assert (
        before.note
        == f"{int((few < 0.05).sum() + (many < 0.05).sum())} of {few.size + many.size + ('else/alpha-shy' in overlap)}"
    )
    for base in ("alpha", "gamma"):
        assert values["auroc", base, "corrected", "same-tokenizer"].value > 0.9
    assert "no such strangers" in values["auroc", "beta", "corrected", "same-tokenizer"].note


def test_strangers_are_never_of_the_family(world: World) -> None:
    """The merge of alpha and gamma is listed in both families and is a stranger to neither; copies count once."""
    alpha, beta, gamma = (family(world, base.removeprefix("lab/")) for base in BASES)
    sizes = {name: {pool: len(values) for (method, pool), values in each.strangers.items() if method == "corrected"}
             for name, each in (("alpha", alpha), ("beta", beta), ("gamma", gamma))}  # fmt: skip
    counted = {each.name: {member.name for member in each.counted("corrected")} for each in (alpha, beta, gamma)}
    merge = {"else/alpha-gamma"}
    assert sizes["alpha"] == {"same-tokenizer": len(counted["gamma"] - merge), "other-tokenizer": len(counted["beta"]),
                              "all": len(counted["gamma"] - merge) + len(counted["beta"])}  # fmt: skip
    assert sizes["gamma"]["same-tokenizer"] == len(counted["alpha"] - merge)
    assert sizes["beta"] == {name: len(counted["alpha"] | counted["gamma"]) for name in ("other-tokenizer", "all")}


def test_what_is_shown(world: World, findings: Findings, tmp_path: Path) -> None:
    """Every kind of table, the figure, and a caveat that says when downloads were read."""
    titles = [table.title for table in findings.tables]
    assert titles == ["mean overlap with the base by cohort", "few downloads against many", "false negatives", "told from strangers",
                      "families compared: difference of mean overlap", "members", "members that do not count",
                      "re-uploads: the same weights again"]  # fmt: skip
    assert all(len(row) == len(table.columns) for table in findings.tables for row in table.rows)
    figure = findings.figures["overlap-by-downloads"]
    write_figure(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    points = data_of(figure, "members: alpha, corrected")
    assert {point["kind"] for point in points} <= {"member", "re-upload", "downloads not known"}
    assert all((point["downloads"] == -0.9) == (point["kind"] == "downloads not known") for point in points)
    counted = [point["overlap"] for point in points if point["kind"] != "re-upload"]
    (mean,) = [
        f for f in findings.findings if (f.name, *f.labels.values()) == ("overlap-mean", "alpha", "before", "corrected")
    ]
    assert np.mean(counted) == pytest.approx(mean.value, rel=1e-5)
    listing = json.loads(listings(world.run)["lab/alpha"].read_text())
    assert any(
        caveat.startswith("alpha: 35 models listed by") and listing["taken"] in caveat for caveat in findings.caveats
    )
