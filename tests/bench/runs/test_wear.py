"""Whatever happened to a cut-off run or to the cache: the undisturbed run's metrics, or an error that names the file and the way out."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from modelassay.errors import RecordError, UsageError
from modelassay.recording.log import read_cell
from modelassay.recording.resume import latest_checkpoint
from modelassay.runs.directory import open_run
from modelassay.storage import store
from modelassay.storage.store import damage_of
from support.small_disk import needs_root, small_disk
from support.toy_suite import SUITE, environ, metrics_of, modelassay, only_run, start, write_suite
from support.wear import CACHE, RUN, Wear

ONE = SUITE.replace("[zoo:base, zoo:child]", "[zoo:base]").replace("[0, 1]", "[0]")
TROUBLED = ONE.replace(
    "{steps: 24, pause_ms: 3.0}", "{steps: 12, staged_steps: 6, exit_at: 9, only_first: true, timed: false}"
)
SOUND = TROUBLED.replace("exit_at: 9, ", "")
FIXES = re.compile(
    r"or delete (/\S+) to|(/\S+): a damaged checkpoint [^;]*; delete it|(/\S+): [^;]*; remove it|"
    r"(/[^\s:]+): [^;]* so \S+ cannot be made; remove what is in the way"
)
SAMPLE_RUN = (
    "log: a bit at 0.3",
    "log: cut off at 0.5",
    "checkpoint: a bit at 0.6",
    "checkpoint: a number by hand",
    "run.json: a bit at 0.8",
)
SAMPLE_CACHE = ("stage: another product", "stages: swapped", "stages: as parts without a record, damaged", "table: a pipe for its text",
                "stage: its log, a bit at 0.5")  # fmt: skip


class World:
    """A run that was cut off, a cache that it filled, and the metrics of one that was not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_of("sound", SOUND)
        self.expected = numbers_of(only_run(folder / "sound/runs"))
        assert self.run_of("troubled", TROUBLED)[0] == 3

    def run_of(self, name: str, text: str) -> tuple[int, str]:
        place = self.folder / name
        place.mkdir()
        return called("run", write_suite(place, text), "--runs", place / "runs", cache=place / "cache")

    def copy(self, name: str, to: Path) -> Path:
        shutil.copytree(self.folder / name, to / name)
        return to / name


def numbers_of(run: Path) -> dict[tuple[str, str], float]:
    """The metrics of the one cell of a run; a cut-off run has one more parameter, so another cell."""
    return {key[1:]: value for key, value in metrics_of(run).items()}


def called(*arguments: str | Path, cache: Path) -> tuple[int, str]:
    code, _, err = modelassay(*arguments, env=environ(MODELASSAY_CACHE=str(cache)), timeout_s=120)
    assert "Traceback" not in err, err
    return code, err


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def sampled(names: dict[str, Wear], sample: tuple[str, ...]) -> list[object]:
    return [pytest.param(name, marks=() if name in sample else pytest.mark.nightly, id=name) for name in names]


def require_way_out(code: int, err: str, *, below: Path) -> Path | None:
    """What the error says is to be removed; None where the run is lost and it says so."""
    assert code in (2, 3, 6), err
    assert str(below) in err, err
    if "start a new run" in err or "not a run directory" in err:
        return None
    fix = FIXES.search(err)
    assert fix is not None, err
    path = Path(next(group for group in fix.groups() if group))
    assert path.is_relative_to(below), err
    return path


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.mark.parametrize("name", sampled(RUN, SAMPLE_RUN))
def test_worn_run_goes_on_or_says_what_to_delete(world: World, tmp_path: Path, name: str) -> None:
    place = world.copy("troubled", tmp_path)
    run = only_run(place / "runs")
    RUN[name](run)
    for _ in range(3):
        code, err = called("run", run, cache=place / "cache")
        if code == 0:
            break
        if "ended with code 9" in err:  # begun anew, it is cut off again where it was the first time
            continue
        path = require_way_out(code, err, below=run)
        if path is None:
            assert name.startswith("run.json"), err
            return
        remove(path)
    assert code == 0, err
    assert numbers_of(run) == world.expected


@pytest.mark.parametrize("name", sampled(CACHE, SAMPLE_CACHE))
def test_worn_cache_is_mended_by_the_run_itself(world: World, tmp_path: Path, name: str) -> None:
    """Whatever is inside an artifact; what lies in the place of the store's own folders and locks is named instead."""
    place = world.copy("sound", tmp_path)
    cache, suite = place / "cache", place / "walk.yaml"
    CACHE[name](cache)
    code, err = called("run", suite, "--runs", place / "again", cache=cache)
    if code != 0:
        assert name in ("table: a file for its kind", "stages: a file for them", "stages: a folder for a lock",
                        "stages: a pipe for a lock", "cache: a file for it", "cache: a dangling link for it"), err  # fmt: skip
        path = require_way_out(code, err, below=cache)
        assert path is not None
        remove(path)
        code, err = called("run", suite, "--runs", place / "more", cache=cache)
        assert code == 0, err
        assert numbers_of(only_run(place / "more")) == world.expected
        return
    assert numbers_of(only_run(place / "again")) == world.expected
    silent = ("empty", "file manager", "as parts", "checkpoint")  # what was built then is built now, as the first time
    assert any(word in name for word in silent) or str(cache / "artifacts") in err, err
    code, err = called("run", suite, "--runs", place / "third", cache=cache)
    assert code == 0
    assert "made anew" not in err
    assert "built" not in err


