"""`--in container` as far as it goes without an engine; tests/docker has the rest."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from modelassay.containers.engine import Engine, LocalImage, require_locked
from modelassay.containers.launch import Job, judge, memory_limit, prepare, results_owner, user_inside
from modelassay.containers.session import Attached, ContainerExit, TimedOut, follow
from modelassay.containers.settings import Bind, Settings
from modelassay.errors import AssayError, HostError, UsageError
from modelassay.runs.folder import Scaffold
from modelassay.suite import load_suite
from support.toy_suite import environ, modelassay, write_suite

ENGINE = Engine(client=None, name="Docker 29", rootless=False, remaps_users=False, can_limit_memory=True,
                memory_bytes=1 << 36, root_dir="/")  # fmt: skip
IMAGE = LocalImage(reference="modelassay/cpu:0.1.0", id="sha256:1", repo_digests=(), labels={}, unlocked=None)
SETTINGS = Settings(folder=Path("/runs/a"), binds=(), environment={}, user="1:1", network="none", memory_bytes=1 << 28,
                    shm_bytes=0, own_user_ids=False, client="c")  # fmt: skip


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("unix:///no/such/socket", "error: no container engine: there is no /no/such/socket; install Docker"),
        ("tcp://127.0.0.1:1", "error: no container engine answers at tcp://127.0.0.1:1"),
    ],
)
def test_missing_engine_is_told_before_anything_is_made(tmp_path: Path, host: str, says: str) -> None:
    code, out, err = modelassay("run", write_suite(tmp_path), "--runs", tmp_path / "runs", "--in", "container", env=environ(DOCKER_HOST=host))  # fmt: skip
    assert (code, out) == (6, "")
    assert err.startswith(says)
    assert "or name an engine with DOCKER_HOST" in err
    assert not (tmp_path / "runs").exists()


def test_socket_that_nobody_answers_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    code, _, err = modelassay("run", write_suite(tmp_path), "--in", "container", env=environ(DOCKER_HOST=f"unix://{tmp_path}/s"))  # fmt: skip
    assert code == 6
    assert "(connection refused); start it: systemctl start docker" in err


def test_plan_needs_no_engine(tmp_path: Path) -> None:
    code, out, _ = modelassay("run", write_suite(tmp_path), "--plan", "--in", "container", env=environ(DOCKER_HOST="unix:///no"))  # fmt: skip
    assert code == 0
    assert "4 of 4 cells to run" in out


ENDINGS = [
    (137, True, "out of memory inside the container (its limit is 256 MiB); give it more with --memory; GO ON"),
    (137, False, "the container was killed from outside; GO ON"),
    (127, False, "image modelassay/cpu:0.1.0 holds no modelassay; take one of: modelassay images build NAME"),
    (139, False, "the container was ended by a signal (code 139); GO ON"),
]


@pytest.mark.parametrize(("code", "oom", "says"), ENDINGS, ids=[str(code) for code, *_ in ENDINGS])
def test_what_ends_a_container_is_told_apart(code: int, oom: bool, says: str) -> None:
    with pytest.raises(HostError, match=r".*") as caught:
        judge(ContainerExit(exit_code=code, out_of_memory=oom), SETTINGS, IMAGE, again="GO ON", report=print)
    assert says in str(caught.value)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 130, 143])
def test_exit_codes_of_the_command_line_are_kept(code: int) -> None:
    told: list[str] = []
    assert judge(ContainerExit(exit_code=code), SETTINGS, IMAGE, again="", report=told.append) == code
    assert told == []
    assert (
        judge(ContainerExit(exit_code=code, out_of_memory=True), SETTINGS, IMAGE, again="", report=told.append) == code
    )
    assert "give it more with --memory" in told[0]


def test_a_code_that_is_not_ours_is_a_fault_of_ours() -> None:
    with pytest.raises(AssayError) as caught:
        judge(ContainerExit(exit_code=77), SETTINGS, IMAGE, again="", report=print)
    assert (caught.value.exit_code, "ended with 77" in str(caught.value)) == (1, True)


def attached(*items: tuple[str, Any]) -> Attached:
    one = Attached(identity="c", events=None, stream=None)
    for item in items:
        one.inbox.put(item)
    return one


def died(code: int) -> tuple[str, Any]:
    return "event", {"Action": "die", "Actor": {"Attributes": {"exitCode": str(code)}}}


GONE = ("event", {"Action": "destroy"})


def test_lines_are_whole_however_they_arrive() -> None:
    said, data = list[str](), list[bytes]()
    one = attached(("err", b"fir"), ("out", b'{"a"'), ("err", b"st\nrun directory: /x\nsec"), ("out", b": 1}"),
                   ("err", b"ond \xff"), died(0), GONE, ("eof", None))  # fmt: skip
    ending = follow(one, timeout_s=None, report=said.append, write=data.append)
    assert said == ["first", "second \ufffd"]
    assert b"".join(data) == b'{"a": 1}'
    assert (ending.exit_code, ending.out_of_memory, ending.removed) == (0, False, True)


def test_out_of_memory_is_noted() -> None:
    ending = follow(attached(("event", {"Action": "oom"}), died(137), GONE, ("eof", None)), timeout_s=None, report=print, write=print)  # fmt: skip
    assert (ending.exit_code, ending.out_of_memory) == (137, True)


def test_time_is_up_only_for_what_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimedOut):
        follow(attached(("err", b"working\n")), timeout_s=0.05, report=print, write=print)
    monkeypatch.setattr("modelassay.containers.session.GRACE_S", 0.05)  # an engine that never says that it tidied up
    assert follow(attached(died(3), ("eof", None)), timeout_s=0.05, report=print, write=print).exit_code == 3


def test_engine_that_goes_away_is_told() -> None:
    with pytest.raises(HostError, match="the container engine went away"):
        follow(attached(("eof", None), ("lost", None)), timeout_s=None, report=print, write=print)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4g", 4 << 30), ("512m", 512 << 20), (None, None), ("8388608", 8 << 20), ("0.5 GiB", 1 << 29), ("6M", 6 << 20)],
)
def test_memory_limits(text: str | None, size: int | None) -> None:
    assert memory_limit(text, ENGINE) == size


@pytest.mark.parametrize(
    ("text", "says"),
    [("0", "the smallest limit is 6m"), ("0g", "smallest"), ("5m", "smallest"), ("0.001k", "smallest"), ("-1", "not a size"),
     ("-1g", "not a size"), ("", "not a size"), ("inf", "not a size"), ("nang", "not a size"), ("1e3g", "not a size"),
     ("4x", "not a size"), ("4 g g", "not a size"), ("\u0664g", "not a size"), ("99999999999999g", "more than any machine has")],
)  # fmt: skip
def test_memory_limits_that_an_engine_would_ignore_or_refuse(text: str, says: str) -> None:
    """To an engine 0 and -1 mean no limit."""
    with pytest.raises(UsageError, match=says):
        memory_limit(text, ENGINE)
    code, _, err = modelassay("run", "spectral", "--in", "container", f"--memory={text}")
    assert (code, f"error: --memory {text}: " in err) == (2, True)


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "0", "-1", "1e400", "1e12", "1e10"])
def test_times_that_no_clock_counts_are_refused(text: str) -> None:
    code, out, err = modelassay("run", "spectral", "--in", "container", f"--timeout={text}")
    assert (code, out, "Traceback" in err) == (2, "", False)
    assert "--timeout" in err


def test_memory_limit_that_would_be_ignored_is_refused() -> None:
    weak = Engine(**{**vars(ENGINE), "can_limit_memory": False})
    with pytest.raises(HostError, match="cannot limit memory"):
        memory_limit("4g", weak)


def test_root_of_a_rootless_engine_is_the_caller() -> None:
    assert user_inside(ENGINE, (1000, 100)) == "1000:100"
    assert user_inside(Engine(**{**vars(ENGINE), "rootless": True}), (1000, 100)) == "0:0"


def test_unlocked_image_needs_a_word() -> None:
    unlocked = LocalImage(**{**vars(IMAGE), "unlocked": "it carries no label"})
    with pytest.raises(HostError, match="is not locked: it carries no label; .*--allow-unlocked"):
        require_locked(unlocked, allow_unlocked=False)
    require_locked(unlocked, allow_unlocked=True)
    require_locked(IMAGE, allow_unlocked=False)


def test_digest_of_a_record_is_one_that_can_be_pulled_if_there_is_one() -> None:
    assert IMAGE.digest == "sha256:1"
    assert (
        LocalImage(**{**vars(IMAGE), "repo_digests": ("modelassay/cpu@sha256:2",)}).digest == "modelassay/cpu@sha256:2"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="a root caller's results belong to the folder's owner")
def test_results_belong_to_the_folders_owner(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 99)
    assert results_owner(tmp_path / "runs/a") == (1234, 99)
    folder = tmp_path / "runs/a"
    prepare([Bind(path=folder, source=folder, writable=True)], (1234, 99), Scaffold())
    assert [(path.stat().st_uid, path.stat().st_gid) for path in (folder, folder.parent)] == [(1234, 99)] * 2
    assert list(folder.iterdir()) == [], "the probe leaves nothing"


def test_folder_that_cannot_be_made_is_told_with_its_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file/a"
    with pytest.raises(
        HostError, match="cannot be written by user .*: not a directory; choose another folder with --runs"
    ):
        prepare([Bind(path=folder, source=folder, writable=True)], (os.geteuid(), os.getegid()), Scaffold())


def test_command_inside_is_the_command_outside(tmp_path: Path) -> None:
    suite = load_suite(str(write_suite(tmp_path)))
    job = Job(suite=suite, target="walk.yaml", run=None, folder=Path("runs/a"), arguments=["-o", "steps=3", "--json"])
    assert job.command == ["run", "walk.yaml", "--into", "runs/a", "-o", "steps=3", "--json"]
    assert (job.needs_file, Job(**{**vars(job), "target": "walk"}).needs_file) == (True, False)
