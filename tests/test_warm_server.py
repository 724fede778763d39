"""A fork of the warm server is the process it stands for: its output, exit code, folder and environment, and nothing of another's."""

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.toy_suite import SUITE, environ, metrics_of, modelassay, only_run, start, write_suite
from support.warm_server import LIGHT, WarmServer, warm_server

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="forks are awaited by their descriptors")


@pytest.fixture
def server() -> WarmServer:
    shared = warm_server(LIGHT, environ)
    assert shared is not None
    return shared


def cold(*arguments: str | Path, **popen: object) -> tuple[int, str, str]:
    process = start(*arguments, **popen)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_what_is_printed_and_returned_is_a_new_process_s(tmp_path: Path) -> None:
    write_suite(tmp_path, SUITE.replace("Where does the walk end?", "Où, 日本?"))
    for arguments in (["check", "walk.yaml"], ["show", "walk.yaml", "--json"], ["frobnicate"], ["run", "absent.yaml"]):
        assert modelassay(*arguments, cwd=tmp_path) == cold(*arguments, cwd=tmp_path)


def test_a_run_has_the_same_metrics_and_the_same_record_of_its_machine(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, SUITE.replace(", pause_ms: 3.0", ""))
    for call, root in ((modelassay, tmp_path / "warm"), (cold, tmp_path / "cold")):
        code, _, err = call("run", suite, "--runs", root)
        assert code == 0, err
    assert metrics_of(only_run(tmp_path / "warm")) == metrics_of(only_run(tmp_path / "cold"))
    code, _, err = cold("run", only_run(tmp_path / "warm"))  # the same code, libraries and place
    assert code == 0, err
    assert "nothing to run" in err


def test_each_fork_has_the_environment_of_its_call(server: WarmServer, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, SUITE.replace("steps: 24", "steps: 24, tags: [secret-Q7xQ7xQ7x]"))
    env = environ(SOME_TOKEN="secret-Q7xQ7xQ7x")
    assert server.fits(env)
    assert modelassay("check", suite, env=env)[0] == 2
    assert modelassay("check", suite)[0] == 0
    assert not server.fits(environ(PYTHONHASHSEED="7"))
    assert not server.fits(environ(OMP_NUM_THREADS="2"))


def test_forks_run_beside_each_other(tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(modelassay, "run", suite, "--runs", tmp_path / name) for name in "ab"]
        assert [call.result()[0] for call in calls] == [0, 0]
    assert metrics_of(only_run(tmp_path / "a")) == metrics_of(only_run(tmp_path / "b"))


def test_one_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, SUITE.replace("pause_ms: 3.0", "pause_ms: 60000.0"))
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        modelassay("run", suite, "--runs", tmp_path / "runs", timeout_s=3)
    assert time.monotonic() - began < 30
    assert modelassay("check", suite)[0] == 0


def test_one_that_a_signal_ends_says_which(server: WarmServer, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, SUITE.replace("pause_ms: 3.0", "pause_ms: 60000.0"))
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(modelassay, "run", suite, "--runs", tmp_path / "runs")
        while not (locks := [path for path in tmp_path.glob("runs/*/run.lock") if path.read_text()]):
            assert not call.done()
            time.sleep(0.01)
        os.kill(
            int("".join(char if char.isdigit() else " " for char in locks[0].read_text()).split()[0]), signal.SIGKILL
        )
        assert call.result()[0] == -signal.SIGKILL
