"""What a run reads stays what it was when the run was created, wherever the run goes on; a change is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from modelassay.errors import UsageError
from modelassay.runs import inputs
from modelassay.storage import digests
from modelassay.storage.needs import File
from modelassay.suite import load_suite
from support.toy_suite import modelassay, only_run, rewrite, write_suite

SUITE = """\
suite: walk
experiment: toy
question: Which model does a run go on with?
profiles:
  embedded: {model: zoo:base, steps: 4, checkpoint_every: 1, fail_at: 3, only_first: true, timed: false}
matrix:
  tags: [[./base], [../other/base]]
"""


def make_model(folder: Path, *, width: int = 8) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": width}))
    (folder / "model.safetensors").write_bytes(bytes([width] * 100))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run created in ``here`` whose cells failed once, so that it goes on; another ``base`` lies in ``there``."""
    here = make_model(tmp_path / "here/base").parent
    make_model(tmp_path / "other/base", width=16)
    make_model(tmp_path / "there/base", width=32)
    code, _, err = modelassay("run", write_suite(here, SUITE), "--runs", tmp_path / "runs", cwd=here)
    assert code == 3, err
    return only_run(tmp_path / "runs")


def go_on(run: Path, cwd: Path) -> tuple[int, str]:
    code, _, err = modelassay("run", run, cwd=cwd)
    return code, err


def test_a_run_goes_on_elsewhere_and_moved_with_what_it_began_with(begun: Path, tmp_path: Path) -> None:
    expected = [[str(tmp_path / "here/base")], [str(tmp_path / "other/base")]]
    moved = tmp_path / "elsewhere/moved"
    moved.parent.mkdir()
    shutil.move(begun, moved)
    for stray in (".DS_Store", "._config.json", ".nfs01", "Thumbs.db", "README.md"):
        (tmp_path / "here/base" / stray).write_text("stray")
    (tmp_path / "here/base/checkpoint-5").mkdir()
    (tmp_path / "here/base/checkpoint-5/config.json").write_text("{}")
    code, err = go_on(moved, tmp_path / "there")
    assert code == 0, err
    manifest = json.loads((moved / "run.json").read_text())
    assert [cell["params"]["tags"] for cell in manifest["suite"]["cells"]] == expected
    assert manifest["suite"]["source"] == str(tmp_path / "here/walk.yaml")
    names = ("config.json", "model.safetensors", "tokenizer.json")
    assert sorted(manifest["files"]) == [
        str(tmp_path / place / "base" / name) for place in ("here", "other") for name in names
    ]


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_changed_model_is_refused_by_its_file(begun: Path, tmp_path: Path, file: str) -> None:
    path = tmp_path / "here/base" / file
    path.write_bytes(path.read_bytes() + b" ")
    code, err = go_on(begun, tmp_path / "there")
    assert (code, f"{path} changed; start a new run" in err) == (2, True), err


def test_a_model_that_is_gone_or_gained_a_file_is_refused(begun: Path, tmp_path: Path) -> None:
    (tmp_path / "here/base/chat_template.jinja").write_text("{{ x }}")
    shutil.rmtree(tmp_path / "other/base")
    code, err = go_on(begun, tmp_path / "there")
    assert code == 2
    assert f"{tmp_path}/here/base/chat_template.jinja was added" in err
    assert f"{tmp_path}/other/base/config.json was removed" in err


def test_a_link_that_leads_elsewhere_later_is_refused(tmp_path: Path) -> None:
    for name, width in (("one", 8), ("two", 16)):
        make_model(tmp_path / name, width=width)
    link = tmp_path / "base"
    link.symlink_to("one")
    suite = write_suite(tmp_path, SUITE.replace("[./base], [../other/base]", "[base]"))
    assert modelassay("run", suite, "--runs", "runs", cwd=tmp_path)[0] == 3
    link.unlink()
    link.symlink_to("two")
    code, err = go_on(only_run(tmp_path / "runs"), tmp_path)
    assert (code, f"{link}/config.json changed" in err) == (2, True), err


