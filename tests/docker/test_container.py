"""`--in container` on a real engine: the same metrics, whoever is killed; every refusal with its fix and exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from modelassay.containers.doctor import examine_containers
from modelassay.containers.settings import LABEL
from modelassay.machine.code import differences
from modelassay.recording.log import read_cell
from modelassay.runs.directory import code_of, libraries_of, open_run
from modelassay.runs.folder import CLIENT_LOCK
from modelassay.storage.files import run_lock
from support.engine_relay import EngineRelay
from support.toy_suite import SUITE, environ, metrics_of, modelassay, only_run, rewrite, start, write_suite

from .conftest import ToyImages, open_to_all

FAST = SUITE.replace("pause_ms: 3.0", "pause_ms: 0.0")
SLOW = SUITE.replace("pause_ms: 3.0", "pause_ms: 25.0")
"""Two and a half seconds, so that there is a middle to kill it in."""

FINGERPRINTING_S = 900
"""More than the shipped suite's smoke profile takes with the zoo to build, on a machine with other work to do."""

Metrics = dict[tuple[str, str, str], float]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    """The metrics of the slow suite outside any container."""
    folder = tmp_path_factory.mktemp("local")
    code, _, err = modelassay("run", write_suite(folder, SLOW), "--runs", folder / "runs")
    assert code == 0, err
    return metrics_of(only_run(folder / "runs"))


def inside(image: str, *arguments: str | Path) -> tuple[str | Path, ...]:
    return ("--in", "container", "--image", image, *arguments)


def containers_of(engine: Any, root: Path) -> list[Any]:
    """The containers, running or not, of runs under ``root``."""
    containers = engine.containers.list(all=True, filters={"label": "org.modelassay.run"}, ignore_removed=True)
    return [container for container in containers if container.labels["org.modelassay.run"].startswith(f"{root}/")]


