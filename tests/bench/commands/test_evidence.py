"""Evidence can be read back, is refused once it was touched, fits its page, and is never written over something else."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from modelassay.commands.check import check_files
from modelassay.commands.fingerprint import fingerprint
from modelassay.errors import RecordError, UsageError
from modelassay.fingerprints.evidence import Evidence, evidence_json, read_evidence
from modelassay.fingerprints.evidence import folder as folder_module
from modelassay.fingerprints.evidence.files import file_hashes
from modelassay.fingerprints.evidence.folder import pair_folder, require_evidence_folder, write_evidence
from modelassay.fingerprints.evidence.page import page
from modelassay.models.hub import LocalFiles
from modelassay.models.reference import Model
from modelassay.storage.durable import publish
from modelassay.storage.sealed import sealed_json
from support.pair_evidence import evidence
from support.tiny_models import make_model, save

A, B = "Base-1.0-7B", "Suspect-1.5-7B-Instruct"


def run(models: list[str], folder: Path, *, suspect: str | None = None) -> Any:
    return fingerprint(models, suspect=suspect, background=None, figure=None, alpha=1e-6, attention_only=False, behaviour=False,
                       evidence=folder, report=lambda text: None)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    top = tmp_path_factory.mktemp("models")
    first, second = (make_model("llama") for _ in range(2))
    return [str(save(model, top / name)) for name, model in (("base", first), ("copy", first), ("stranger", second))]


def test_the_command_writes_what_check_reads(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz0123")
    monkeypatch.setattr(
        "sys.argv", ["modelassay", "fingerprint", "--token", "hf_abcdefghijklmnopqrstuvwxyz0123", *models]
    )
    view = run(models, tmp_path / "e")
    assert sorted(Path(folder).name for folder in view.data["evidence"]) == [
        "base--copy",
        "base--stranger",
        "copy--stranger",
    ]
    for folder in map(Path, view.data["evidence"]):
        document = read_evidence(folder / "evidence.json")
        assert str(check_files([str(folder / "evidence.json")]).data[0]["content"]).endswith(
            f": {document.verdict.word}"
        )
        for model in (document.a, document.b):
            weights = next(file for file in model.files if file.role == "weights")
            assert weights.sha256 == hashlib.sha256((Path(model.reference) / weights.name).read_bytes()).hexdigest()
        assert document.origin.repeat.startswith(f"modelassay fingerprint {' '.join(models)} ")
        text = (folder / "evidence.json").read_text() + (folder / "report.html").read_text()
        assert "hf_abcdefghijklmnopqrstuvwxyz0123" not in text
    assert read_evidence(tmp_path / "e" / "base--copy" / "evidence.json").verdict.word == "identical"
    with pytest.raises(UsageError, match="holds base--copy already"):
        run(models[:2], tmp_path / "e")


def test_candidates_are_counted(models: list[str], tmp_path: Path) -> None:
    run(models[1:], tmp_path / "e", suspect=models[0])
    document = read_evidence(tmp_path / "e" / "base--stranger" / "evidence.json")
    assert document.corrected is not None
    assert document.corrected.num_candidates == 2
    assert document.origin.repeat.startswith(
        f"modelassay fingerprint --suspect {models[0]} --candidates {models[1]} {models[2]} "
    )


def test_the_hubs_own_hash_stands_beside_ours(models: list[str], tmp_path: Path) -> None:
    """The Hub's cache keeps large files under their SHA-256 and links to them."""
    folder, content = tmp_path / "snapshot", (Path(models[0]) / "model.safetensors").read_bytes()
    shutil.copytree(models[0], folder)
    sha256 = hashlib.sha256(content).hexdigest()
    (folder / "model.safetensors").rename(tmp_path / sha256)
    (folder / "model.safetensors").symlink_to(tmp_path / sha256)
    files = LocalFiles(str(folder))
    files.local = False
    hashes = {
        file.name: file
        for file in file_hashes(Model(reference="hf:a/b", open_files=lambda: files, identity=None, family=None))
    }
    assert hashes["model.safetensors"].sha256 == hashes["model.safetensors"].hub_sha256 == sha256
    assert hashes["config.json"].hub_sha256 is None
    (tmp_path / sha256).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    damaged = {
        file.name: file
        for file in file_hashes(Model(reference="hf:a/b", open_files=lambda: files, identity=None, family=None))
    }
    assert damaged["model.safetensors"].sha256 != damaged["model.safetensors"].hub_sha256 == sha256


def test_a_document_is_what_was_put_in(tmp_path: Path) -> None:
    [folder] = write_evidence(tmp_path / "new" / "folder", [evidence()])
    assert folder.name == f"{A}--{B}"
    assert read_evidence(folder / "evidence.json") == evidence()
    assert sorted(path.name for path in folder.iterdir()) == ["evidence.json", "report.html"]
    assert list(folder.parent.iterdir()) == [folder]


