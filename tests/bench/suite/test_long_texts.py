"""What a user's file holds is quoted in part, however long it is, and the sentence keeps its place and its advice."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from modelassay.data.similarities.table import read_similarities
from modelassay.errors import AssayError
from modelassay.models.checkpoints.safetensors import read_header
from modelassay.recording.line import encode_line
from modelassay.recording.log import SCHEMA, read_cell
from modelassay.suite import load_suite

LONG = {"a word": "k" * 100_000, "words": "key " * 25_000, "marks": "k!?" * 33_000, "signs": "\u00e9\u3042" * 50_000}
SUITE = Path(__file__).parents[2] / "cases/suite.yaml"


def suite_with(line: str) -> Callable[[Path], object]:
    def load(folder: Path) -> object:
        path = folder / "suite.yaml"
        path.write_text(f"{SUITE.read_text()}\n{line}\n")
        return load_suite(str(path))

    return load


def overridden(text: str) -> Callable[[Path], object]:
    return lambda folder: load_suite("fingerprinting", overrides=[text])


def logged(line: dict[str, object]) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        opening = {"kind": "attempt", "schema": SCHEMA, "cell": folder.name, "attempt": 1, "resumed_at": 0}
        (folder / "attempt-1.jsonl").write_bytes(b"".join(encode_line(part) for part in (opening, line, {"seq": 1})))
        return read_cell(folder)

    return read


def tabled(text: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "table.csv").write_text(text)
        return read_similarities(folder / "table.csv")

    return read


def headed(header: dict[str, object]) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        data = json.dumps(header).encode()
        (folder / "x.safetensors").write_bytes(len(data).to_bytes(8, "little") + data)
        return read_header(folder / "x.safetensors")

    return read


def cases(text: str) -> dict[str, Callable[[Path], object]]:
    return {
        "a key given twice": suite_with(f'? "{text}"\n: 1\n? "{text}"\n: 2'),
        "an unknown key": suite_with(f'? "{text}"\n: 1'),
        "an override's path": overridden(f"{text}=1"),
        "an override's value": overridden(f"whole={text}"),
        "a profile": lambda folder: load_suite("fingerprinting", profile=text),
        "a suite": lambda folder: load_suite(text),
        "a metric": logged({"seq": 0, "kind": "metric", "name": text, "value": text, "labels": {}}),
        "a kind of record": logged({"seq": 0, "kind": text}),
        "a label": logged({"seq": 0, "kind": "metric", "name": "x", "value": 1.0, "labels": {text: [text]}}),
        "a name of a table": tabled(f'a,b,similarity\n"{text}",y,0.5\n'),
        "a number of a table": tabled(f'a,b,similarity\nx,y,"{text}"\n'),
        "a column of a table": tabled(f'a,"{text}",similarity\nx,y,0.5\n'),
        "a tensor": headed({text: {"dtype": text, "shape": [text]}}),
    }


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("case", cases(""))
def test_it_is_quoted_in_part(tmp_path: Path, case: str, kind: str) -> None:
    with pytest.raises(AssayError) as raised:
        cases(LONG[kind])[case](tmp_path)
    message = str(raised.value)
    assert len(message) <= 2000
    assert LONG[kind][:300] not in message or kind != "a word"
    assert "\n" not in message
