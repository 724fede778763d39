"""Runs on file systems that cannot lock or sync, fail, have long names, or lose the run's folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from modelassay.errors import HostError
from modelassay.machine import sockets
from modelassay.runs.needs import build_needs
from modelassay.storage import durable, locks, processes
from modelassay.storage.durable import disk_fault, no_space, publish, sync_file, sync_folder, unwritable
from modelassay.storage.files import is_locked, locked, run_lock
from modelassay.storage.needs import Artifact
from modelassay.storage.store import Store, cache_root
from support.faulty_disk import faults, needs_compiler
from support.toy_suite import SUITE, environ, metrics_of, modelassay, only_run, start, write_suite

TEXT = SUITE.replace("steps: 24", "steps: 6").replace("model: [zoo:base, zoo:child]", "model: [zoo:base]")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], float]:
    """The metrics of an undisturbed run."""
    folder = tmp_path_factory.mktemp("reference")
    code, _, err = modelassay("run", write_suite(folder, TEXT), "--runs", folder / "runs")
    assert code == 0, err
    return metrics_of(only_run(folder / "runs"))


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def owner_of(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.owner")


def answering(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """Let every call of ``flock`` or ``fsync`` fail with ``code``."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl if name == "flock" else os, name, refuse)


# Locks


@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL"])
def test_without_locks_an_owner_file_keeps_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    answering(monkeypatch, "flock", getattr(errno, name))
    with run_lock(tmp_path) as lock:
        assert os.strerror(getattr(errno, name)).lower() in lock.remark
        assert "run.lock.owner keeps other processes out instead" in lock.remark
        assert is_locked(tmp_path / "run.lock")
        with (
            pytest.raises(HostError, match=f"process {os.getpid()} is running it; wait for it or stop it first"),
            run_lock(tmp_path),
        ):
            pass
    assert not owner_of(tmp_path / "run.lock").exists()
    assert not is_locked(tmp_path / "run.lock")


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ENXIO"])
def test_failing_lock_is_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    answering(monkeypatch, "flock", getattr(errno, name))
    for hold in (run_lock(tmp_path), locked(tmp_path / "lock")):
        with pytest.raises(locks.LockUnavailable, match=rf"lock: cannot be locked \({os.strerror(getattr(errno, name)).lower()}\)"), hold:  # fmt: skip
            pass
    assert not owner_of(tmp_path / "run.lock").exists()


def test_a_signal_does_not_end_the_wait_for_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [OSError(errno.EINTR, "interrupted")] * 5
    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda *a: (_ for _ in ()).throw(answers.pop()) if answers else flock(*a))
    with run_lock(tmp_path) as lock:
        assert (lock.remark, answers) == ("", [])


def test_the_owner_file_of_a_dead_process_is_taken_over(tmp_path: Path, no_flock: None) -> None:
    lock = tmp_path / "lock"
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    pid = child.pid
    holder = {"pid": pid, "started": processes.start_time(pid), **processes.surroundings()}
    owner_of(lock).write_text(json.dumps(holder))
    lock.touch()
    assert is_locked(lock)
    with pytest.raises(HostError, match=f"process {pid} is running it"), run_lock(tmp_path, "lock"):
        pass
    child.kill()  # not waited for: a process that has ended and is not collected holds nothing
    deadline = time.monotonic() + 10
    while is_locked(lock):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with locked(lock):
        assert json.loads(owner_of(lock).read_text())["pid"] == os.getpid()
    child.communicate()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"]


def test_another_process_under_the_same_number_is_another(tmp_path: Path, no_flock: None) -> None:
    holder = {"pid": os.getpid(), "started": "1", **processes.surroundings()}
    owner_of(tmp_path / "lock").write_text(json.dumps(holder))
    with locked(tmp_path / "lock"):
        pass


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"boot": "another"}, {"namespace": "pid:[1]"}, None])
def test_a_holder_that_cannot_be_seen_is_never_robbed(
    tmp_path: Path, no_flock: None, change: dict[str, str] | None
) -> None:
    owner = owner_of(tmp_path / "run.lock")
    text = "" if change is None else json.dumps({"pid": 1, "started": "1", **processes.surroundings(), **change})
    owner.write_text(text)
    for hold in (run_lock(tmp_path), locked(tmp_path / "run.lock")):
        with pytest.raises(HostError, match=f"if that has ended, remove {owner}"), hold:
            pass
    assert owner.read_text() == text
    assert is_locked(tmp_path / "run.lock")


