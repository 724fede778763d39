"""Arrays of workers in a real Slurm: requeued, cancelled, without their node or their controller, the tables are those of one machine."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from modelassay.errors import UsageError
from modelassay.runs.directory import create_run
from modelassay.runs.engines import Image, Job
from modelassay.runs.engines.slurm_script import Script, parse_options
from modelassay.suite import load_suite
from support.joined_runs import completed, ended
from support.slurm_cluster import (
    begin_now,
    cancelled,
    cluster,
    elements,
    job_of,
    restart_controller,
    revive,
    slurm,
    until,
)
from support.toy_suite import SUITE, environ, metrics_of, modelassay, start, write_suite


def suite_of(num_cells: int, **parameters: object) -> str:
    own = "".join(f", {name}: {value}" for name, value in {"timed": "false", **parameters}.items())
    seeds = ", ".join(map(str, range(num_cells // 2)))
    text = SUITE.replace("pause_ms: 3.0", f"pause_ms: 10{own}").replace("seed: [0, 1]", f"seed: [{seeds}]")
    return text.replace("steps: 24", "steps: 200")


def job(tmp_path: Path, resources: str) -> Job:
    text = SUITE.replace("matrix:", f"resources: {resources}\nmatrix:", 1)
    run = create_run(load_suite(str(write_suite(tmp_path, text))), tmp_path / "a run % \"of' ours")
    return Job(run=run, count=3, attempts=1)


def test_the_script_asks_for_what_the_suite_says_and_bash_reads_it(tmp_path: Path) -> None:
    own = job(tmp_path, "{gpus: 2, gpu_type: h100, cpus: 8, memory: 64g, time: 2d}")
    text = Script(job=own, options=parse_options(["partition=gpu", "exclusive", 'comment=say "a b"', "mem=1G"])).text(3)
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    for line in ("array=0-2", "requeue", "signal=B:TERM@120", "gpus-per-node=h100:2", "cpus-per-task=8", "time=2880",
                 "partition=gpu", "exclusive", 'comment="say \\"a b\\""', "mem=1G"):  # fmt: skip
        assert lines.count(line) == 1
    assert len([line for line in lines if line.startswith("mem=")]) == 1
    assert "a run" not in "".join(lines)  # nowhere where Slurm would read its %
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    printed = subprocess.run(
        ["bash", "-c", f'{_start_line(text)}; printf "%s\\n" "${{start[@]}}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.splitlines() == own.command


def _start_line(text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith("start=("))


def test_in_an_image_pyxis_is_taken_where_srun_has_it_else_apptainer(tmp_path: Path) -> None:
    own = job(tmp_path, "{gpus: 1}")
    image = Image(reference=f"ghcr.io/lab/core@sha256:{'0' * 64}", mounts=[("/data/runs x", True), ("/data/model", False)],
                  environment={"MODELASSAY_CACHE": "/data/my cache"}, gpus=1)  # fmt: skip
    text = Script(job=own, image=image).text(1)
    branches = text[text.index("export MODELASSAY_CACHE") : text.index("stopped=")]
    for tools, expected in (
        ("srun() { echo --container-image; }", [f"--container-image=ghcr.io#lab/core@sha256:{'0' * 64}",
                                                "--container-mounts=/data/runs x:/data/runs x,/data/model:/data/model:ro"]),
        ("srun() { :; }; apptainer() { :; }", ["apptainer", "exec", "--nv", f"docker://{image.reference}"]),
    ):  # fmt: skip
        shown = subprocess.run(["bash", "-c", f'{tools}\n{branches}printf "%s\\n" "${{start[@]}}"; echo "$MODELASSAY_CACHE"'],
                               capture_output=True, text=True, check=True).stdout.splitlines()  # fmt: skip
        assert set(expected) <= set(shown)
        assert shown[-1] == "/data/my cache"
        assert shown[-1 - len(own.worker) : -1] == own.worker
    none = subprocess.run(
        ["bash", "-c", f"srun() {{ :; }}; command() {{ false; }}\n{branches}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert none.returncode == 6
    assert "neither pyxis nor Apptainer" in none.stdout
    with pytest.raises(UsageError, match="a comma, a colon"):
        Script(job=own, image=Image(reference=image.reference, mounts=[("/a,b", True)], environment={}, gpus=0)).text(1)


@pytest.mark.parametrize("text", ["array=0-3", "Partition=a", "=a", "time=1\n#SBATCH --wrap=x", "-p=a", "wrap=ls", ""])
def test_options_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--slurm"):
        parse_options([text])


def test_without_slurm_nothing_begins(tmp_path: Path) -> None:
    arguments = ("run", write_suite(tmp_path), "--on", "slurm", "--runs", tmp_path / "runs")
    code, _, err = modelassay(*arguments, env=environ(PATH="/nowhere"))
    assert (code, err) == (
        6,
        "error: --on slurm needs sbatch, which is not here; run this on a machine that submits jobs\n",
    )
    assert not (tmp_path / "runs").exists()
    assert modelassay("run", write_suite(tmp_path), "--slurm", "partition=a")[0] == 2
    code, out, _ = modelassay("doctor", "--engine", "slurm", "--json", env=environ(PATH="/nowhere"))
    assert (code, json.loads(out)[0]["status"]) == (6, "missing")
    code, _, err = modelassay("run", write_suite(tmp_path), "--on", "slrm")
    assert code == 2
    assert "did you mean 'slurm'" in err


def test_a_queue_that_refuses_says_why(tmp_path: Path) -> None:
    env = cluster()
    arguments = ("run", write_suite(tmp_path), "--on", "slurm", "--into", tmp_path / "run")
    code, _, err = modelassay(*arguments, "--slurm", "partition=none", env=env)
    assert code == 6
    assert "error: sbatch refused: " in err
    assert "invalid partition" in err
    code, out, err = modelassay("doctor", "--engine", "slurm", "--json", env=env)
    assert code == 0, err
    assert [check["status"] for check in json.loads(out) if check["required"]] == ["ok", "ok"]
    assert "Traceback" not in err


def run_alone(tmp_path: Path, text: str) -> dict[tuple[str, str, str], float]:
    """The metrics of one machine's run."""
    single = tmp_path / "single"
    assert modelassay("run", write_suite(tmp_path, text), "--into", single, timeout_s=1200)[0] == 0
    return metrics_of(single)


