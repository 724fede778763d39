"""What cells need, built in processes of their own: the same bits, inputs first, resumable, nobody left behind."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from modelassay import zoo
from modelassay.errors import CheckpointError, HostError
from modelassay.runs import needs as runs_needs
from modelassay.runs.needs import build_needs, missing_artifacts
from modelassay.storage.needs import Artifact, in_order
from modelassay.storage.store import Store
from modelassay.zoo.needs import needs_of

SOME = ("zoo:smoke/base+merge", "zoo:smoke/base+lora+prune-30", "zoo:smoke/stranger-mix")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def build(names: Sequence[str], store: Store, *, processes: int = 2, with_utility: bool = True) -> list[str]:
    """Build what ``names`` need and return the names of what was built, in order."""
    built: list[str] = []
    needs = [need for name in names for need in needs_of(name, with_utility=with_utility)]
    _, failures = build_needs(
        missing_artifacts(needs, store), store=store, processes=processes, progress=lambda *at: built.append(at[2])
    )
    assert not failures
    return built


@pytest.mark.nightly
def test_two_processes_build_what_one_builds_and_go_on_where_one_stopped(store: Store, tmp_path: Path) -> None:
    base = zoo.ensure("smoke/base", store=store)
    before = (base / "model.safetensors").stat().st_mtime_ns
    built = build(SOME, store)
    models = {name for name in built if name.startswith("zoo:")}
    assert models == {
        "zoo:smoke/base+sft-en", "zoo:smoke/child-sft", "zoo:smoke/base+merge", "zoo:smoke/base+lora",
        "zoo:smoke/base+lora+prune-30", "zoo:smoke/stranger-mix",
    }  # fmt: skip
    assert built.index("zoo:smoke/base+lora") < built.index("zoo:smoke/base+lora+prune-30")
    assert (base / "model.safetensors").stat().st_mtime_ns == before
    again = Store(tmp_path)
    for name in SOME:
        assert digest(zoo.ensure(name, store=store)) == digest(zoo.ensure(name, store=again)), name
        assert zoo.utility(name, store=again) == pytest.approx(zoo.utility(name, store=store), abs=1e-6)


def test_a_missing_child_does_not_wait_for_parents_that_are_there(store: Store) -> None:
    zoo.ensure("smoke/base", store=store)
    assert build(["zoo:smoke/base+fold"], store, with_utility=False) == ["zoo:smoke/base+fold"]


def test_nothing_is_started_where_nothing_is_missing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo.ensure("smoke/base", store=store)
    monkeypatch.setattr(runs_needs, "ProcessPoolExecutor", None)
    assert build(["zoo:smoke/base", "zoo:smoke/base"], store, with_utility=False) == []


def test_an_unknown_member_stops_before_anything_is_built() -> None:
    with pytest.raises(CheckpointError, match="no such model in the zoo"):
        needs_of("zoo:smoke/bass")


def test_a_failure_leaves_out_what_is_made_from_it_and_nothing_else(tmp_path: Path) -> None:
    def artifact(name: str, *inputs: Artifact) -> Artifact:
        build = "toy.build:refuse" if name == "bad" else "toy.build:write"
        return Artifact(
            name=name, recipe={"kind": "t", "name": name}, build=build, arguments={"name": name}, inputs=inputs
        )

    bad, good = artifact("bad"), artifact("good")
    artifacts = in_order([artifact("child of bad", bad), artifact("child of good", good)])
    store = Store(tmp_path)
    seconds, failures = build_needs(artifacts, store=store, processes=1, progress=lambda *_: None)
    assert failures == {bad.key: "asked to refuse"}
    assert [a.name for a in artifacts if a.key in seconds] == ["good", "child of good"]
    assert [a.name for a in artifacts if a.is_built(store)] == ["good", "child of good"]


def test_a_builder_that_is_killed_is_said_and_what_was_built_stays(tmp_path: Path) -> None:
    names = {"good": "toy.build:write", "hungry": "toy.build:killed"}
    artifacts = [
        Artifact(
            name=name,
            recipe={"kind": "t", "name": name},
            build=build,
            arguments={"name": name},
            work=1.0 + (name == "good"),
        )
        for name, build in names.items()
    ]
    store = Store(tmp_path)
    with pytest.raises(HostError, match=r"a process that built hungry was killed; out of memory\? Run the same again"):
        build_needs(in_order(artifacts), store=store, processes=1, progress=lambda *_: None)
    assert [artifact.is_built(store) for artifact in artifacts] == [True, False]


def test_long_lines_of_descent_come_first() -> None:
    names = ["mini-16", "base", "base+int8", "mini-1", "mini-1+cpt-400", "base+cpt-25", "base+cpt-25+sft-en"]
    artifacts = in_order([need for name in names for need in needs_of(f"zoo:{name}")])
    name_of = {artifact.key: artifact.name.removeprefix("zoo:") for artifact in artifacts}
    ordered = [name_of[key] for key in runs_needs._by_remaining_work(artifacts)]
    # steps x layers x width: mini-1 and what follows it 1300 x 288, base 750 x 512, mini-16 260 x 288
    assert [name for name in ordered if not name.startswith("text")][:2] == ["base", "mini-1"]
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
        "from pathlib import Path\nfrom modelassay import zoo\nfrom modelassay.runs.needs import build_needs, missing_artifacts\n"
        "from modelassay.storage.store import Store\nfrom modelassay.zoo.needs import needs_of\n"
        "if __name__ == '__main__':\n"
        f"    store = Store(Path({str(tmp_path)!r}))\n"
        "    needs = missing_artifacts([need for name in zoo.EMBEDDED for need in needs_of('zoo:' + name)], store)\n"
        "    build_needs(needs, store=store, processes=2, progress=print)\n"
    )
    script = tmp_path / "make.py"
    script.write_text(program)
    process = subprocess.Popen([sys.executable, str(script)])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("zoo-text/*.part")):
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