def begun(root: Path) -> Path:
    """Wait until a cell under ``root`` has a checkpoint; return its run directory."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in root.glob("*/cells/*/checkpoint/[0-9]*/state.json"):
            return path.parents[4]
        time.sleep(0.02)
    raise TimeoutError("no cell got as far as a checkpoint")


def wait_until_gone(engine: Any, root: Path) -> None:
    deadline = time.monotonic() + 30
    while containers_of(engine, root):
        assert time.monotonic() < deadline, "the container was left behind"
        time.sleep(0.1)


def assert_goes_on(engine: Any, run: Path, expected: Metrics, owner: tuple[int, int]) -> None:
    """Run ``run`` to its end in a container: it resumed, nothing was lost or done twice, nothing is left."""
    code, _, err = modelassay("run", run, "--in", "container")
    assert code == 0, err
    assert any(read_cell(cell).num_attempts > 1 for cell in run.glob("cells/*"))
    assert metrics_of(run) == expected
    assert containers_of(engine, run.parent) == []
    assert {(path.stat().st_uid, path.stat().st_gid) for path in [run, *run.rglob("*")]} == {owner}


def test_same_metrics_as_outside_under_tight_settings(
    engine: Any, toy: ToyImages, expected: Metrics, tmp_path: Path, owner: tuple[int, int]
) -> None:
    runs = tmp_path / "runs"
    extra = environ(HF_TOKEN="hf_" + "s" * 20, OMP_NUM_THREADS="1")
    process = start("run", write_suite(tmp_path, SLOW), "--runs", runs, "--json", *inside(toy.locked), env=extra)
    run = begun(runs)
    (container,) = containers_of(engine, runs)
    config, host = container.attrs["Config"], container.attrs["HostConfig"]
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert [cell["outcome"] for cell in json.loads(out)["cells"]] == ["done"] * 4
    assert "walk: 4 of 4 cells to run" in err
    assert "4 cells run in " in err
    assert err.rstrip().endswith(f"run directory: {run}")
    assert metrics_of(run) == expected
    assert {(path.stat().st_uid, path.stat().st_gid) for path in [run, *run.rglob("*")]} == {owner}
    assert containers_of(engine, runs) == []

    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["CapDrop"]) == ("none", True, ["ALL"])
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert (host["AutoRemove"], host["Init"], host["ShmSize"] > 1 << 30) == (True, True, True)
    assert config["User"] == f"{owner[0]}:{owner[1]}"
    assert not any(name.startswith("HF_TOKEN=") for name in config["Env"])  # no network, no use for it
    assert {"OMP_NUM_THREADS=1", "HF_HUB_OFFLINE=1"} <= set(config["Env"])
    mounts = {mount["Destination"]: mount["RW"] for mount in container.attrs["Mounts"]}
    assert mounts == {str(run): True, os.environ["MODELASSAY_CACHE"]: True, str(tmp_path / "walk.yaml"): False}

    recorded = json.loads((run / "run.json").read_text())["environment"]["container"]
    assert recorded == {"inside": True, "image": toy.locked, "image_digest": engine.images.get(toy.locked).id, "unlocked": None}  # fmt: skip


def test_killed_container_is_told_and_the_run_goes_on(
    engine: Any, toy: ToyImages, expected: Metrics, tmp_path: Path, owner: tuple[int, int]
) -> None:
    process = start("run", write_suite(tmp_path, SLOW), "--runs", tmp_path / "runs", *inside(toy.locked))
    run = begun(tmp_path / "runs")
    containers_of(engine, tmp_path / "runs")[0].kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 6
    assert f"the container was killed from outside; what was measured is kept, go on with: modelassay run {run} --in container" in err  # fmt: skip
    assert_goes_on(engine, run, expected, owner)


@pytest.mark.parametrize("at_once", [False, True])
def test_killed_client_leaves_no_container_and_the_run_goes_on(
    engine: Any, toy: ToyImages, expected: Metrics, tmp_path: Path, owner: tuple[int, int], at_once: bool
) -> None:
    process = start("run", write_suite(tmp_path, SLOW), "--runs", tmp_path / "runs", *inside(toy.locked))
    run = begun(tmp_path / "runs")
    process.kill()
    process.communicate()
    if not at_once:
        wait_until_gone(engine, tmp_path / "runs")
    assert_goes_on(engine, run, expected, owner)


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.nightly)]
)
def test_interruption_leaves_no_container_and_keeps_results(
    engine: Any, toy: ToyImages, expected: Metrics, tmp_path: Path, owner: tuple[int, int], sent: signal.Signals, code: int
) -> None:  # fmt: skip
    process = start("run", write_suite(tmp_path, SLOW), "--runs", tmp_path / "runs", *inside(toy.locked))
    run = begun(tmp_path / "runs")
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert containers_of(engine, tmp_path / "runs") == []
    assert "interrupted; what was measured is kept" in err
    assert_goes_on(engine, run, expected, owner)


def test_timeout_stops_the_container_and_keeps_results(
    engine: Any, toy: ToyImages, expected: Metrics, tmp_path: Path, owner: tuple[int, int]
) -> None:
    suite = write_suite(tmp_path, SLOW.replace("pause_ms: 25.0", "pause_ms: 1000.0"))
    code, _, err = modelassay("run", suite, "--runs", tmp_path / "runs", *inside(toy.locked, "--timeout", "8"))
    run = only_run(tmp_path / "runs")
    assert code == 6
    assert f"error: {run}: timed out after 8 s; what was measured is kept, go on with: modelassay run {run}" in err
    assert containers_of(engine, tmp_path / "runs") == []


def test_stopped_from_outside_is_an_interruption(engine: Any, toy: ToyImages, tmp_path: Path) -> None:
    process = start("run", write_suite(tmp_path, SLOW), "--runs", tmp_path / "runs", *inside(toy.locked))
    begun(tmp_path / "runs")
    containers_of(engine, tmp_path / "runs")[0].stop()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "interrupted; what was measured is kept" in err


def test_cell_out_of_memory_is_told_and_a_larger_limit_finishes_it(engine: Any, toy: ToyImages, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, FAST.replace("steps: 24", "steps: 24, allocate_at: 6, allocate_mib: 1200"))
    arguments = ("-o", "matrix.model=[zoo:base]", "-o", "matrix.seed=[0]", "--runs", tmp_path / "runs")
    code, _, err = modelassay("run", suite, *arguments, *inside(toy.locked, "--memory", "900m"))
    assert code == 3, err
    assert "killed by SIGKILL; out of memory?" in err
    assert "out of memory inside the container (its limit is 900 MiB); give it more with --memory" in err
    code, _, err = modelassay("run", only_run(tmp_path / "runs"), "--in", "container", "--memory", "3g")
    assert code == 0, err


def test_container_too_small_to_begin_is_out_of_memory_and_leaves_nothing(
    engine: Any, toy: ToyImages, tmp_path: Path
) -> None:
    code, _, err = modelassay("run", write_suite(tmp_path), "--runs", tmp_path / "runs", *inside(toy.locked, "--memory", "10m"))  # fmt: skip
    assert code == 6
    assert "out of memory inside the container (its limit is 10 MiB); give it more with --memory" in err
    assert list((tmp_path / "runs").iterdir()) == []
    assert containers_of(engine, tmp_path / "runs") == []


def test_exit_codes_of_the_command_inside_pass_through(toy: ToyImages, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, FAST.replace("steps: 24", "steps: 24, fail_at: 9, only_first: true"))
    code, out, err = modelassay("run", suite, "--runs", tmp_path / "runs", *inside(toy.locked))
    assert (code, out) == (3, "")
    assert "error: " in err
    assert "4 of 4 cells failed" in err
    run = only_run(tmp_path / "runs")
    rewrite(run, lambda manifest: manifest["code"].update({"toy/run.py": "0" * 16}))
    code, out, err = modelassay("run", run, "--in", "container")
    assert (code, out) == (2, "")
    assert "what decides its numbers changed since this run began: toy/run.py changed" in err


def test_token_reaches_the_container_and_nothing_else(engine: Any, toy: ToyImages, tmp_path: Path) -> None:
    token = "hf_" + "Q7x" * 8
    suite = write_suite(tmp_path, SLOW.replace("steps: 24", "steps: 24, tags: [hf:org/name]"))
    process = start("run", suite, "--runs", tmp_path / "runs", *inside(toy.locked), env=environ(HF_TOKEN=token, HF_HUB_OFFLINE="0", HF_HUB_CACHE=str(tmp_path / "cache/hub")))  # fmt: skip
    run = begun(tmp_path / "runs")
    (container,) = containers_of(engine, tmp_path / "runs")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"HF_TOKEN={token}" in container.attrs["Config"]["Env"]
    assert container.attrs["HostConfig"]["NetworkMode"] == "bridge"
    assert token not in json.dumps([container.labels, container.attrs["Config"]["Cmd"]])
    assert token not in out + err
    assert [path for path in run.rglob("*") if path.is_file() and token in path.read_text(errors="replace")] == []


def test_a_second_client_and_a_process_outside_join_and_each_stops_its_own_container(
    engine: Any, toy: ToyImages, tmp_path: Path
) -> None:
    suite = write_suite(tmp_path, SLOW.replace("pause_ms: 25.0", "pause_ms: 1000.0, timed: false"))
    first = start("run", suite, "--runs", tmp_path / "runs", "--jobs", "1", *inside(toy.locked))
    run = begun(tmp_path / "runs")
    second = start("run", run, "--in", "container", "--worker", "--jobs", "1")
    outside = start("run", run, "--jobs", "1")
    for process in (second, outside):
        assert process.stderr is not None
        assert any("at work on it: process" in line for line in process.stderr)
    assert len(containers_of(engine, tmp_path / "runs")) == 2
    second.terminate()
    second.communicate(timeout=60)
    assert len(containers_of(engine, tmp_path / "runs")) == 1
    for process in (outside, first):
        process.terminate()
        process.communicate(timeout=60)
    assert (outside.returncode, second.returncode, first.returncode) == (143, 143, 143)
    assert containers_of(engine, tmp_path / "runs") == []


def test_engine_that_goes_away_is_told_and_the_run_goes_on(
    engine: Any, toy: ToyImages, expected: Metrics, tmp_path: Path, owner: tuple[int, int]
) -> None:
    with EngineRelay(tmp_path / "engine.sock") as relay:
        process = start("run", write_suite(tmp_path, SLOW), "--runs", tmp_path / "runs", *inside(toy.locked), env=environ(DOCKER_HOST=relay.address))  # fmt: skip
        run = begun(tmp_path / "runs")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 6
    assert "the container engine went away; when it is back, run the same directory again" in err
    assert_goes_on(engine, run, expected, owner)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_caller_without_privileges_owns_the_results_and_leaves_others_alone(
    engine: Any, toy: ToyImages, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("unprivileged")
    open_to_all(folder)
    os.chown(folder, 4321, 4321)
    suite = write_suite(folder, FAST)
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    beginning = engine.containers.create(toy.idle, labels={LABEL: str(hidden)})
    with (
        ExitStack() as stack,
        run_lock(hidden, CLIENT_LOCK),
        EngineRelay(folder / "engine.sock", mode=0o666) as relay,
    ):
        stack.callback(beginning.remove)  # fails where the caller removed it
        extra = environ(DOCKER_HOST=relay.address, HOME=str(folder), MODELASSAY_CACHE=str(folder / "cache"))
        extra["PYTHONPATH"] = os.pathsep.join([extra["PYTHONPATH"], *filter(None, sys.path)])
        caller: dict[str, Any] = {"user": 4321, "group": 4321, "extra_groups": [], "cwd": folder, "env": extra}
        command = [
            _interpreter_for(caller),
            "-m",
            "modelassay.cli",
            "run",
            suite,
            "--runs",
            "runs",
            *inside(toy.locked),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, **caller)
    assert done.returncode == 0, done.stderr
    run = only_run(folder / "runs")
    assert {(path.stat().st_uid, path.stat().st_gid) for path in [run, *run.rglob("*")]} == {(4321, 4321)}


def _interpreter_for(caller: dict[str, Any]) -> str:
    """A Python that ``caller`` may use; root's own often lies below /root."""
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            result = subprocess.run([python, "-c", "import docker, modelassay.suite"], check=False, **caller)
        except OSError:
            continue
        if result.returncode == 0:
            return python
    pytest.skip("no Python here lets another user import modelassay")