def flips(paths: list[Path], count: int, *, seed: int) -> list[tuple[Path, int, int]]:
    """``count`` bits of the files ``paths``: file, byte, bit."""
    draw = random.Random(seed)
    sizes = [path.stat().st_size for path in paths]
    chosen = draw.choices(paths, weights=sizes, k=count)
    return [(path, draw.randrange(path.stat().st_size), draw.randrange(8)) for path in chosen]


def require_noticed(place: tuple[Path, int, int], read: Callable[[], object]) -> None:
    """A flipped bit is an error that names the file, or its folder."""
    path, at, bit = place
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])
    try:
        with pytest.raises((RecordError, UsageError)) as raised:
            read()
        assert str(path) in str(raised.value) or str(path.parent) in str(raised.value)
        assert re.search("restore it|delete|remove it|version", str(raised.value)), raised.value
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize("count", [400, pytest.param(4000, marks=pytest.mark.nightly)])
def test_no_flipped_bit_becomes_another_number(world: World, tmp_path: Path, count: int) -> None:
    """In finished logs, checkpoints, run.json and the cache, a quarter each."""
    finished = only_run(world.copy("sound", tmp_path) / "runs")
    logs = list(finished.glob("cells/*/attempt-*.jsonl"))
    for place in flips(logs, count // 4, seed=1):
        require_noticed(place, partial(read_cell, place[0].parent))
    cut_off = only_run(world.copy("troubled", tmp_path) / "runs")
    for place in flips(list(cut_off.glob("cells/*/checkpoint/*/*")), count // 4, seed=2):
        require_noticed(place, partial(latest_checkpoint, place[0].parents[2], 10**6))
    for place in flips([finished / "run.json"], count // 4, seed=3):
        require_noticed(place, lambda: open_run(finished))
    artifacts = [path for path in (tmp_path / "sound/cache/artifacts").rglob("*") if path.is_file()]
    for path, at, bit in flips(artifacts, count // 4, seed=4):
        store._VERIFIED.clear()
        data = path.read_bytes()
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])
        assert damage_of(path.parent) is not None, (path, at, bit)
        path.write_bytes(data)
        assert damage_of(path.parent) is None


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(50))
def test_kill_while_a_damaged_cache_is_mended(world: World, tmp_path: Path, seed: int) -> None:
    """A second kill at any moment of the mending changes nothing either."""
    place, draw = world.copy("sound", tmp_path), random.Random(seed)
    cache = place / "cache"
    for name in draw.sample([name for name in CACHE if name.startswith("stage") and "for" not in name], 2):
        try:
            CACHE[name](cache)
        except (OSError, ValueError, IndexError):  # the first damage took what the second needs
            continue
    process = start("run", place / "walk.yaml", "--runs", place / "again", env=environ(MODELASSAY_CACHE=str(cache)))
    time.sleep(draw.uniform(0.3, 3.0))
    process.kill()
    process.communicate()
    begun = list((place / "again").glob("*/run.json"))
    code, err = called("run", begun[0].parent if begun else place / "walk.yaml", "--runs", place / "again", cache=cache)
    assert code == 0, err
    assert numbers_of(only_run(place / "again")) == world.expected
    assert not list(cache.rglob("*.part"))


@needs_root
@pytest.mark.nightly
@pytest.mark.parametrize("size", ["24k", "40k", "64k", "96k"])
def test_cache_on_a_full_disk_loses_nothing(world: World, tmp_path: Path, size: str) -> None:
    with small_disk(tmp_path, size) as disk:
        cache, suite = disk / "cache", write_suite(tmp_path, SOUND)
        (disk / "ballast").write_bytes(b"x" * 8192)
        code, err = called("run", suite, "--runs", tmp_path / "runs", cache=cache)
        assert code in (0, 3, 6), err
        assert code == 0 or "the disk is full; free some space and run" in err, err
        begun = list((tmp_path / "runs").glob("*/run.json"))
        if cache.exists():
            shutil.copytree(cache, tmp_path / "cache")
    target = begun[0].parent if begun else suite
    code, err = called("run", target, "--runs", tmp_path / "runs", cache=tmp_path / "cache")
    assert code == 0, err
    assert numbers_of(only_run(tmp_path / "runs")) == world.expected


def test_every_kind_of_damage_is_there() -> None:
    assert len(RUN) + len(CACHE) >= 60
    assert set(SAMPLE_RUN) <= RUN.keys()
    assert set(SAMPLE_CACHE) <= CACHE.keys()
