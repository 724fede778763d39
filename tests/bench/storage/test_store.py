"""What the store published is verified before it is used: what fails is made anew, and nobody has to delete anything by hand."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelassay.errors import HostError, RecordError
from modelassay.storage import digests, store
from modelassay.storage.digests import difference, digests_of
from modelassay.storage.store import RECORD, VERIFY, Store

RECIPE = {"kind": "thing", "seed": 1}
OTHER = {"kind": "thing", "seed": 2}
CONTENT = {"config.json": b"{}", "model.safetensors": b"weights " * 999, "parts/scores.json": b"[1, 2]"}


class Shop:
    """A store with two artifacts, in a process that has not looked at them yet; counts what is built."""

    def __init__(self, root: Path) -> None:
        self.reports: list[str] = []
        self.built: list[int] = []
        self.store = Store(root, report=self.reports.append)
        self.get(OTHER)
        self.folder = self.get(RECIPE)
        self.forget()

    def forget(self) -> None:
        store._VERIFIED.clear()
        self.built.clear()

    def get(self, recipe: dict[str, object] = RECIPE) -> Path:
        def build(folder: Path) -> None:
            self.built.append(int(str(recipe["seed"])))
            for name, content in CONTENT.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(content + b" %d" % recipe["seed"])

        return self.store.get(recipe, build)

    def require_sound(self) -> None:
        for recipe in (RECIPE, OTHER):
            folder = self.store.path(recipe)
            for name, content in CONTENT.items():
                assert (folder / name).read_bytes() == content + b" %d" % recipe["seed"], name
        for folder in self.store.root.glob("thing/*"):
            assert folder.suffix == "", folder


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "store")


def flip(path: Path, at: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


def swap(shop: Shop) -> None:
    one, other, aside = shop.folder, shop.store.path(OTHER), shop.folder.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    make(path)


def both(*changes: Callable[[Shop], object]) -> Callable[[Shop], object]:
    def change(shop: Shop) -> None:
        for each in changes:
            each(shop)

    return change


def without(change: Callable[[Path], object]) -> Callable[[Shop], object]:
    """The artifact is gone, and there is something else beside its place."""

    def damage(shop: Shop) -> None:
        shutil.rmtree(shop.folder)
        change(shop.folder)

    return damage


def flipped(name: str, at: int = 100) -> Callable[[Shop], object]:
    return lambda shop: flip(shop.folder / name, at)


WEIGHTS = "model.safetensors"
DAMAGES: dict[str, tuple[Callable[[Shop], object], str, list[int]]] = {
    "a flipped bit": (flipped(WEIGHTS), f"{WEIGHTS} does not hold what was written", [1]),
    "a flipped first bit": (flipped(WEIGHTS, 0), f"{WEIGHTS} does not hold", [1]),
    "a flipped last bit": (flipped(WEIGHTS, -1), f"{WEIGHTS} does not hold", [1]),
    "a flipped bit in a folder": (flipped("parts/scores.json", 1), "parts/scores.json does not", [1]),
    "an emptied file": (lambda s: (s.folder / "parts/scores.json").write_text(""), "has 0 bytes where 8 were", [1]),
    "an emptied list": (lambda s: (s.folder / "parts/scores.json").write_text("[]"), "has 2 bytes where 8 were", [1]),
    "a truncated file": (lambda s: os.truncate(s.folder / WEIGHTS, 99), "has 99 bytes where 7,994 were", [1]),
    "a longer file": (lambda s: os.truncate(s.folder / WEIGHTS, 9999), "has 9,999 bytes where 7,994", [1]),
    "a missing file": (lambda s: (s.folder / WEIGHTS).unlink(), f"{WEIGHTS} is missing", [1]),
    "a missing folder": (lambda s: shutil.rmtree(s.folder / "parts"), "parts/scores.json is missing", [1]),
    "a file for a folder": (lambda s: replace(s.folder / "parts", Path.touch), "parts/scores.json is missing", [1]),
    "a folder for a file": (lambda s: replace(s.folder / WEIGHTS, Path.mkdir), "is no regular file any more", [1]),
    "a link for a file": (
        lambda s: replace(s.folder / WEIGHTS, lambda path: path.symlink_to(s.store.path(OTHER) / WEIGHTS)), "is no regular", [1]),
    "a pipe for a file": (lambda s: replace(s.folder / WEIGHTS, os.mkfifo), "is no regular file any more", [1]),
    "the other's file": (
        lambda s: shutil.copy(s.store.path(OTHER) / WEIGHTS, s.folder / WEIGHTS), f"{WEIGHTS} does not hold", [1]),
    "swapped folders": (swap, "record.json says that it is thing/", [1, 2]),
    "the other's folder": (
        lambda s: replace(s.folder, lambda path: shutil.copytree(s.store.path(OTHER), path)), "says that it is thing/", [1]),
    "an empty folder": (lambda s: replace(s.folder, Path.mkdir), "record.json is missing", [1]),
    "a file for the artifact": (lambda s: replace(s.folder, Path.touch), "no folder", [1]),
    "a dangling link for the artifact": (lambda s: replace(s.folder, lambda path: path.symlink_to("gone")), "cannot be read", [1]),
    "a link to the other": (lambda s: replace(s.folder, lambda path: path.symlink_to(s.store.path(OTHER))), "no folder", [1]),
    "no record": (lambda s: (s.folder / RECORD).unlink(), "record.json is missing", [1]),
    "an empty record": (lambda s: (s.folder / RECORD).write_text(""), "record.json is damaged", [1]),
    "a flipped bit in the record": (flipped(RECORD), "record.json is damaged (not as it was written", [1]),
    "a record by hand": (
        lambda s: (s.folder / RECORD).write_text((s.folder / RECORD).read_text().replace('"seed": 1', '"seed": 3')),
        "record.json is damaged (not as it was written", [1]),
    "a record of an earlier version": (
        lambda s: (s.folder / RECORD).write_text(json.dumps({"recipe": RECIPE, "attempts": 1})), "holds no digests", [1]),
    "a record that is a link": (
        lambda s: replace(s.folder / RECORD, lambda path: path.symlink_to(s.store.path(OTHER) / RECORD)), "is damaged", [1]),
    "a record that is a pipe": (lambda s: replace(s.folder / RECORD, os.mkfifo), "is damaged", [1]),
    "a foreign file": (
        lambda s: (s.folder / "adapter_config.json").write_text("{}"), "adapter_config.json was not published with it; set", []),
    "a foreign link": (lambda s: (s.folder / "extra").symlink_to("/"), "extra was not published with it; set", []),
    "a foreign file in a folder": (lambda s: (s.folder / "parts/more.json").write_text("{}"), "parts/more.json was not", []),
    "a foreign file and a flipped bit": (
        both(lambda s: (s.folder / "more").touch(), flipped(WEIGHTS)), f"{WEIGHTS} does not hold", [1]),
    "a half-built part": (
        both(without(lambda path: path.with_suffix(".part").mkdir()), lambda s: s.folder.with_suffix(".attempts").mkdir()), "", [1]),
    "a file for the part": (
        both(without(lambda path: path.with_suffix(".part").touch()), lambda s: s.folder.with_suffix(".attempts").write_text("x")),
        "", [1]),
    "a link for the part": (
        both(without(lambda path: path.with_suffix(".part").symlink_to("elsewhere"))), "", [1]),
    "a removal that was cut off": (
        both(lambda s: shutil.copytree(s.folder, s.folder.with_name(f"{s.folder.name}.damaged")), flipped(WEIGHTS)),
        f"{WEIGHTS} does not hold", [1]),
    "a file of a file manager": (lambda s: (s.folder / ".DS_Store").write_text("x"), "", []),
    "a file that NFS keeps": (lambda s: (s.folder / "parts/.nfs0001").write_text("x"), "", []),
    "an empty folder more": (lambda s: (s.folder / "logs").mkdir(), "", []),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_said_and_made_anew(shop: Shop, name: str) -> None:
    damage, says, built = DAMAGES[name]
    damage(shop)
    shop.get(), shop.get(OTHER)
    assert shop.built == built
    assert len(shop.reports) == (len(built) if says and built else bool(says)), shop.reports
    if says:
        assert shop.reports[0].startswith(f"{shop.folder}: ")
        assert says in shop.reports[0]
        assert built == [] or shop.reports[0].endswith("; it is made anew")
    shop.require_sound()
    shop.forget()
    shop.get(), shop.get(OTHER)
    assert shop.built == []
    assert len(shop.reports) == (len(built) if says and built else bool(says))


def test_whether_the_store_holds_it_changes_nothing(shop: Shop) -> None:
    assert shop.store.holds(RECIPE)
    flip(shop.folder / WEIGHTS)
    assert not shop.store.holds(RECIPE)
    assert not shop.store.holds({"kind": "thing", "seed": 3})
    assert shop.reports == []
    assert shop.built == []
    assert shop.folder.is_dir()


def test_foreign_file_is_kept_under_a_hidden_name(shop: Shop) -> None:
    (shop.folder / "notes.txt").write_text("mine")
    shop.get()
    assert (shop.folder / ".notes.txt.aside").read_text() == "mine"
    assert not (shop.folder / "notes.txt").exists()


def test_what_changes_after_the_first_use_is_seen_too(shop: Shop) -> None:
    """Contents are read once; the times of files tell of a change, also of one that keeps size and mtime."""
    shop.get()
    path = shop.folder / WEIGHTS
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    shop.get()
    assert shop.built == [1]
    shop.require_sound()


def test_contents_are_read_once_in_a_process(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.get()
    monkeypatch.setattr(digests, "_sha256", None)
    shop.get()
    assert shop.built == []


def test_large_files_are_sampled_unless_all_is_to_be_verified(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "PART_BYTES", 10)
    monkeypatch.setattr(digests, "NUM_SAMPLES", 3)
    shutil.rmtree(shop.folder)
    shop.get()
    assert len(json.loads((shop.folder / RECORD).read_text())["files"][WEIGHTS]["parts"]) == 800
    for at, seen in ((5, True), (3999, True), (7993, True), (1000, False)):  # samples: 0-10, 3990-4000, 7990-
        shop.forget()
        shop.reports.clear()
        flip(shop.folder / WEIGHTS, at)
        shop.get()
        assert shop.built == [1] * seen, at
        assert ("only samples were compared" in " ".join(shop.reports)) is not seen
    shop.forget()
    monkeypatch.setenv(VERIFY, "1")
    shop.get()
    assert shop.built == [1]
    shop.require_sound()


@pytest.mark.parametrize("at", [0, 1023, 1024, 3000, 4095, 4099])
def test_each_byte_of_a_file_in_parts_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    monkeypatch.setattr(digests, "PART_BYTES", 1024)
    monkeypatch.setattr(digests, "_BLOCK_BYTES", 256)
    (tmp_path / "weights").write_bytes(random.Random(0).randbytes(4100))
    written = digests_of(tmp_path)
    assert written["weights"]["parts"] == [
        hashlib.sha256((tmp_path / "weights").read_bytes()[start : start + 1024]).hexdigest()
        for start in range(0, 4100, 1024)
    ]
    assert difference(tmp_path, written) is None
    flip(tmp_path / "weights", at)
    assert difference(tmp_path, written) == "weights does not hold what was written"


def test_digests_are_those_of_the_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / ".hidden").touch()
    assert digests_of(tmp_path) == {  # FIPS 180-2, appendix B.1
        "a": {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    }
    assert difference(tmp_path, digests_of(tmp_path)) is None


def test_a_build_that_leaves_a_link_is_our_own_fault(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="what is kept may hold files and folders only"):
        Store(tmp_path).get(RECIPE, lambda folder: (folder / "link").symlink_to("/"))


def test_damage_where_nothing_can_be_changed_names_the_way_out(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(shop.folder / WEIGHTS)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(shop.folder))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(
        HostError, match=f"{WEIGHTS} does not hold .* cannot be removed .*; make the cache writable, or set"
    ):
        shop.get()


def test_something_in_the_way_of_the_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "thing").write_text("mine")
    with pytest.raises(HostError, match=r"thing: no folder, so .* cannot be made; remove what is in the way"):
        Store(tmp_path).get(RECIPE, lambda folder: None)
    assert (tmp_path / "thing").read_text() == "mine"


def test_damaged_state_of_a_killed_attempt_is_begun_anew_once(tmp_path: Path) -> None:
    reports: list[str] = []
    shelf, calls = Store(tmp_path, report=reports.append), []

    def build(folder: Path) -> None:
        calls.append(sorted(path.name for path in folder.iterdir()))
        if (folder / "state").exists():
            raise RecordError("bad", damaged=folder / "state")
        (folder / "state").touch()

    part = tmp_path / "stage/x.part"
    part.mkdir(parents=True)
    (part / "state").touch()
    shelf.build_folder(tmp_path / "stage/x", build, record={}, resumable=True)
    assert calls == [["state"], []]
    assert reports == [f"{part / 'state'}: what a killed attempt left is damaged; {part} is begun anew"]

    def outside(folder: Path) -> None:
        raise RecordError("bad", damaged=tmp_path / "elsewhere")

    with pytest.raises(RecordError, match="bad"):
        shelf.build_folder(tmp_path / "stage/y", outside, record={}, resumable=True)


def test_two_processes_that_find_the_same_damage_make_it_anew_once(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib\nfrom modelassay.storage.store import Store\n"
        "def build(f):\n    print('built'); time.sleep(0.5); (f / 'x').write_text('x')\n"
        "Store(pathlib.Path(sys.argv[1])).get({'kind': 't'}, build)"
    )

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip

    start().communicate(timeout=60)
    (path,) = tmp_path.glob("t/*/x")
    path.write_text("y")
    answers = [process.communicate(timeout=60) for process in (start(), start())]
    assert sum(out.count("built") for out, _ in answers) == 1
    assert sum(err.count("does not hold what was written; it is made anew") for _, err in answers) == 1
