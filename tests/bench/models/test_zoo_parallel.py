"""Making many members in processes of their own: the same bits, in order, resumable, nobody left behind."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from modelassay.errors import CheckpointError
from modelassay.models import zoo, zoo_parallel
from modelassay.state import Store

SOME = ("zoo:smoke/base+merge", "smoke/base+lora+prune-30", "smoke/stranger-mix")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_two_processes_make_what_one_makes_and_go_on_where_one_stopped(store: Store, tmp_path: Path) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    @contextmanager
    def timer(stage: str, **labels: Any) -> Iterator[None]:
        seen.append((stage, labels))
        yield

    base = zoo.ensure("smoke/base", store=store)
    before = (base / "model.safetensors").stat().st_mtime_ns
    made = zoo.ensure_many(SOME, store=store, timer=timer, with_utility=True)
    assert list(made) == [name.removeprefix("zoo:") for name in SOME]
    assert all(one.cpu_s is not None and one.cpu_s > 0 for one in made.values())
    assert [one.num_steps for one in made.values()] == [0, 0, 16]
    assert (base / "model.safetensors").stat().st_mtime_ns == before
    # base (for its utility), both tuned, their merge, the adapter, its pruned child, the stranger
    assert seen == [("zoo-make", {"members": 7, "processes": 2})]
    again = Store(tmp_path)
    for name, one in made.items():
        assert digest(one.folder) == digest(zoo.ensure(name, store=again)), name
        assert zoo.utility(name, store=again) == pytest.approx(zoo.utility(name, store=store), abs=1e-6)


def test_a_missing_child_does_not_wait_for_parents_that_are_there(store: Store) -> None:
    zoo.ensure("smoke/base", store=store)
    told: list[str] = []
    made = zoo.ensure_many(["smoke/base+fold"], store=store, report=told.append)
    assert made["smoke/base+fold"].folder.is_dir()
    assert told == ["made smoke/base+fold, 1 of 1 models"]


def test_nothing_is_started_where_nothing_is_missing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = zoo.ensure("smoke/base", store=store)
    monkeypatch.setattr(zoo_parallel, "ProcessPoolExecutor", None)
    made = zoo.ensure_many(["smoke/base", "zoo:smoke/base"], store=store)
    assert made == {"smoke/base": zoo.Made(folder=folder, cpu_s=None, num_steps=16)}


def test_an_unknown_member_stops_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model in the zoo"):
        zoo.ensure_many(["smoke/base", "smoke/bass"], store=Store(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_a_process_is_raised_here(tmp_path: Path) -> None:
    (tmp_path / "zoo-text").write_text("where a folder should be")
    with pytest.raises(OSError, match="zoo-text"):
        zoo.ensure_many(["smoke/base", "smoke/stranger-1"], store=Store(tmp_path), processes=1)


def test_long_lines_of_descent_come_first() -> None:
    names = ["mini-16", "base", "base+int8", "mini-1", "mini-1+cpt-400", "base+cpt-25", "base+cpt-25+sft-en"]
    ordered = zoo_parallel._by_remaining_work([zoo.member(name) for name in names])
    # steps x layers x width: mini-1 and what follows it 1300 x 288, base 750 x 512, mini-16 260 x 288
    assert ordered[:2] == ["base", "mini-1"]
    assert ordered.index("mini-1+cpt-400") < ordered.index("mini-16")
    assert ordered[-1] == "base+int8"


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be noticed does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes through /proc")
def test_processes_die_with_the_one_that_started_them(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path\nfrom modelassay.models import zoo\nfrom modelassay.state import Store\n"
        f"if __name__ == '__main__': zoo.ensure_many(zoo.EMBEDDED, store=Store(Path({str(tmp_path)!r})))\n"
    )
    script = tmp_path / "make.py"
    script.write_text(program)
    process = subprocess.Popen([sys.executable, str(script)])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("zoo-text/*.new")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        pids = [int(pid) for pid in children.read_text().split()]
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert len(pids) >= 2
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
