"""What is shown of runs: those that went wrong too, and no number that cannot be stood for."""

import json
import shutil
from pathlib import Path

import pytest

from support.toy_suite import SUITE, environ, modelassay, modelassay_with_models, only_run, rewrite, write_suite
from support.zoo_needs import make_needs, store_with_zoo

ROGUE = """\
suite: rogue
experiment: rogue
question: What happens?
profiles: {{{profile}: {{}}}}
matrix:
  deed: [behave]
claims:
  - {{id: one, source: made up, metric: number, published: 1.0, tolerance: 0.5, profile: {profile}}}
"""


def run_rogue(folder: Path, profile: str = "embedded") -> Path:
    """A finished run whose analysis goes wrong when it is asked to."""
    suite = folder / "rogue.yaml"
    suite.write_text(ROGUE.format(profile=profile))
    code, _, err = modelassay("run", suite, "--runs", folder / "runs", "--profile", profile)
    assert code == 0, err
    return only_run(folder / "runs")


@pytest.fixture(scope="module")
def rogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_rogue(tmp_path_factory.mktemp("rogue"))


def strict(text: str) -> object:
    return json.loads(text, parse_constant=pytest.fail)


def test_analysis_that_fails_leaves_the_cells_to_be_seen(rogue: Path) -> None:
    code, out, err = modelassay("show", rogue, "--json", env=environ(ROGUE_ANALYSIS="raise"))
    assert code == 1
    assert err.splitlines()[-1] == (
        f"error: {rogue}: the analysis of rogue failed: ZeroDivisionError: a bug of the analysis; every measurement is kept"
    )
    answer = json.loads(out)
    assert ([cell["outcome"] for cell in answer["cells"]], answer["findings"]) == (["done"], None)
    assert [(c["verdict"], c["reason"]) for c in answer["claims"]] == [("not testable", "the analysis failed")]


def test_analysis_that_prints_does_not_touch_the_data(rogue: Path) -> None:
    code, out, err = modelassay("show", rogue, "--json", env=environ(ROGUE_ANALYSIS="print"))
    assert (code, err) == (0, "said by the analysis\n")
    assert json.loads(out)["claims"][0]["verdict"] == "reproduced"


def test_undefined_numbers_are_strict_json_and_decide_nothing(rogue: Path) -> None:
    code, out, _ = modelassay("show", rogue, "--json", env=environ(ROGUE_ANALYSIS="undefined"))
    assert code == 0
    (claim,) = strict(out)["claims"]
    assert (claim["verdict"], claim["ours"]) == (
        "inconclusive",
        {"value": "nan", "low": "-inf", "high": "inf", "kind": "estimate", "run": str(rogue)},
    )


def test_titles_columns_and_cells_are_never_markup(rogue: Path) -> None:
    code, out, _ = modelassay("show", rogue, env=environ(ROGUE_ANALYSIS="markup"))
    assert code == 0
    assert {"[/red]", "[/b]", "[/i] :bug:"} <= {line.strip() for line in out.splitlines()}


def test_numbers_of_a_smoke_run_decide_no_claim(tmp_path: Path) -> None:
    code, out, _ = modelassay("show", run_rogue(tmp_path, profile="smoke"), "--json")
    assert code == 0
    answer = json.loads(out)
    (claim,) = answer["claims"]
    assert (answer["profile"], claim["verdict"], claim["ours"]) == ("smoke", "not testable", None)
    assert "its numbers mean nothing" in claim["reason"]


@pytest.fixture
def three_runs(tmp_path: Path) -> Path:
    """Three finished runs of the toy: the second one's log is damaged, the third one's experiment is gone."""
    root = tmp_path / "runs"
    suite = write_suite(tmp_path, SUITE.replace(", pause_ms: 3.0", ""))
    assert modelassay("run", suite, "--runs", root)[0] == 0
    first = only_run(root).rename(root / "first")
    for name in ("second", "third"):
        shutil.copytree(first, root / name)
    log = next((root / "second").glob("cells/*/attempt-1.jsonl"))
    log.write_text("no record\n" + log.read_text())
    rewrite(root / "third", lambda manifest: manifest["suite"]["experiment"].update(package="gone"))
    return root


def test_list_shows_what_cannot_be_read_and_the_rest(three_runs: Path) -> None:
    code, out, _ = modelassay("show", "--runs", three_runs, "--json")
    assert code == 0
    listed = {Path(run["run"]).name: (run["profile"], run["status"]) for run in json.loads(out)["runs"]}
    assert listed["first"] == ("embedded", "4 done")
    assert listed["second"][0] == "embedded"
    assert listed["second"][1].startswith("unreadable: ")
    assert "not as it was written" in listed["second"][1]
    assert listed["third"][0] is None
    assert "no experiment 'gone'" in listed["third"][1]
    code, out, _ = modelassay("show", "--runs", three_runs)
    assert (code, out.count("unreadable: ")) == (0, 2)


def test_ledger_survives_runs_that_cannot_be_read(three_runs: Path) -> None:
    code, out, err = modelassay("show", "--claims", "--runs", three_runs, "--json")
    assert (code, err) == (0, "")
    assert {entry["verdict"] for entry in json.loads(out)} == {"not testable"}


def smoke_suite(models: str) -> str:
    return (
        "suite: fingerprinting\nquestion: relatives?\nprofiles: {embedded: {}}\n"
        f"matrix: {{model: [{models}]}}\n"
    )  # fmt: skip


@pytest.mark.nightly
def test_ledger_takes_only_runs_of_the_shipped_suites_own_cells(tmp_path: Path) -> None:
    """A user's copy of a suite, with models of their own, has its name and its profile."""
    suite = tmp_path / "mine.yaml"
    names = ("zoo:smoke/base", "zoo:smoke/child-sft", "zoo:smoke/stranger-1")
    make_needs(store_with_zoo(tmp_path / "cache/artifacts"), *names)
    suite.write_text(smoke_suite(", ".join(names)))
    env = environ(MODELASSAY_CACHE=str(tmp_path / "cache"))
    code, _, err = modelassay_with_models("run", suite, "--runs", tmp_path / "runs", env=env)
    assert code == 0, err
    ledger = json.loads(modelassay("show", "--claims", "--runs", tmp_path / "runs", "--json", env=env)[1])
    claim = next(entry for entry in ledger if entry["claim"]["id"] == "survives-fine-tuning")
    assert (claim["verdict"], claim["ours"]) == ("not testable", None)


def test_rows_are_those_of_an_experiment_that_has_some(tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    code, out, err = modelassay("show", suite, "--rows", "2")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].endswith("walk has no training rows to show")
    code, _, err = modelassay("show", suite, "-o", "width=2")
    assert code == 2
    assert "-o applies only with --rows" in err
    code, _, err = modelassay("show", "--rows", "2")
    assert code == 2
    assert "--rows shows the rows of one suite; name it" in err
