"""A run that holds on to a lifeline ends with it, and only with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from support.toy_suite import SUITE, environ, metrics_of, modelassay, only_run, start, write_suite

HELD = environ(MODELASSAY_LIFELINE="stdin")


def test_run_goes_on_while_the_lifeline_is_held(tmp_path: Path) -> None:
    process = start("run", write_suite(tmp_path), "--runs", tmp_path / "runs", env=HELD, stdin=subprocess.PIPE)
    assert process.wait(timeout=120) == 0
    process.communicate()
    assert len(metrics_of(only_run(tmp_path / "runs"))) == 4 * 24


def test_run_stops_with_its_results_when_the_lifeline_ends(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, SUITE.replace("pause_ms: 3.0", "pause_ms: 50.0"))
    process = start("run", suite, "--runs", tmp_path / "runs", env=HELD, stdin=subprocess.PIPE)
    assert process.stderr is not None
    assert "4 of 4 cells to run" in process.stderr.readline()
    _, err = process.communicate(timeout=30)  # closes its standard input
    assert process.returncode == 143
    assert "interrupted; what was measured is kept" in err
    assert modelassay("run", only_run(tmp_path / "runs"))[0] == 0


def test_process_that_ignores_the_wish_to_stop_is_ended() -> None:
    script = (
        "import os, signal, time\nfrom modelassay.machine import lifeline\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "lifeline.exit_when_stdin_closes(os.environ, grace_s=0.1)\ntime.sleep(600)"
    )
    done = subprocess.run([sys.executable, "-c", script], stdin=subprocess.DEVNULL, env=HELD, timeout=60, check=False)
    assert done.returncode == 128 + signal.SIGTERM


def test_without_the_variable_standard_input_means_nothing(tmp_path: Path) -> None:
    code, _, err = modelassay("run", write_suite(tmp_path), "--runs", tmp_path / "runs", stdin=subprocess.DEVNULL)
    assert code == 0, err


def test_standard_input_that_does_not_wait_has_not_ended() -> None:
    """What another process on the same pipe or terminal may have set: reading says "try again", not "the end"."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    script = (
        "import os, time\nfrom modelassay.machine import lifeline\n"
        "lifeline.exit_when_stdin_closes(os.environ)\ntime.sleep(1)\nprint('alive')"
    )
    with os.fdopen(writer, "w"), os.fdopen(reader) as stdin:
        done = subprocess.run(
            [sys.executable, "-c", script],
            stdin=stdin,
            env=HELD,
            timeout=60,
            check=False,
            capture_output=True,
            text=True,
        )
    assert (done.returncode, done.stdout) == (0, "alive\n")