def test_missing_image_is_told_before_anything_is_made(toy: ToyImages, tmp_path: Path) -> None:
    code, out, err = modelassay(
        "run", write_suite(tmp_path), "--runs", tmp_path / "runs", *inside("modelassay/absent:1")
    )
    assert (code, out) == (6, "")
    assert err == "error: image modelassay/absent:1 is not on this machine; get it: docker pull modelassay/absent:1\n"
    assert list((tmp_path / "runs").iterdir()) == []


def test_misspelt_image_is_the_users_mistake(toy: ToyImages, tmp_path: Path) -> None:
    code, _, err = modelassay("run", write_suite(tmp_path), "--runs", tmp_path / "runs", *inside("cpuu"))
    assert (code, "did you mean 'cpu'?" in err) == (2, True)
    code, _, err = modelassay(
        "run", write_suite(tmp_path), "--runs", tmp_path / "runs", *inside("cpu", "--memory", "much")
    )
    assert (code, "--memory much: not a size; write it with a unit, as 512m or 4g" in err) == (2, True)


def test_image_that_is_not_locked_is_refused_unless_told(toy: ToyImages, tmp_path: Path) -> None:
    suite, runs = write_suite(tmp_path, FAST), tmp_path / "runs"
    code, _, err = modelassay("run", suite, "--runs", runs, *inside(toy.unlocked))
    assert code == 6
    assert f"error: image {toy.unlocked} is not locked: " in err
    assert "--allow-unlocked, which the run will record" in err
    assert list(runs.iterdir()) == []
    code, _, err = modelassay("run", suite, "--runs", runs, *inside(toy.unlocked, "--allow-unlocked"))
    assert code == 0, err
    recorded = json.loads((only_run(runs) / "run.json").read_text())["environment"]["container"]
    assert "f" * 64 in recorded["unlocked"]