def test_a_run_whose_paths_are_relative_is_refused(begun: Path, tmp_path: Path) -> None:
    """As those of before are, or one that was changed by hand."""
    absolute = str(tmp_path / "here/base")
    rewrite(begun, lambda manifest: manifest.update(json.loads(json.dumps(manifest).replace(absolute, "./base"))))
    code, err = go_on(begun, tmp_path / "there")
    assert (code, "is a path from a folder that the run does not record" in err) == (2, True), err


PATHS = [
    ("./base", "here/base"), ("base", "here/base"), ("base/", "here/base"), (".//base/.", "here/base"),
    ("../there/base", "there/base"), ("sub/../base", "here/base"), ("nothing/../base", "here/base"), ("link", "here/link"),
    ("hf", "here/hf"), ("org/name", "here/org/name"), ("hf-base:x", "here/hf-base:x"), ("ba se", "here/ba se"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "path"), PATHS)
def test_paths_are_those_of_the_callers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, path: str
) -> None:
    (tmp_path / "here/sub").mkdir(parents=True)
    (tmp_path / "here/link").symlink_to("sub")
    suite = write_suite(tmp_path, SUITE.replace("[./base], [../other/base]", json.dumps([text])))
    monkeypatch.chdir(tmp_path / "here")
    (cell,) = load_suite(os.path.relpath(suite)).cells
    assert cell.params.model_dump()["tags"] == [str(tmp_path / path)]


@pytest.mark.parametrize(
    ("text", "says"),
    [("~/base", "only a shell expands '~'"), ("~", "only a shell expands '~'"), ("~me/base", "only a shell expands '~'"),
     ("link/../base", r"steps back with '\.\.' over a link; write the whole path, which may be .*/other/base")],
)  # fmt: skip
def test_paths_that_depend_on_who_reads_them_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    (tmp_path / "other/sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("other/sub")
    suite = write_suite(tmp_path, SUITE.replace("[./base], [../other/base]", json.dumps([text])))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says):
        load_suite(str(suite))


def test_one_model_under_two_names_is_one_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = write_suite(tmp_path, SUITE.replace("[../other/base]", "[base/]"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="repeats cell"):
        load_suite(str(suite))


def test_an_input_that_is_not_there_is_refused_when_the_run_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for model, says in (
        ("Qwen/Qwen2.5-0.5B", "is written hf:Qwen/Qwen2.5-0.5B"),
        ("/no/such/model", "cannot be read: no such file or directory"),
    ):
        suite = load_suite("fingerprinting", overrides=[f"matrix.model=[{model}]", "against=[]", "peers=[]"])
        with pytest.raises(UsageError, match=says):
            inputs.file_digests(suite, present=True)


def test_each_byte_of_a_large_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "PART_BYTES", 1 << 20)
    path, size = tmp_path / "weights", 4 << 20
    path.write_bytes(bytes(size))
    before = File(path=path).digests()
    for position in (0, size // 3, size - 1):
        with path.open("r+b") as file:
            file.seek(position)
            file.write(b"\x01")
        assert File(path=path).digests() != before
        path.write_bytes(bytes(size))
    assert File(path=path).digests() == before
    path.write_bytes(bytes(size + 1))
    assert File(path=path).digests() != before


def test_what_is_neither_file_nor_folder_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        File(path=tmp_path / "pipe").digests()


def test_a_link_to_a_file_counts_as_the_file(tmp_path: Path) -> None:
    """As in the Hub's cache, where a snapshot holds nothing but links to blobs."""
    plain, snapshot, blobs = (tmp_path / name for name in ("plain/m", "snapshots/m", "blobs"))
    for folder in (plain, snapshot, blobs):
        folder.mkdir(parents=True)
    for number, (name, text) in enumerate({"config.json": "{}", "model.safetensors": "weights"}.items()):
        (plain / name).write_text(text)
        (blobs / str(number)).write_text(text)
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    digests = [list(File(path=folder).digests().values()) for folder in (plain, snapshot)]
    assert digests[0] == digests[1]
    assert digests[0]
    (blobs / "1").write_text("others!")
    assert list(File(path=snapshot).digests().values()) != digests[0]
