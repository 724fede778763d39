"""Each form in which people have a model gives the model's numbers, or is refused by its right name."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modelassay.errors import AssayError, CheckpointError
from modelassay.models.checkpoints import open_checkpoint
from modelassay.models.checkpoints.layers import layer_spans, read_span
from modelassay.models.decoded import DecodedFile, Recipe, decoded_file
from modelassay.models.hub import open_files
from modelassay.models.parts import ensure
from support.model_forms import LAYERS, MATRIX, READ, REFUSED, folder, weights


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("form", READ)
def test_what_is_read_is_the_model(form: str, tmp_path: Path) -> None:
    checkpoint, expected = open_checkpoint(READ[form](tmp_path)), weights()
    if form == "fp16":
        expected = {name: tensor.half() for name, tensor in expected.items()}
    assert checkpoint.num_layers == LAYERS
    for matrix in checkpoint.matrices:
        name = f"model.layers.{matrix.layer}.{MATRIX[matrix.role]}.weight"
        torch.testing.assert_close(checkpoint.read(matrix).double(), expected[name].double(), rtol=0, atol=0)
    for layer, spans in enumerate(layer_spans(checkpoint)):
        for role, name in (
            ("norm-2", "post_attention_layernorm"),
            ("gate", "mlp.gate_proj"),
            ("down", "mlp.down_proj"),
        ):
            (span,) = spans[role]
            ensure(span.path, span.offset, span.end - span.offset)
            stored = expected[f"model.layers.{layer}.{name}.weight"].double()
            torch.testing.assert_close(read_span(span).reshape(stored.shape), stored, rtol=0, atol=0)
    assert (checkpoint.tokenizer_key is None) == (form in {"no tokenizer", "pointer as tokenizer"})


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_not_read_is_named(form: str, tmp_path: Path) -> None:
    make, message = REFUSED[form]
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_tokens_that_are_line_breaks_do_not_shift_the_others(tmp_path: Path) -> None:
    """Unicode has more line breaks than a text file has lines."""
    tokens = ["a", "\u2028", "\u0085", "b"]
    keys = set()
    for name, text in (
        ("vocab.txt", "\n".join(tokens) + "\n"),
        ("vocab.json", json.dumps({token: at for at, token in enumerate(tokens)})),
    ):
        place = folder(tmp_path / name, weights(), tokenizer=False)
        (place / name).write_text(text, encoding="utf-8")
        keys.add(open_checkpoint(place).tokenizer_key)
    assert len(keys) == 1
    assert None not in keys


def test_pages_of_the_hub_mean_its_repositories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cached and nothing can be fetched, so that the error tells what was asked for."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for page in (
        "https://huggingface.co/lab/none",
        "https://huggingface.co/lab/none/tree/main",
        "https://hf.co/lab/none/blob/main/config.json",
    ):
        with pytest.raises(AssayError, match="hf:lab/none"):
            open_files(page)


def test_only_what_is_read_is_made_and_nothing_twice(cache: Path) -> None:
    made: list[tuple[int, int]] = []

    def rows(first: int, last: int) -> bytes:
        made.append((first, last))
        return bytes([at % 251 for at in range(first * 10, last * 10)])

    file = DecodedFile()
    offsets = [file.add(Recipe(num_units=50, unit_bytes=10, make=rows, sources=lambda a, b: ())) for _ in range(2)]
    ensure(file.path, offsets[1] + 95, 20)
    assert made == [(9, 12)]
    ensure(file.path, offsets[1] + 95, 60)
    assert made == [(9, 12), (12, 16)]
    ensure(file.path, offsets[1], 500)
    assert made == [(9, 12), (12, 16), (0, 9), (16, 50)]
    expected = bytes(at % 251 for at in range(500))
    assert file.path.read_bytes()[offsets[1] : offsets[1] + 500] == expected
    assert file.path.read_bytes()[offsets[0] : offsets[0] + 500] == bytes(500)
    path = file.path
    del file
    gc.collect()
    assert decoded_file(path) is None
    assert not path.exists()


def test_what_a_killed_process_left_is_swept_and_what_lives_is_not(cache: Path) -> None:
    code = "from modelassay.models.decoded import DecodedFile; import sys; f = DecodedFile(); print(f.path, flush=True); sys.stdin.read()"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = [Path(process.stdout.readline().strip()) for process in processes if process.stdout is not None]
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[0].communicate()
    assert paths[0].exists()
    mine = DecodedFile()
    assert [path.exists() for path in (*paths, mine.path)] == [False, True, True]
    processes[1].communicate("")
    assert not paths[1].exists()