def test_a_holder_without_locks_keeps_out_one_who_has_them(tmp_path: Path) -> None:
    holder = {"pid": 1, "started": "1", **processes.surroundings(), "host": "elsewhere"}
    owner_of(tmp_path / "run.lock").write_text(json.dumps(holder))
    with pytest.raises(HostError, match="process 1 on elsewhere"), run_lock(tmp_path):
        pass


@pytest.mark.parametrize("links", [True, False])
def test_only_one_of_many_takes_over(tmp_path: Path, links: bool) -> None:
    """Each of 8 processes finds the owner file of a dead one and adds one to a number that nothing else guards."""
    (tmp_path / "number").write_text("0")
    holder = {"pid": 1, "started": "never", **processes.surroundings()}
    owner_of(tmp_path / "lock").write_text(json.dumps(holder))
    code = """if True:
        import errno, fcntl, os, pathlib, sys, time
        def refuse(*_): raise OSError(errno.EOPNOTSUPP, "not supported")
        fcntl.flock = refuse
        if sys.argv[2] == "False":
            os.link = refuse
        from modelassay.storage.files import locked
        folder = pathlib.Path(sys.argv[1])
        for _ in range(10):
            with locked(folder / "lock"):
                number = int((folder / "number").read_text())
                time.sleep(0.001)
                (folder / "number").write_text(str(number + 1))
    """
    adding = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(links)], env=environ()) for _ in range(8)
    ]
    assert [process.wait(120) for process in adding] == [0] * 8
    assert (tmp_path / "number").read_text() == "80"


@needs_compiler
def test_a_run_without_locks_ends_alike(tmp_path: Path, reference: dict[tuple[str, str, str], float]) -> None:
    env = environ(**faults(tmp_path, flock="ENOLCK"))
    code, _, err = modelassay("run", write_suite(tmp_path, TEXT), "--runs", tmp_path / "runs", env=env)
    run = only_run(tmp_path / "runs")
    assert code == 0, err
    assert metrics_of(run) == reference
    assert not list(run.rglob("*.owner*"))