def test_run_goes_on_only_in_the_image_it_began_in(engine: Any, toy: ToyImages, tmp_path: Path) -> None:
    suite, runs = write_suite(tmp_path, FAST.replace("steps: 24", "steps: 24, fail_at: 9, only_first: true")), tmp_path / "runs"  # fmt: skip
    assert modelassay("run", suite, "--runs", runs, *inside(toy.locked))[0] == 3
    began_in, now = (engine.images.get(name).id for name in (toy.locked, toy.unlocked))
    code, _, err = modelassay("run", only_run(runs), *inside(toy.unlocked, "--allow-unlocked"))
    assert code == 6
    assert f"this run began in image {began_in}, and {toy.unlocked} is now {now}; go on with --image {began_in}" in err
    code, _, err = modelassay("run", only_run(runs), *inside(began_in))
    assert code == 0, err


def test_image_without_modelassay_is_told(toy: ToyImages, tmp_path: Path) -> None:
    code, _, err = modelassay("run", write_suite(tmp_path), "--runs", tmp_path / "runs", *inside(toy.empty))
    assert code == 6
    assert "holds modelassay: modelassay images build NAME" in err or "holds no modelassay" in err
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a read-only file system needs root")
def test_results_folder_that_cannot_be_written_is_told(toy: ToyImages, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(runs)], check=False).returncode != 0:
        pytest.skip("this machine may not mount a tmpfs")
    try:
        code, _, err = modelassay("run", write_suite(tmp_path), "--runs", runs, *inside(toy.locked))
    finally:
        subprocess.run(["umount", str(runs)], check=True)
    assert code == 6
    assert "cannot be written by user 0:0, as whom the container runs: read-only file system" in err
    assert "choose another folder with --runs, or: chown -R 0:0" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only for root the container runs as somebody else")