def as_document(edit: Callable[[dict[str, Any]], Any]) -> bytes:
    document = evidence().model_dump(mode="json")
    edit(document)
    return sealed_json(document)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (evidence_json(evidence()).replace(b'"count": 3,', b'"count": 4,'), "not as it was written: the checksum differs"),
        (evidence_json(evidence()).partition(b",")[2].join([b"{", b""]), "has no checksum in front"),
        (evidence_json(evidence())[:-9], "not as it was written"),
        (sealed_json({"schema": 3}), "expected 'evidence of a pair', got a document of kind None"),
        (as_document(lambda e: e.update(schema_version=2)), "schema_version is 2"),
        (as_document(lambda e: e.update(extra=1)), "extra: Extra inputs are not permitted"),
        (as_document(lambda e: e["tests"][0].update(count=2000)), "2000 of 1024 cannot be counted"),
        (as_document(lambda e: e["tests"][3].update(log10_p=-30.0)), "is below that of its first half"),
        (as_document(lambda e: e["tests"][3].update(log10_p=-30.0, all_log10_p=-30.0)), "corrected: log10 p is"),
        (as_document(lambda e: e["tests"][3].update(near_count=2000)), "2000 of 1024 cannot be counted"),
        (as_document(lambda e: e["corrected"].update(shown="p = 1e-40")), "which is not its p"),
        (as_document(lambda e: e["corrected"].update(log10_p=-9.0)), "corrected: log10 p is"),
        (as_document(lambda e: e["verdict"].update(level=1e-12) or e.update(agreement=None)), "no p-value is at most its level"),
        (as_document(lambda e: e["verdict"].update(word="identical")), "identical, but 62 of 103 tensors"),
        (as_document(lambda e: e["verdict"].update(word="re-derived")), "re-derived, but not all"),
        (as_document(lambda e: e["verdict"].update(word="not distinguishable from independent")), "but a p-value is at most"),
        (as_document(lambda e: e["verdict"].update(word="guilty")), "verdict.word: "),
        (as_document(lambda e: e["a"]["files"][0].update(sha256="0")), "a.files.0.sha256: "),
        (as_document(lambda e: e.update(limits=[])), "limits: "),
    ],
)  # fmt: skip
def test_what_was_edited_is_not_called_valid(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    path.write_bytes(data)
    with pytest.raises(RecordError, match=re.escape(message)):
        check_files([str(path)])


def test_a_table_of_similarities_is_still_one(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"a": 1}))
    with pytest.raises(UsageError) as refused:
        check_files([str(path)])
    assert "evidence" not in str(refused.value)


@pytest.mark.parametrize("name", ["notes.txt", "evidence.json", "other/evidence.json"])
def test_a_folder_that_holds_something_else_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(UsageError, match="not a folder of evidence: it holds"):
        write_evidence(tmp_path, [evidence()])
    assert path.read_text() == "mine"
    assert sum(entry.is_file() for entry in tmp_path.rglob("*")) == 1


def test_what_cannot_hold_a_folder_is_refused_before_models_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/below", "link", "link/below"):
        with pytest.raises(UsageError, match=f"{name.split('/')[0]}: is a file or a broken link"):
            require_evidence_folder(tmp_path / name, [(A, B)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_of_two_processes_one_writes_and_the_other_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def publish_late(aside: Path, final: Path) -> None:
        monkeypatch.setattr(folder_module, "publish", publish)
        write_evidence(tmp_path, [evidence(num_methods=1)])
        publish(aside, final)

    monkeypatch.setattr(folder_module, "publish", publish_late)
    with pytest.raises(UsageError, match="appeared meanwhile"):
        write_evidence(tmp_path, [evidence()])
    assert [path.name for path in tmp_path.iterdir()] == [pair_folder(A, B)]
    assert len(read_evidence(tmp_path / pair_folder(A, B) / "evidence.json").methods) == 1
    (tmp_path / pair_folder(A, B) / ".DS_Store").touch()
    require_evidence_folder(tmp_path, [("other", B)])


def test_another_pair_joins_and_the_same_is_refused(tmp_path: Path) -> None:
    write_evidence(tmp_path, [evidence()])
    write_evidence(tmp_path, [evidence(a="third")])
    before = (tmp_path / pair_folder(A, B) / "evidence.json").stat().st_ino
    with pytest.raises(UsageError, match="already"):
        write_evidence(tmp_path, [evidence(a="fourth"), evidence()])
    assert (tmp_path / pair_folder(A, B) / "evidence.json").stat().st_ino == before
    assert not (tmp_path / pair_folder("fourth", B)).exists()


class Reader(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def read_page(document: Evidence) -> tuple[str, Reader]:
    text = page(document, sha256="a" * 64)
    reader = Reader()
    reader.feed(text)
    return text, reader


def test_the_page_loads_nothing_and_says_everything() -> None:
    text, reader = read_page(evidence())
    assert not {"script", "img", "link", "iframe", "object", "svg"} & set(reader.tags)
    assert set(reader.attributes) <= {"lang", "charset", "class"}
    assert not re.search(r"url\(|@import|https?:|//", text)
    document = evidence()
    for part in (
        document.verdict.sentence,
        document.verdict.explained,
        "no outcome is a proof of independence",
        "p = 1e-09",
        "a" * 64,
        *(proposition.text for proposition in document.propositions),
        document.a.files[-1].sha256,
        document.origin.repeat,
    ):
        assert part.lower() in reader.text.lower(), part  # fmt: skip


def test_names_cannot_write_into_the_page() -> None:
    text, reader = read_page(evidence(a='<script>x</script>"', b="new\nline\x1b[2J"))
    assert "script" not in reader.tags
    assert "\x1b" not in text


def test_the_page_does_not_grow_with_the_model() -> None:
    small, large = (
        read_page(evidence(num_shards=shards, num_methods=methods))[1].text for shards, methods in ((3, 5), (300, 50))
    )
    assert len(large) < len(small) + 400
