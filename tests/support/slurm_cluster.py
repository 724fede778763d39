"""A Slurm cluster to test on: the one whose variables the file MODELASSAY_TEST_SLURM exports, else the machine's own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.toy_suite import environ


def cluster() -> dict[str, str]:
    """The environment in which Slurm's commands are at hand; skips the test where there is none."""
    exports = os.environ.get("MODELASSAY_TEST_SLURM")
    if exports:
        shown = subprocess.run(
            ["bash", "-c", 'source "$0" && env -0', exports], capture_output=True, text=True, check=True
        )
        return environ(**dict(line.split("=", 1) for line in shown.stdout.split("\0") if "=" in line)) | {
            "PYTHONPATH": environ()["PYTHONPATH"]
        }
    if shutil.which("sbatch") is None:
        pytest.skip(
            "no Slurm here: MODELASSAY_TEST_SLURM names no file that exports where one is, and there is no sbatch"
        )
    return environ()


def slurm(env: Mapping[str, str], *words: str) -> str:
    return subprocess.run(words, env=dict(env), capture_output=True, text=True, check=True, timeout=60).stdout


def elements(env: Mapping[str, str], job: str) -> dict[str, tuple[str, str]]:
    """Name of each element that is in the queue: its state and its node."""
    rows = [row.split("|") for row in slurm(env, "squeue", "-h", "-r", "-o", "%i|%T|%N").splitlines()]
    return {name: (state, node) for name, state, node in rows if name.startswith(f"{job}_")}


def job_of(run: Path) -> str:
    """The array job that was submitted for a run."""
    until(lambda: (run / "slurm/jobs.txt").is_file() and (run / "slurm/jobs.txt").read_text().split())
    return (run / "slurm/jobs.txt").read_text().split()[-1]


def until(holds: Callable[[], object], *, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def begin_now(env: Mapping[str, str], job: str) -> int:
    """Spare elements that were requeued the two minutes that Slurm lets them wait; return how many there were."""
    waiting = [name for name, (state, _) in elements(env, job).items() if state == "PENDING"]
    for name in waiting:
        subprocess.run(
            ["scontrol", "update", f"JobId={name}", "StartTime=now"], env=dict(env), capture_output=True, check=False
        )
    return len(waiting)


def revive(env: Mapping[str, str], node: str) -> None:
    """Put a node up again, where Slurm has not done so by itself."""
    subprocess.run(
        ["scontrol", "update", f"NodeName={node}", "State=RESUME"], env=dict(env), capture_output=True, check=False
    )


@contextmanager
def cancelled(env: Mapping[str, str], job: str) -> Iterator[None]:
    """Leave nothing of an array in the queue."""
    try:
        yield
    finally:
        subprocess.run(["scancel", job], env=dict(env), capture_output=True, check=False)


def restart_controller(env: Mapping[str, str]) -> None:
    """Kill the controller and start another, where it is this user's own; skips the test elsewhere."""
    shown = slurm(env, "scontrol", "show", "config")
    path = Path(re.search(r"^SlurmctldPidFile\s*=\s*(\S+)", shown, re.MULTILINE)[1])  # type: ignore[index]
    program = shutil.which("slurmctld-wlm", path=env["PATH"])
    if program is None or not os.access(path, os.W_OK):
        pytest.skip("the controller of this Slurm is somebody else's")
    number = int(path.read_text())
    os.kill(number, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{number}").exists())
    subprocess.run([program, "-f", env["SLURM_CONF"]], env=dict(env), check=True)
    ping = ["scontrol", "ping"]
    until(lambda: "is UP" in subprocess.run(ping, env=dict(env), capture_output=True, text=True, check=False).stdout)