def test_cache_that_cannot_be_written_is_told_before_the_start(toy: ToyImages, tmp_path: Path) -> None:
    os.chown(tmp_path / "cache", 0, 0)
    code, _, err = modelassay("run", write_suite(tmp_path), "--runs", tmp_path / "runs", *inside(toy.locked))
    assert code == 6
    assert f"error: {tmp_path / 'cache'}: cannot be written by user 1234:1234, as whom the container runs: permission denied" in err  # fmt: skip
    assert f"MODELASSAY_CACHE or HF_HOME, or: chown -R 1234:1234 {tmp_path / 'cache'}" in err


def test_memory_limit_below_what_engines_allow_is_refused_before_one_is_asked(toy: ToyImages, tmp_path: Path) -> None:
    code, _, err = modelassay("run", write_suite(tmp_path), "--runs", tmp_path / "runs", *inside(toy.locked, "--memory", "1m"))  # fmt: skip
    assert code == 2
    assert "--memory 1m: the smallest limit is 6m" in err


def test_doctor_names_the_engine_and_its_images(toy: ToyImages) -> None:
    code, out, _ = modelassay("doctor", "--json", env=environ(HF_HUB_OFFLINE="1"))
    assert code == 0
    checks = {check["name"]: check for check in json.loads(out)}
    assert checks["container engine"]["status"] == "ok"
    assert {"images", "engine disk"} <= set(checks)
    assert not any(checks[name]["required"] for name in ("container engine", "images", "engine disk"))
    required = {check.name for check in examine_containers(required=True) if check.required}
    assert {"container engine", "images"} <= required


# A root, a stranger, a trained child and a function-preserving one.
FEW = ["-o", "matrix.model=[zoo:smoke/base, zoo:smoke/stranger-1, zoo:smoke/child-sft, zoo:smoke/base+scale-qk]",
       "-o", "against=[zoo:smoke/base, zoo:smoke/stranger-1]"]  # fmt: skip


@pytest.mark.parametrize(
    "options", [pytest.param(FEW, id="four models"), pytest.param([], id="all", marks=pytest.mark.nightly)]
)
def test_fingerprinting_gives_the_same_metrics_as_outside(
    cpu_image: str, tmp_path: Path, owner: tuple[int, int], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """The shipped suite's smoke profile in the image itself, not in one that holds the toy; each side makes its own zoo."""
    arguments = ("run", "fingerprinting", "--profile", "smoke", *options, "--runs")
    code, _, err = modelassay(
        *arguments, tmp_path / "runs", *inside(cpu_image, "--allow-unlocked"), timeout_s=FINGERPRINTING_S
    )
    if code == 2 and "No such option" in err:
        pytest.skip(f"image {cpu_image} was built from older sources; build it again")
    assert code == 0, err
    there = open_run(only_run(tmp_path / "runs"))
    if differences({"libraries": there.environment["libraries"]}, {"libraries": libraries_of(there.suite)}):
        pytest.skip("this environment has other versions of the libraries that decide numbers than the image")
    if differences({"code": _sources(there.code)}, {"code": _sources(code_of(there.suite))}):
        pytest.skip(f"image {cpu_image} was built from other sources; build it again")
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache-outside"))
    assert modelassay(*arguments, tmp_path / "outside", timeout_s=FINGERPRINTING_S)[0] == 0
    metrics, outside = metrics_of(there.folder), metrics_of(only_run(tmp_path / "outside"))
    assert len(metrics) > 40
    # Sums of float32; other compilers, other orders. NaN: a direction that cannot be told.
    assert metrics == pytest.approx(outside, rel=0, abs=1e-6, nan_ok=True)
    assert {(path.stat().st_uid, path.stat().st_gid) for path in there.folder.rglob("*")} == {owner}


def test_suite_kernels_runs_in_the_image_and_its_results_are_the_callers(
    cpu_image: str, tmp_path: Path, owner: tuple[int, int]
) -> None:
    code, _, err = modelassay("run", "kernels", "--profile", "smoke", "--runs", tmp_path / "runs",
                              *inside(cpu_image, "--allow-unlocked"), timeout_s=FINGERPRINTING_S)  # fmt: skip
    assert code == 0, err
    run = open_run(only_run(tmp_path / "runs"))
    timed = {row["stage"] for row in run.data().units.iter_rows(named=True)}
    assert timed == {"layer_std", "bottom_k", "linear_bottom_k", "softmax_ggn", "linear_cross_entropy", "attention"}
    assert {(path.stat().st_uid, path.stat().st_gid) for path in run.folder.rglob("*")} == {owner}


def _sources(code: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in code.items() if not name.endswith("/_native")}
