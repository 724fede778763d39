"""The ledger: published, derived, counter-evidence and ours side by side, each number with where it came from."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelassay import suite as suites
from modelassay.claims.published import PublishedTables
from modelassay.commands import ledger as commands_ledger
from modelassay.commands import show
from modelassay.commands.check import check_files
from modelassay.commands.view import View, emit
from modelassay.data.similarities import SimilarityTable
from modelassay.errors import UsageError
from modelassay.experiments import find_experiment
from modelassay.suite import Derived, Evidence, Published, shipped_suites
from support.toy_suite import environ, modelassay

SUITE = """\
suite: walk
experiment: toy
question: Where does the walk end?
profiles:
  embedded: {steps: 2, model: zoo:base}
  smoke: {steps: 1, model: zoo:base}
  paper: {steps: 3, model: zoo:base}
claims:
  - id: near-zero
    statement: The walk stays where it began.
    source: made up
    metric: final
    published: 0.0
    tolerance: 5
    profile: embedded
    derived:
      value: 0.5
      source: their table
      published: &table {reader: similarities, file: tables/t.csv, families: tables/f.csv, statistic: median, get: the author on request}
    counter_evidence:
      - {statement: It was seen elsewhere., value: 7, source: a letter}
      - {statement: Nobody believes it., source: hearsay}
      - {statement: Many are high., source: their table, value: 0.3, published: {<<: *table, statistic: share_above, at: 0.5}}
  - {id: in-smoke, source: made up, metric: final, published: 0.0, tolerance: 5, profile: smoke}
  - {id: in-paper, source: made up, metric: final, published: 0.0, tolerance: 5, profile: paper}
"""
TABLE = ",x,y,z\nx,1,0.9,0.5\ny,0.9,1,0.625\nz,0.5,0.625,1\n"
TOY = find_experiment("toy", package="toy")
FAMILIES = "name,cluster\nx,a\ny,a\nz,b\n"


def put_tables(folder: Path) -> None:
    (folder / "tables").mkdir()
    (folder / "tables/t.csv").write_text(TABLE)
    (folder / "tables/f.csv").write_text(FAMILIES)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the suite, and a complete run of its embedded and of its smoke profile."""
    folder = tmp_path_factory.mktemp("walked")
    (folder / "walk.yaml").write_text(SUITE)
    for profile in ("embedded", "smoke"):
        code, _, err = modelassay(
            "run", folder / "walk.yaml", "--profile", profile, "--into", folder / "runs" / profile
        )
        assert code == 0, err
    return folder


