"""The command line: what it prints, what it exits with, how fast it helps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelassay.runs.directory import open_run
from modelassay.suite import shipped_suites
from support.toy_suite import (
    SUITE,
    environ,
    metrics_of,
    modelassay,
    modelassay_with_models,
    only_run,
    start,
    write_suite,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    code, _, err = modelassay(
        "run", write_suite(folder, SUITE.replace(", pause_ms: 3.0", "")), "--runs", folder / "runs"
    )
    assert code == 0, err
    return only_run(folder / "runs")


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom modelassay.cli import cli\ntry:\n    cli(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'polars', 'numpy', 'pydantic', 'triton', 'docker', 'requests'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("run", "show", "check", "fingerprint", "doctor"):
        assert f"  {verb} " in done.stdout


def test_a_mistyped_path_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom modelassay.cli import cli\nfrom modelassay.errors import CheckpointError\n"
        "try:\n    cli(sys.argv[1:], standalone_mode=False)\nexcept CheckpointError as error:\n    print(error)\n"
        "heavy = {'torch', 'transformers', 'polars', 'numpy', 'pydantic', 'scipy', 'huggingface_hub'} & set(sys.modules)\nassert not heavy, heavy"
    )
    for named in ([tmp_path, tmp_path / "no-model"], ["--suspect", tmp_path / "no-model", "--candidates", tmp_path]):
        done = subprocess.run([sys.executable, "-c", script, "fingerprint", *map(str, named)], env=environ(), capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (
            done.stdout
            == f"{tmp_path / 'no-model'}: expected a folder with config.json, got nothing there; check the path\n"
        )


def test_run_prints_data_on_stdout_and_progress_on_stderr(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, SUITE.replace(", pause_ms: 3.0", ""))
    code, out, err = modelassay("run", suite, "--runs", tmp_path / "runs", "--json")
    assert code == 0
    answer = json.loads(out)
    assert [cell["outcome"] for cell in answer["cells"]] == ["done"] * 4
    assert {c["claim"]["id"]: c["verdict"] for c in answer["claims"]} == {
        "near-zero": "reproduced", "far-away": "refuted", "elsewhere": "reproduced",
    }  # fmt: skip
    assert "4 cells run in " in err


def test_show_run_equals_what_run_printed(finished: Path) -> None:
    again = modelassay("show", finished, "--json")
    assert again[0] == 0
    assert json.loads(again[1]) == json.loads(modelassay("run", finished, "--json")[1])


def test_run_may_be_told_its_directory_and_keeps_to_it(finished: Path, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, SUITE.replace(", pause_ms: 3.0", ""))
    assert modelassay("run", suite, "--into", tmp_path / "mine")[0] == 0
    assert (tmp_path / "mine/run.json").is_file()
    code, _, err = modelassay("run", suite, "--into", finished)
    assert (code, f"{finished}: holds a run already; `modelassay run {finished}` goes on with it" in err) == (2, True)


def test_plan_of_a_finished_run_reuses_everything(finished: Path) -> None:
    code, out, _ = modelassay("run", finished, "--plan", "--json")
    assert code == 0
    assert [(cell["action"], cell["why"]) for cell in json.loads(out)] == [("reuse", "done in attempt 1")] * 4


def test_plan_predicts_from_the_microbatches_of_another_run(finished: Path, tmp_path: Path) -> None:
    """Seconds of the earlier steps, by planned tokens; a model that was not measured is not predicted."""
    suite = write_suite(tmp_path, SUITE.replace("zoo:child", "zoo:child, zoo:stranger"))
    code, out, err = modelassay("run", suite, "-o", "steps=48", "--plan", "--measured", finished, "--json")
    assert code == 0, err
    run = open_run(finished)
    units = run.data().units
    for cell in json.loads(out):
        model = next((name for name in ("zoo:base", "zoo:child") if f"model={name}" in cell["label"]), None)
        if model is None:
            assert cell["predicted_s"] is None
            continue
        own = [each.id for each in run.suite.cells if each.params.model_dump()["model"] == model]
        spent = units.filter(units["cell"].is_in(own) & (units["stage"] == "step"))["host_ms"].sum() / 1000
        assert cell["predicted_s"] == pytest.approx(spent / len(own) * 48 / 24)
    out = modelassay("run", suite, "-o", "steps=48", "--plan", "--measured", finished)[1]
    assert "for 4 cells one after the other, from 96 microbatches on " in out
    assert "not predicted: 2 cells" in out
    assert "on a GPU: not measured" in out
    code, _, err = modelassay("run", "marker-sweep", "--profile", "smoke", "--plan", "--measured", finished)
    assert (code, "a run of walk, not of marker-sweep" in err) == (2, True)
    code, _, err = modelassay("run", suite, "--measured", finished)
    assert (code, "--measured applies only with --plan" in err) == (2, True)


def test_plan_writes_nothing(tmp_path: Path) -> None:
    code, out, _ = modelassay("run", write_suite(tmp_path), "--runs", tmp_path / "runs", "--plan")
    assert code == 0
    assert "4 of 4 cells to run; 4 never ran here, their cost is not known" in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0, reason="needs mounts of its own"
)
def test_without_a_temporary_folder_nothing_is_left(tmp_path: Path) -> None:
    """As in an image whose root is read-only and that was given no /tmp."""
    write_suite(tmp_path)
    inner = (
        f"mkdir -p /dev/shm/here && mount --bind {tmp_path} /dev/shm/here && mount -t tmpfs -o ro none /tmp"
        f" && mount -t tmpfs -o ro none /var/tmp && cd /proc && exec {sys.executable} -m modelassay.cli"
        " run /dev/shm/here/walk.yaml --runs /dev/shm/here/runs"
    )
    env = {name: value for name, value in environ().items() if name not in {"TMPDIR", "TEMP", "TMP"}}
    done = subprocess.run(["unshare", "-m", "sh", "-c", inner], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 6, done.stderr
    assert done.stderr.startswith("error: no temporary file can be made")
    assert "set TMPDIR" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["walk.yaml"]


def test_override_becomes_part_of_the_cell(tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    plain = json.loads(modelassay("run", suite, "--plan", "--json")[1])
    changed = json.loads(modelassay("run", suite, "--plan", "--json", "-o", "walk.drift=1e-3")[1])
    assert not {cell["cell"] for cell in plain} & {cell["cell"] for cell in changed}


def test_list_names_suites_and_runs(finished: Path) -> None:
    code, out, _ = modelassay("show", "--runs", finished.parent, "--json")
    assert code == 0
    answer = json.loads(out)
    assert [suite["suite"] for suite in answer["suites"]] == list(shipped_suites())
    assert [(run["run"], run["status"]) for run in answer["runs"]] == [(str(finished), "4 done")]


def test_resolved_suite_names_the_layer_of_each_leaf() -> None:
    code, out, _ = modelassay("show", "fingerprinting", "--profile", "smoke", "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["provenance"]["alpha"] == "default"
    assert answer["provenance"]["model"].startswith("matrix (")


def test_ledger_lists_every_claim_with_a_verdict(tmp_path: Path) -> None:
    code, out, _ = modelassay("show", "--claims", "--runs", tmp_path, "--json")
    assert code == 0
    ledger = {entry["claim"]["id"]: entry for entry in json.loads(out)}
    pangu = ledger["pangu-from-qwen"]
    assert pangu["claim"]["published"] == 0.927
    assert (pangu["verdict"], pangu["ours"]) == ("not testable", None)
    assert "no complete paper run" in pangu["reason"]
    assert any("0.91" in evidence["statement"] for evidence in pangu["claim"]["counter_evidence"])


def test_schema_is_json() -> None:
    assert json.loads(modelassay("show", "--schema")[1])["additionalProperties"] is False


def test_check_validates_suites_and_records(finished: Path, tmp_path: Path) -> None:
    record = next(finished.glob("cells/*/attempt-1.jsonl"))
    shipped = list(shipped_suites().values())
    code, out, _ = modelassay("check", *shipped, record, "--json")
    assert code == 0
    assert len(json.loads(out)) == len(shipped) + 1
    damaged = tmp_path / "attempt-1.jsonl"
    damaged.write_text(record.read_text().replace('"kind":"metric"', '"kind":"metrik"', 1))
    code, _, err = modelassay("check", damaged)
    assert code == 2
    assert err.startswith(f"error: {damaged}:4: not as it was written")


MISTAKES = [
    (("run", "fingerprintin"), "did you mean 'fingerprinting'?"),
    (("run", "fingerprinting", "--profile", "embeded"), "did you mean 'embedded'?"),
    (("run", "fingerprinting", "-o", "alhpa=0.1", "--plan"), "did you mean 'alpha'?"),
    (("run", "no/such/file.yaml"), "no/such/file.yaml"),
    (("run", "fingerprinting", "--memory", "4g"), "--memory applies only with --in container"),
    (("run", "fingerprinting", "--allow-unlocked"), "--allow-unlocked applies only with --in container"),
    (("run", "fingerprinting", "--in", "box"), "container"),
    (("check", "no/such/file.jsonl"), "no such file"),
    (("check",), "Missing argument"),
    (("fingerprint", "one"), "at least two"),
    (("fingerprint", "same", "same"), "named twice"),
    (("fingerprint", "a", "b", "--figure", "x.txt"), ".png, .svg or .pdf"),
    (("fingerprint", "no/such/folder", "nor/this"), "no/such/folder"),
    (("fingerprint", "zoo:bsae", "zoo:base"), "did you mean"),
    (("fingerprint", "a", "b", "--against", "nothing"), "no such run"),
    (("fingerprint", "a", "b", "--alpha", "2"), "alpha"),
    (("fingerprint", "a", "b", "--alpha", "nan"), "'nan' is not a number"),
    (("run", "fingerprinting", "-o", "alpha=2", "--plan"), "alpha: must be below 1.0, got 2"),
    (("frobnicate",), "No such command"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_users_mistake_is_one_clear_message(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    for name in ("a", "b", "same"):  # a folder that is missing would be told first
        (tmp_path / name).mkdir()
    call = modelassay_with_models if arguments[0] == "fingerprint" else modelassay
    code, out, err = call(*arguments, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err
    if err.startswith("error: "):
        assert err.count("\n") == 1


def test_malformed_suite_through_the_command_line(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, SUITE.replace("steps: 24", "stepps: 24"))
    code, out, err = modelassay("run", suite, "--runs", tmp_path / "runs")
    assert (code, out) == (2, "")
    assert err == f"error: {suite}:5:14: profiles.embedded.stepps: unknown key; did you mean 'steps'?\n"
    assert not (tmp_path / "runs").exists()


def test_doctor_exits_zero_here_and_names_every_fix() -> None:
    code, out, _ = modelassay("doctor", "--json", env=environ(HF_HUB_OFFLINE="1"))
    assert code == 0
    assert all(check["fix"] for check in json.loads(out) if check["status"] != "ok")


def test_reader_that_stops_reading_is_no_error(finished: Path) -> None:
    for arguments in (["show", "--schema"], ["show", finished]):
        with start(*arguments) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == ""
        assert process.returncode == 0


def test_run_goes_on_when_nobody_reads_its_progress(tmp_path: Path) -> None:
    with start("run", write_suite(tmp_path), "--runs", tmp_path / "runs") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
        assert "near-zero" in process.stdout.read()
    assert process.returncode == 0


def test_run_needs_no_standard_streams(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, SUITE.replace(", pause_ms: 3.0", ""))
    command = [sys.executable, "-m", "modelassay.cli", "run", suite, "--runs", tmp_path / "runs"]
    closed = subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *map(str, command)], env=environ(), check=False)
    assert closed.returncode == 0
    assert len(metrics_of(only_run(tmp_path / "runs"))) == 4 * 24


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_can_show_any_text(tmp_path: Path, encoding: str) -> None:
    question = "Où va la marche, 日本?"
    suite = write_suite(tmp_path, SUITE.replace("Where does the walk end?", question))
    env = environ(PYTHONIOENCODING=encoding)
    assert json.loads(modelassay("check", suite, "--json", env=env)[1])[0]["file"] == str(suite)
    for arguments in (("show", suite, "--json"), ("show", suite)):
        code, out, err = modelassay(*arguments, env=env, encoding=encoding)
        assert (code, err) == (0, "")
        if "--json" in arguments:
            assert json.loads(out)["question"] == question
        else:
            assert question.encode(encoding, "backslashreplace").decode(encoding) in out


def test_text_in_tables_is_never_markup(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, SUITE.replace("Where does the walk end?", "'What of [/red] and :bug: ?'"))
    code, out, _ = modelassay("show", suite)
    assert code == 0
    assert "What of [/red] and :bug: ?" in out


def test_machine_that_refuses_is_one_line(tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    for arguments in (("show", "x" * 300), ("run", suite, "--runs", "/proc/nowhere")):
        code, out, err = modelassay(*arguments)
        assert (code, out, err.count("\n")) == (6, "", 1)
        assert err.startswith("error: ")
