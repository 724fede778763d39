"""Clients at a run directory: one alone while a run begins, then as many as come; whoever dies is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from modelassay.containers.presence import attend
from modelassay.errors import HostError
from support.toy_suite import environ

OTHER = """
import sys, time
from pathlib import Path
from modelassay.containers.presence import attend
with attend(Path(sys.argv[1])) as presence:
    presence.let_others_in()
    print("alone" if presence.is_alone else "beside others", flush=True)
    sys.stdin.read()
"""


def client(folder: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", OTHER, str(folder)], env=environ(), stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_only_the_first_is_alone_and_whoever_is_killed_is_gone(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    first, how = client(tmp_path)
    assert how == "alone"
    second, how = client(tmp_path)
    assert how == "beside others"
    first.kill()
    first.communicate()
    with attend(tmp_path) as presence:
        assert not presence.is_alone
    second.kill()
    second.communicate()
    with attend(tmp_path) as presence:
        assert presence.is_alone


def test_while_a_run_begins_no_other_is_let_in(tmp_path: Path) -> None:
    first, how = client(tmp_path)
    try:
        assert how == "alone"
        with pytest.raises(HostError, match=f"process {first.pid} is running it"), attend(tmp_path):
            pass
        (tmp_path / "run.json").write_text("{}")
        with attend(tmp_path) as presence:
            assert not presence.is_alone
    finally:
        first.kill()
        first.communicate()