@pytest.fixture
def ledger(walked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a suite that counts as shipped, without its tables."""
    (tmp_path / "walk.yaml").write_text(SUITE)
    for module in (commands_ledger, suites):
        monkeypatch.setattr(module, "shipped_suites", lambda: {"walk": tmp_path / "walk.yaml"})
    return tmp_path


def entries(view: View) -> dict[str, Any]:
    data = json.loads(json.dumps(view.data, allow_nan=False))
    return {entry["claim"]["id"]: entry for entry in data}


def rows(view: View) -> dict[str, dict[str, str]]:
    (table,) = view.tables
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_all_four_numbers_stand_in_one_row(walked: Path, ledger: Path) -> None:
    put_tables(ledger)
    view = commands_ledger.ledger(walked / "runs")
    ours = entries(view)["near-zero"]["ours"]
    assert ours["low"] == ours["value"] == ours["high"]  # one cell: the toy's interval is a point
    assert ours["run"] == str(walked / "runs/embedded")
    assert rows(view)["walk/near-zero"] == {
        "claim": "walk/near-zero", "profile": "embedded", "published": "= 0 ± 5", "derived": "0.5625*",
        "counter-evidence": "7; stated; 50 % above 0.5*", "verdict": "reproduced", "run, or why none": "embedded",
        "ours": f"{ours['value']:.4g} [{ours['low']:.4g}, {ours['high']:.4g}]",
    }  # fmt: skip


def test_numbers_of_a_table_are_computed_and_traced(walked: Path, ledger: Path) -> None:
    put_tables(ledger)
    view = commands_ledger.ledger(walked / "runs")
    entry = entries(view)["near-zero"]
    sha256 = hashlib.sha256(TABLE.encode()).hexdigest()
    assert (entry["derived"]["value"], entry["derived"]["quoted"], entry["derived"]["source"]) == (
        0.5625,
        0.5,
        "their table",
    )
    assert entry["derived"]["published"] == {
        "file": str(ledger / "tables/t.csv"), "status": "computed", "problem": None, "get": "the author on request",
        "sha256": {"file": sha256, "families": hashlib.sha256(FAMILIES.encode()).hexdigest()}, "value": 0.5625, "n": 2,
        "agrees": False,
    }  # fmt: skip
    assert [(item["value"], item["quoted"]) for item in entry["counter_evidence"]] == [(7, 7), (None, None), (0.5, 0.3)]
    text = "\n".join(view.lines)
    assert f"computed over 2 pairs of {ledger}/tables/t.csv (SHA-256 {sha256[:16]}, families SHA-256 " in text
    assert "not the 0.5 that is quoted: another version of the file?" in text
    assert "* computed here from the published table" in text
    assert "not at hand" not in text


def test_a_table_that_is_not_there_is_said_once_and_the_quoted_number_stands(walked: Path, ledger: Path) -> None:
    view = commands_ledger.ledger(walked / "runs")
    row = rows(view)["walk/near-zero"]
    assert (row["derived"], row["counter-evidence"]) == ("0.5", "7; stated; 30 % above 0.5")
    missing = f"table not at hand: {ledger}/tables/t.csv, {ledger}/tables/f.csv: the author on request"
    assert [line for line in view.lines if "not at hand" in line] == [missing]
    assert "* computed here from the published table" not in view.lines
    table = entries(view)["near-zero"]["derived"]["published"]
    assert (table["status"], table["value"], table["sha256"], table["agrees"]) == ("not at hand", None, None, None)
    (checked,) = check_files([str(ledger / "walk.yaml")]).data
    assert checked["missing"] == [missing]


def test_a_broken_table_hides_nothing_in_the_ledger_and_fails_the_check(walked: Path, ledger: Path) -> None:
    put_tables(ledger)
    (ledger / "tables/t.csv").write_text(TABLE.replace("0.9,0.5", "0.9,half"))
    view = commands_ledger.ledger(walked / "runs")
    says = f"{ledger}/tables/t.csv:2: 'x' with 'z' is 'half', not a finite number"
    assert [line for line in view.lines if line.startswith(says)]
    assert rows(view)["walk/near-zero"]["derived"] == "0.5"
    assert entries(view)["near-zero"]["derived"]["published"]["status"] == "unreadable"
    with pytest.raises(UsageError, match=re.escape(says)):
        check_files([str(ledger / "walk.yaml")])


def test_a_table_without_a_word_where_to_get_it_must_be_there(ledger: Path) -> None:
    path = ledger / "walk.yaml"
    path.write_text(SUITE.replace(", get: the author on request", ""))
    with pytest.raises(UsageError, match="tables/t.csv: cannot be read: No such file"):
        check_files([str(path)])


def test_smoke_and_missing_runs_decide_nothing(walked: Path, ledger: Path) -> None:
    view = commands_ledger.ledger(walked / "runs")
    claims = entries(view)
    assert {name: (claims[name]["verdict"], claims[name]["ours"]) for name in ("in-smoke", "in-paper")} == {
        "in-smoke": ("not testable", None), "in-paper": ("not testable", None),
    }  # fmt: skip
    shown = rows(view)
    assert shown["walk/in-smoke"]["run, or why none"] == "profile smoke only walks the path: its numbers mean nothing"
    assert shown["walk/in-paper"]["run, or why none"] == f"no complete paper run under {walked / 'runs'}"
    assert shown["walk/in-paper"]["ours"] == "not measured"


def test_a_run_shows_the_same_columns_and_sources(walked: Path, ledger: Path) -> None:
    run = show.open_run(walked / "runs/embedded")
    view = show.run_view(run)
    assert view.tables[-1].columns == commands_ledger.ledger(walked / "runs").tables[0].columns
    assert [row[0] for row in view.tables[-1].rows] == ["walk/near-zero"]
    assert "  published = 0 ± 5: made up" in view.lines
    assert "  against 7: It was seen elsewhere. (a letter)" in view.lines
    assert "  against: Nobody believes it. (hearsay)" in view.lines
    (ours,) = [line for line in view.lines if line.startswith("  ours: ")]
    assert ours.endswith("] against [-5, 5]")
    assert json.loads(json.dumps(view.data))["claims"][0]["counter_evidence"][0]["value"] == 7


def test_a_run_finds_the_tables_beside_its_suite(walked: Path) -> None:
    put_tables(walked)
    code, out, err = modelassay("show", walked / "runs/embedded", cwd=walked.parent)
    assert (code, err) == (0, "")
    assert "0.5625*" in out


def test_rows_fit_190_columns_and_statements_stay_out_of_them(
    walked: Path, ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    emit(commands_ledger.ledger(walked / "runs"), as_json=False)
    table, _, below = capsys.readouterr().out.partition("walk/near-zero: ")
    assert max(map(len, table.splitlines())) <= 190
    assert "stays where it began" not in table
    assert "stays where it began" in below


@pytest.mark.parametrize(
    ("statistic", "at", "value", "shown"),
    [
        ("median", None, 0.43823, "0.4382"),
        ("quantile", 0.99, 0.91171, "0.9117"),
        ("max", None, 0.92777, "0.9278"),
        ("share_above", 0.9, 0.022994, "2.3 % above 0.9"),
        ("auroc", None, 0.92694, "AUROC 0.927"),
        ("tpr_at_fpr", 0.01, 0.89644, "TPR 0.896 at 1 % FPR"),
    ],
)
def test_a_number_says_what_it_is(statistic: Any, at: float | None, value: float, shown: str) -> None:
    table = SimilarityTable(reader="similarities", file="t.csv", statistic=statistic, at=at)
    assert table.worded(value) == shown


@pytest.mark.parametrize(
    ("quoted", "agrees"),
    [(0.56, True), (0.562, True), (0.563, True), (0.57, False), (0.5625, True), (1, True), (0, False)],
)
def test_a_quoted_number_agrees_if_the_computed_one_rounds_to_it(quoted: float, agrees: bool, tmp_path: Path) -> None:
    put_tables(tmp_path)
    published = Published(reader="similarities", file="tables/t.csv", families="tables/f.csv", statistic="median")
    number = PublishedTables(tmp_path, TOY).number(Derived(value=quoted, source="s", published=published))
    assert number.computed is not None
    assert (number.disagrees, number.value) == (not agrees, 0.5625)


def test_a_number_without_value_or_table_is_only_stated(tmp_path: Path) -> None:
    number = PublishedTables(tmp_path, TOY).number(Evidence(statement="no", source="s"))
    assert (number.short(), number.origin(), number.missing()) == ("", "", "")


def test_shipped_tables_are_named_with_where_to_get_them() -> None:
    for path in shipped_suites().values():
        claims, experiment = suites.read_claims(path)
        for claim in claims:
            for origin in (claim.derived, *claim.counter_evidence):
                if origin is not None and origin.published is not None:
                    assert experiment.reader(origin.published.model_dump()).get
                    assert origin.value is not None


def test_check_prints_the_statistics_of_a_table(tmp_path: Path) -> None:
    put_tables(tmp_path)
    code, out, err = modelassay("check", tmp_path / "tables/t.csv", "--families", tmp_path / "tables/f.csv", "--json")
    assert (code, err) == (0, "")
    (entry,) = json.loads(out)
    assert entry["content"] == "3 pairs of 3 models"
    assert (entry["similarities"]["auroc"], entry["similarities"]["groups"]["unrelated"]["median"]) == (1.0, 0.5625)
    code, out, _ = modelassay("check", tmp_path / "tables/t.csv")
    assert code == 0
    assert "which models are related is not known; give --families FILE" in out
    assert hashlib.sha256(TABLE.encode()).hexdigest() in out


def test_check_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    put_tables(tmp_path)
    (tmp_path / "tables/t.csv").write_text(TABLE.replace("0.625", "0.7", 1))
    code, out, err = modelassay("check", tmp_path / "tables/t.csv")
    assert (code, out) == (2, "")
    assert err.startswith(
        f"error: {tmp_path}/tables/t.csv:4: 'z' with 'y' is 0.625 here and 0.7 the other way round (line 3)"
    )
    (tmp_path / "walk.yaml").write_text(SUITE.replace("tables/", "elsewhere/"))
    code, _, err = modelassay("check", tmp_path / "walk.yaml", "--families", "f.csv")
    assert (code, err) == (
        2,
        "error: --families f.csv needs a similarity table (.csv, .json); name one\n",
    )


def test_showing_loads_no_array_library_before_a_run_forks() -> None:
    script = "import sys; from modelassay.commands import show; from modelassay.runs import execute; print(sorted({'numpy', 'polars', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], env=environ(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
