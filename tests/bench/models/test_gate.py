"""What a checkpoint's small files may hold is counted before it is built."""

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from modelassay.errors import CheckpointError
from modelassay.models.checkpoints import open_checkpoint
from modelassay.models.checkpoints.safetensors import read_header
from modelassay.models.gate import CONFIG, HEADER, VOCABULARY, read_json, shown
from modelassay.models.load import load_model, load_tokenizer
from modelassay.models.vocabulary import vocabulary_of
from support.damaged_checkpoints import add_tokenizer
from support.tiny_models import make_model, save


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = save(make_model("llama"), tmp_path / "llama")
    add_tokenizer(folder, "bpe")
    return folder


def quickly(call: Callable[[], object], message: str) -> None:
    """The call fails with ``message`` on one printable line, within two seconds of a processor."""
    began = time.process_time()
    with pytest.raises(CheckpointError, match=message) as caught:
        call()
    assert time.process_time() - began < 2
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


TEXTS: dict[str, tuple[bytes, str]] = {
    "lists": (b'{"a": [' + b"[]," * 4_000_000 + b"0]}", r"8,000,002 values, at most 2,500,000 are read"),
    "mappings": (b'{"a": [' + b"{}," * 4_000_000 + b"0]}", "8,000,002 values, at most"),
    "keys": (b"{" + b'"a":1,' * 1_100_000 + b'"b":0}', "1,100,001 keys, at most 1,000,000"),
    "open brackets": (b"[" * 2_000_000, "brackets nested more than 64 deep"),
    "65 brackets": (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", "brackets nested more than 64 deep"),
    "too many bytes": (b'{"a": "' + b"x" * HEADER.size_bytes + b'"}', "larger than 50,000,000 bytes"),
    "digits": (b'{"a": ' + b"9" * 1_000_000 + b"}", "not valid JSON"),
    "quotes": (b'"' * 1_000_001, "not valid JSON"),
    "zeros": (bytes(1000), "not valid JSON"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_too_much_is_refused_before_it_is_built(case: str, tmp_path: Path) -> None:
    data, message = TEXTS[case]
    path = tmp_path / "x.json"
    path.write_bytes(data)
    quickly(lambda: read_json(path, HEADER), message)


def test_brackets_in_texts_are_no_brackets(tmp_path: Path) -> None:
    value = {"[" * 100: "{" * 100, '"[[': "\\", '\\"': ["]" * 70, {"a": [[["\\\\"]]]}], "\U0001f600,,": -1.5}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        assert read_json(tmp_path / "x.json", CONFIG) == value


def test_as_much_as_the_largest_published_tokenizer_is_read(tmp_path: Path) -> None:
    """Gemma 3: 262,144 tokens and 514,906 merges."""
    vocabulary = {f"token{n}": n for n in range(262_144)}
    model = {"vocab": vocabulary, "merges": [[f"a{n}", f"b{n}"] for n in range(514_906)]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    assert read_json(tmp_path / "tokenizer.json", VOCABULARY)["model"]["vocab"] == vocabulary


def header(entries: str) -> bytes:
    return struct.pack("<Q", len(entries)) + entries.encode()


HEADERS = {
    "300,000 names": (",".join(f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(300_000)), "1,200,000 keys"),
    "a name again": (",".join(f'"{n % 99_999}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(100_000)),
                     "'0' appears twice"),
    "a million extents": ('"a":{"dtype":"F32","shape":[' + ",".join(["1"] * 1_000_000) + '],"data_offsets":[0,0]}', "a: expected dtype"),
    "65 extents": ('"a":{"dtype":"F32","shape":[' + ",".join(["1"] * 65) + '],"data_offsets":[0,0]}', "a: expected dtype"),
    "long extents": ('"a":{"dtype":"F32","shape":[' + ",".join(["9" * 4000] * 500) + '],"data_offsets":[0,0]}', "more than 30 digits"),
    "escapes in a name": ('"\\u001b[2J\\u202e":{"dtype":"F32","shape":[1],"data_offsets":[0,9]}', r"\\x1b\[2J\\u202e: F32 \[1\] does not"),
    "a truth": ('"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}', "a: expected dtype"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_headers_of_any_size_are_judged_in_time(case: str, tmp_path: Path) -> None:
    entries, message = HEADERS[case]
    (tmp_path / "m.safetensors").write_bytes(header("{" + entries + "}"))
    quickly(lambda: read_header(tmp_path / "m.safetensors"), message)


def edit(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "1000000000"),
        (
            {"num_hidden_layers": 4096},
            r"4,096 layers, the weights are 30 tensors|num_hidden_layers: 4096 is more than 30",
        ),
        ({"num_hidden_layers": 10**40}, "more than 30 digits"),
        ({"hidden_size": 2**31}, "of at most 2,147,483,647|cannot load its model|size mismatch"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3 key-value heads evenly|cannot load its model"),
        ({"vocab_size": "\x1b[2J"}, r"\\x1b\[2J|cannot load its model"),
        ({"model_type": "\x1b[2J\n\u202e"}, r"\\x1b\[2J\\n\\u202e|cannot load its model"),
        ({"model_type": ["llama"] * 100_000}, r"\['llama', .*\.\.\.\]|cannot load its model"),
    ],
)
def test_configurations_are_judged_before_they_are_built(llama: Path, changes: dict[str, Any], message: str) -> None:
    edit(llama, "config.json", **changes)
    if "model_type" not in changes:  # which decides nothing here that names and shapes tell
        quickly(lambda: open_checkpoint(llama), message)
    quickly(lambda: load_model(llama), message)


@pytest.mark.parametrize("key", ["num_labels", "num_local_experts", "encoder_layers", "vision_config"])
def test_nothing_is_built_a_thousand_million_times(llama: Path, key: str) -> None:
    edit(llama, "config.json", **{key: {"num_hidden_layers": 10**9} if key == "vision_config" else 10**9})
    quickly(lambda: load_model(llama), r"1000000000 is more than (100,000|\d+;)")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_stored_numbers_are_not_loaded_as_weights(llama: Path, dtype: torch.dtype) -> None:
    """transformers casts them and drops the scales beside them without a word."""
    path = llama / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    safetensors.torch.save_file(tensors | {name: tensors[name].to(dtype)}, path, metadata={"format": "pt"})
    quickly(lambda: load_model(llama), f"{name}: .* holds no plain weights: .*config.json does not say")
    safetensors.torch.save_file(tensors | {name + "_scale": torch.tensor([0.5])}, path, metadata={"format": "pt"})
    quickly(
        lambda: load_model(llama),
        f"'{name}_scale' says what weights are multiplied by .*, and transformers does not apply it",
    )


VOCABULARIES: dict[str, tuple[Any, str]] = {
    "scores alone": ([0.5], "expected tokens with their scores, got 0.5"),
    "a mapping as entry": ([{"x": 1}], "expected tokens with their scores"),
    "three in an entry": ([["a", 1, 2]], "expected tokens with their scores"),
    "a number as token": ([[float("inf"), 0.5]], "expected tokens with their scores"),
    "no ids": ({"a": None}, "token 'a': expected its id, .* got None"),
    "a truth as id": ({"a": True}, "got True"),
    "negative ids": ({"a": -1}, "got -1"),
    "ids beyond integers": ({"a": 2**40}, "expected its id"),
    "nested": ({"a": {"b": 1}}, "expected its id"),
    "a text": ("abc", "expected a vocabulary, got 'abc'"),
    "escapes": ({"\x1b[2J": "\u202e"}, r"token '\\x1b\[2J': .* got '\\u202e'"),
}


@pytest.mark.parametrize("case", VOCABULARIES)
def test_vocabularies_of_another_type_are_refused(llama: Path, case: str) -> None:
    vocabulary, message = VOCABULARIES[case]
    edit(llama, "tokenizer.json", model={"vocab": vocabulary})
    quickly(lambda: open_checkpoint(llama), message)
    quickly(lambda: vocabulary_of(llama), message)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.txt"])
def test_tokenizers_have_a_limit_of_size(llama: Path, name: str) -> None:
    (llama / "tokenizer.json").unlink()
    (llama / name).write_bytes(b"")
    os.truncate(llama / name, 1 << 40)  # sparse: takes no disk
    quickly(lambda: open_checkpoint(llama), "larger than 64,000,000 bytes")
    quickly(lambda: load_tokenizer(llama), "larger than 64,000,000 bytes")


def test_vocabulary_that_is_no_text_is_refused(llama: Path) -> None:
    (llama / "tokenizer.json").unlink()
    (llama / "vocab.txt").write_bytes(b"a\n\xff\n")
    quickly(lambda: open_checkpoint(llama), r"vocab\.txt: byte 2 \(0xff\) is not UTF-8")


def test_what_is_shown_is_short_whatever_it_holds() -> None:
    value: Any = []
    for _ in range(900):
        value = [value, "\x1b" * 10_000, {"\u202e" * 100: 10**5000}]
    assert shown(value).isprintable()
    assert len(shown(value)) <= 600
    assert shown({str(n): n for n in range(9)}) == "{'0': 0, '1': 1, '2': 2, '3': 3, '4': 4, '5': 5, ...}"