@needs_compiler
def test_killed_without_locks_it_goes_on(tmp_path: Path, reference: dict[tuple[str, str, str], float]) -> None:
    env = environ(**faults(tmp_path, flock="ENOSYS"))
    process = start("run", write_suite(tmp_path, TEXT), "--runs", tmp_path / "runs", env=env)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/cells/*/attempt-1.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    run = only_run(tmp_path / "runs")
    code, _, err = modelassay("run", run, env=env)
    assert code == 0, err
    assert metrics_of(run) == reference


@needs_compiler
def test_failing_lock_leaves_no_new_run(tmp_path: Path) -> None:
    env = environ(**faults(tmp_path, flock="EIO"))
    code, out, err = modelassay("run", write_suite(tmp_path, TEXT), "--runs", tmp_path / "runs", env=env)
    assert (code, out) == (6, "")
    assert ".new: cannot be locked (input/output error)" in err
    assert len(err.splitlines()) == 1
    assert list((tmp_path / "runs").iterdir()) == []


# Syncing


@pytest.mark.parametrize("name", ["EINVAL", "ENOTSUP", "ENOSYS", "EACCES", "EBADF"])
def test_folder_that_cannot_be_synced_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    answering(monkeypatch, "fsync", getattr(errno, name))
    sync_folder(tmp_path)


@pytest.mark.parametrize("name", ["EIO", "ENOSPC", "EDQUOT", "ESTALE"])
def test_disk_that_fails_is_never_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "file").write_text("x")
    answering(monkeypatch, "fsync", getattr(errno, name))
    with pytest.raises(OSError, match=os.strerror(getattr(errno, name))):
        sync_folder(tmp_path)
    with (tmp_path / "file").open() as file, pytest.raises(OSError, match=os.strerror(getattr(errno, name))):
        sync_file(file.fileno())
    with pytest.raises(OSError, match=os.strerror(getattr(errno, name))):
        publish(tmp_path / "part", tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_file_that_may_not_be_synced_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "fsync", errno.EACCES)
    with (tmp_path / "file").open("w") as file, pytest.raises(PermissionError):
        sync_file(file.fileno())


@needs_compiler
@pytest.mark.parametrize(("folder", "file"), [("EINVAL", None), ("EACCES", None), ("ENOTSUP", "EINVAL")])
def test_a_run_where_nothing_can_be_synced_ends_alike(
    tmp_path: Path, reference: dict[tuple[str, str, str], float], folder: str, file: str | None
) -> None:
    env = environ(**faults(tmp_path, fsync_folder=folder, fsync_file=file))
    code, _, err = modelassay("run", write_suite(tmp_path, TEXT), "--runs", tmp_path / "runs", env=env)
    assert code == 0, err
    assert metrics_of(only_run(tmp_path / "runs")) == reference


@needs_compiler
@pytest.mark.parametrize("place", ["fsync_folder", "fsync_file"])
def test_a_run_on_a_failing_disk_says_so(tmp_path: Path, place: str) -> None:
    env = environ(**faults(tmp_path, **{place: "EIO"}, path="/cells/"))  # type: ignore[arg-type]
    code, _, err = modelassay("run", write_suite(tmp_path, TEXT), "--runs", tmp_path / "runs", env=env)
    assert code == 6
    assert "the disk, or the server of the folder, fails (input/output error)" in err
    assert "Traceback" not in err


def test_folder_that_cannot_be_renamed_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part" / "deep").mkdir(parents=True)
    (tmp_path / "part" / "deep" / "file").write_text("content")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "part":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    publish(tmp_path / "part", tmp_path / "whole")
    assert (tmp_path / "whole" / "deep" / "file").read_text() == "content"
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ENOSPC", "the disk is full"),
        ("EDQUOT", "whose quota is used up"),
        ("EIO", "input/output error"),
        ("ESTALE", "stale file handle"),
        ("EROFS", "the file system is read-only"),
        ("ENOTCONN", "not connected"),
        ("EMFILE", "too many files open"),
        ("EFBIG", "larger than the file system"),
    ],
)
def test_each_fault_of_a_disk_has_its_sentence(name: str, says: str) -> None:
    fault = disk_fault(OSError(getattr(errno, name), "x"), Path("runs/r"))
    assert isinstance(fault, HostError)
    assert str(fault).startswith("runs/r: ")
    assert says in str(fault)


def test_a_missing_file_is_no_fault_of_the_disk() -> None:
    error = FileNotFoundError(errno.ENOENT, "no such file")
    assert disk_fault(error, Path("x")) is error
    assert isinstance(unwritable(OSError(errno.ENAMETOOLONG, "x"), Path("x")), HostError)


# Sockets


def long_folder(length: int) -> Path:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder /= "x" * (length - len(str(folder)) - 1)
    folder.mkdir()
    return folder


@pytest.mark.parametrize("length", [76, 107, 200])
def test_a_run_with_a_long_tmpdir(tmp_path: Path, reference: dict[tuple[str, str, str], float], length: int) -> None:
    folder = long_folder(length)
    assert len(str(folder)) == length
    try:
        code, _, err = modelassay("run", write_suite(tmp_path, TEXT), "--runs", tmp_path / "runs", env=environ(TMPDIR=str(folder)))  # fmt: skip
        assert code == 0, err
        assert metrics_of(only_run(tmp_path / "runs")) == reference
        assert list(folder.iterdir()) == []
    finally:
        shutil.rmtree(folder.parent)


def test_without_a_folder_for_sockets_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from modelassay.cli import main

    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(sockets, "_SHORT", (str(tmp_path / "missing"),))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(sockets.process.current_process(), "_config", {})
    monkeypatch.setattr(sys, "argv", ["modelassay", "run", str(write_suite(tmp_path, TEXT)), "--runs", str(tmp_path / "runs")])  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 6
    err = capsys.readouterr().err
    assert "no folder for the sockets through which processes talk" in err
    assert (
        f"{tmp_path / 'missing'} (no such file or directory); set TMPDIR to a writable folder with a short name" in err
    )
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
    assert list(folder.iterdir()) == []


def test_folder_that_takes_no_sockets_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As FAT, CIFS and some FUSE file systems, which hold ordinary files only."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "good").mkdir()
    bind = socket.socket.bind

    class Socket(socket.socket):
        def bind(self, address: Any) -> None:
            if "plain" in address:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            bind(self, address)

    monkeypatch.setattr(socket, "socket", Socket)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "plain"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "good"))
    config: dict[str, object] = {}
    monkeypatch.setattr(sockets.process.current_process(), "_config", config)
    monkeypatch.chdir(tmp_path)
    if len(str(tmp_path)) > 70:
        pytest.skip("the test's own folder has too long a name")
    sockets.place_sockets()
    assert str(config["tempdir"]).startswith(str(tmp_path / "good"))


# The run directory


def wait_for_cell(root: Path) -> Path:
    deadline = time.monotonic() + 120
    while not list(root.glob("*/cells/*/attempt-1.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return only_run(root)


LONG = SUITE.replace("pause_ms: 3.0", "pause_ms: 100.0")


def test_run_directory_that_is_removed_ends_the_run(tmp_path: Path) -> None:
    process = start("run", write_suite(tmp_path, LONG), "--runs", tmp_path / "runs", "--jobs", "1")
    run = wait_for_cell(tmp_path / "runs")
    shutil.rmtree(run)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (6, "")
    assert f"error: {run}: the run directory was removed while it ran; start a new run" in err
    assert "Traceback" not in err
    assert not run.exists()


def test_run_directory_that_is_renamed_ends_the_run_and_it_goes_on_there(tmp_path: Path) -> None:
    process = start("run", write_suite(tmp_path, LONG), "--runs", tmp_path / "runs", "--jobs", "1")
    run = wait_for_cell(tmp_path / "runs")
    run.rename(tmp_path / "elsewhere")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 6
    assert f"{run}: the run directory was renamed to {tmp_path / 'elsewhere'} while it ran; `modelassay run {tmp_path / 'elsewhere'}` goes on" in err  # fmt: skip
    assert not run.exists()
    code, _, err = modelassay("run", tmp_path / "elsewhere")
    assert code == 0, err


def test_lock_that_is_removed_ends_the_run_which_goes_on(tmp_path: Path) -> None:
    process = start("run", write_suite(tmp_path, LONG), "--runs", tmp_path / "runs", "--jobs", "1")
    run = wait_for_cell(tmp_path / "runs")
    (run / "run.lock").unlink()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 6
    assert f"{run}: run.lock was removed or replaced while it ran, so that another process may be at it too" in err
    assert modelassay("run", run)[0] == 0


def test_cell_whose_folder_is_removed_has_failed(tmp_path: Path) -> None:
    process = start("run", write_suite(tmp_path, LONG), "--runs", tmp_path / "runs", "--jobs", "1")
    run = wait_for_cell(tmp_path / "runs")
    (cell,) = (run / "cells").iterdir()
    shutil.rmtree(cell)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3
    assert re.search(f"{cell}(/attempt-1.jsonl)?: was removed [a-z ]*while the cell ran", err)
    assert "Traceback" not in err
    code, _, err = modelassay("run", run)
    assert code == 0, err


def test_read_only_run_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    opening = os.open

    def read_only(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opening(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", read_only)
    assert not is_locked(lock)
    with pytest.raises(HostError, match="cannot be written"), locked(lock):
        pass


def test_durable_names_its_place(tmp_path: Path) -> None:
    fault = durable.unwritable(OSError(errno.EROFS, "x"), tmp_path / "a\nb")
    assert "\n" not in str(fault)


# The machine around it


def test_user_without_a_home_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``docker run --user 12345``: no HOME, and no entry of the user database."""

    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "MODELASSAY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(HostError, match="has no home folder for caches: HOME is not set; set it, or MODELASSAY_CACHE"):
        cache_root()


def test_without_shared_memory_the_fix_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", refuse)
    artifact = Artifact(name="x", recipe={"kind": "x"}, build="math:sqrt")
    with pytest.raises(HostError, match="mount it"):
        build_needs([artifact], store=Store(tmp_path), processes=1, progress=lambda *_: None)


def test_a_full_disk_is_told_in_safetensors_words_too(tmp_path: Path) -> None:
    class SafetensorError(Exception):
        """As safetensors', which is no OSError."""

    words = 'Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "No space left on device" }'
    store = Store(tmp_path)

    def build(folder: Path) -> None:
        raise SafetensorError(words)

    with pytest.raises(HostError, match="the disk is full; free some space"):
        store.get({"kind": "full"}, build)
    other = SafetensorError("invalid header")
    assert no_space(other, tmp_path) is other
