"""The folder of a run to be: what is refused, what is made, and what is removed again when others are at it too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelassay.errors import HostError, UsageError
from modelassay.runs.folder import Scaffold, require_free


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["notes.txt"], "not empty and no run directory: it holds notes.txt; a new run needs a new or an empty folder"),
        (["b", "a", "c"], "not empty and no run directory: it holds a and 2 more; a new run needs"),
        (["run.json", "cells"], "holds a run already; `modelassay run .*` goes on with it"),
        (["run.json.new"], "it holds run.json.new;"),
    ],
)
def test_refusal_says_what_lies_there(tmp_path: Path, names: list[str], says: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=says) as refused:
        require_free(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}: ")


@pytest.mark.parametrize("text", ["", "4711", "4711 in container 1f2e3d"])
def test_the_lock_of_a_client_is_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "client.lock").write_text(text)
    require_free(tmp_path)


def test_a_lock_that_no_client_wrote_is_somebodys(tmp_path: Path) -> None:
    lock = tmp_path / "client.lock"
    for make in (lambda: lock.write_text("pid=4711"), lambda: lock.write_bytes(b"1" * 300), lock.mkdir,
                 lambda: lock.symlink_to("/etc/hostname"), lambda: os.mkfifo(lock)):  # fmt: skip
        make()
        with pytest.raises(UsageError, match="it holds client.lock"):
            require_free(tmp_path)
        if lock.is_dir():
            lock.rmdir()
        else:
            lock.unlink()


def test_folder_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(HostError, match=r"loop: cannot be read \(Too many levels of symbolic links\); choose another"):
        require_free(tmp_path / "loop")


def test_only_what_was_made_is_removed_and_only_while_empty(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    scaffold = Scaffold()
    top = tmp_path.resolve() / "old/a"
    assert scaffold.folder(tmp_path / "old/a/b") == [top, top / "b"]
    assert scaffold.folder(tmp_path / "old/a/c") == [top / "c"]
    scaffold.file(tmp_path / "old/a/b/draft").close()
    (tmp_path / "old/a/c/thesis.tex").write_text("somebody else's")
    scaffold.remove()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "old",
        "old/a",
        "old/a/c",
        "old/a/c/thesis.tex",
    ]
    (tmp_path / "old/a/c/thesis.tex").unlink()
    scaffold.remove()
    assert (tmp_path / "old/a/c").is_dir(), "removed once, or never"


def test_folder_that_another_makes_first_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.mkdir

    def raced(self: Path, *arguments: int, **options: bool) -> None:
        real(self, *arguments, **options)  # by another process, just before
        raise FileExistsError(17, "File exists", str(self))

    monkeypatch.setattr(Path, "mkdir", raced)
    scaffold = Scaffold()
    assert scaffold.folder(tmp_path / "new") == []
    scaffold.remove()
    assert (tmp_path / "new").is_dir()


def test_file_that_exists_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "draft").write_text("somebody else's")
    scaffold = Scaffold()
    with pytest.raises(FileExistsError):
        scaffold.file(tmp_path / "draft")
    scaffold.remove()
    assert (tmp_path / "draft").read_text() == "somebody else's"