def test_an_array_with_an_element_requeued_in_mid_cell(tmp_path: Path) -> None:
    env, run = cluster(), tmp_path / "a run % of 'ours'"
    suite = write_suite(tmp_path, suite_of(6))
    with ended([driver := start("run", suite, "--on", "slurm", "--workers", "2", "--into", run, env=env)]):
        number = job_of(run)
        with cancelled(env, number):
            until(lambda: len(list(run.glob("cells/*/*.lease"))) == 2)
            name = next(name for name, (state, _) in elements(env, number).items() if state == "RUNNING")
            slurm(env, "scontrol", "requeue", name)
            while driver.poll() is None:
                begin_now(env, number)
                time.sleep(1)
            _, err = driver.communicate()
    assert driver.returncode == 0, err
    assert sorted(completed(run).values()) == [1] * 6
    assert metrics_of(run) == run_alone(tmp_path, suite_of(6))


@pytest.mark.nightly
def test_an_array_over_40_cells_loses_a_node_the_controller_and_its_driver(tmp_path: Path) -> None:
    env, run = cluster(), tmp_path / "run"
    text = suite_of(40)
    first = start("run", write_suite(tmp_path, text), "--on", "slurm", "--workers", "4", "--into", run, env=env)
    number = job_of(run)
    with cancelled(env, number):
        until(lambda: len(list(run.glob("cells/*/*.lease"))) == 4)
        name, (_, node) = next(each for each in elements(env, number).items() if each[1][0] == "RUNNING")
        slurm(env, "scontrol", "requeue", name)
        first.kill()  # the driver: whoever gives the command again finds the array
        first.communicate()
        with ended([driver := start("run", run, "--on", "slurm", "--workers", "4", env=env)]):
            slurm(env, "scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
            restart_controller(env)
            while driver.poll() is None:
                revive(env, node)
                for each in (run / "slurm/jobs.txt").read_text().split():
                    begin_now(env, each)
                time.sleep(1)
            _, err = driver.communicate()
    revive(env, node)
    assert driver.returncode == 0, err
    assert sorted(completed(run).values()) == [1] * 40
    assert metrics_of(run) == run_alone(tmp_path, text)


@pytest.mark.nightly
def test_a_job_that_is_cancelled_is_not_submitted_again_by_itself(tmp_path: Path) -> None:
    env, run = cluster(), tmp_path / "run"
    suite = write_suite(tmp_path, suite_of(4))
    with ended([driver := start("run", suite, "--on", "slurm", "--workers", "2", "--into", run, env=env)]):
        number = job_of(run)
        with cancelled(env, number):
            until(lambda: len(list(run.glob("cells/*/*.lease"))) == 2)
        _, err = driver.communicate(timeout=60)
    assert driver.returncode == 3, err
    assert "was cancelled" in err
    assert (run / "slurm/jobs.txt").read_text().split() == [number]
    code, _, err = modelassay("run", run, "--on", "slurm", "--workers", "2", env=env)
    assert code == 0, err
    assert set(completed(run).values()) == {1}
