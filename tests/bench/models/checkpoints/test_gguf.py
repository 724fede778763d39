"""GGUF files: the numbers that transformers' own loader gives, what they say of themselves, and damage."""

from __future__ import annotations

import random
import resource
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelassay.errors import CheckpointError
from modelassay.models.checkpoints import open_checkpoint
from modelassay.models.checkpoints.gguf import SIZES, read_gguf
from modelassay.models.checkpoints.layers import layer_spans, norm_weights
from modelassay.models.checkpoints.opened import open_form
from modelassay.models.checkpoints.tensors import TensorTable
from modelassay.models.hub import LocalFiles
from modelassay.models.parts import ensure
from modelassay.models.tokenizer import token_ids, tokenizer_key
from support.gguf_files import NUMBERS, converted_llama, encoded, key, write_gguf
from support.model_forms import CONFIG, HEAD_DIM, HEADS, INNER, KV_HEADS, LAYERS, MATRIX, VOCAB, WIDTH, folder, weights

TOKENS = [f"t{at}" for at in range(VOCAB)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def floats(seed: int = 1) -> dict[str, np.ndarray]:
    return {name: tensor.float().numpy() for name, tensor in weights(seed).items()}


def model(path: Path, type_name: str = "Q8_0", **kwargs: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {"heads": (HEADS, KV_HEADS), "head_dim": HEAD_DIM, "tokens": TOKENS, **kwargs}
    return converted_llama(path, arguments.pop("tensors", floats()), type_name, **arguments)


def read(path: str, name: str) -> torch.Tensor:
    table = TensorTable(open_form(path))
    place, info = table.find(name)
    ensure(place, info.offset, info.size_bytes)
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[info.dtype]
    data = bytearray(place.read_bytes()[info.offset : info.offset + info.size_bytes])
    return torch.frombuffer(data, dtype=dtype).float().reshape(info.shape)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma"])
@pytest.mark.parametrize("type_name", ["F32", "F16", "Q8_0", "Q4_1", "Q5_0"])
def test_what_is_read_is_the_model_rounded(tmp_path: Path, architecture: str, type_name: str) -> None:
    """q and k in their order, norms without Gemma's one: compared with what was converted, by one step of the type."""
    source = floats()
    path = model(tmp_path / "m.gguf", type_name, architecture=architecture)
    checkpoint = open_checkpoint(path)
    step = {"F32": 0.0, "F16": 2.0**-11, "Q8_0": 1 / 127, "Q4_1": 2 / 15, "Q5_0": 1 / 15}[type_name]
    for matrix in checkpoint.matrices:
        expected = source[f"model.layers.{matrix.layer}.{MATRIX[matrix.role]}.weight"]
        got = checkpoint.read(matrix).double().numpy()
        assert np.abs(got - expected).max() <= step * np.abs(expected).max()
    for layer, spans in enumerate(layer_spans(checkpoint)):
        expected = source[f"model.layers.{layer}.input_layernorm.weight"] + (architecture == "gemma")
        np.testing.assert_allclose(norm_weights(checkpoint, spans["norm-1"][0]).numpy()[0], expected, rtol=1e-6)
        assert {"gate", "up", "down", "norm-2"} <= spans.keys()
    assert (checkpoint.num_heads, checkpoint.num_kv_heads, checkpoint.head_dim) == (HEADS, KV_HEADS, HEAD_DIM)
    assert (checkpoint.vocab_size, checkpoint.intermediate_size) == (VOCAB, INNER)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_transformers_reads_the_same_numbers(tmp_path: Path, architecture: str) -> None:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = model(tmp_path / "m.gguf", "Q4_1", architecture=architecture)
    small = CONFIG | {"model_type": architecture}
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**small)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=skeleton)["tensors"]
    compared = 0
    for name, tensor in theirs.items():
        if name.endswith(".weight") and "_proj" in name:
            torch.testing.assert_close(
                read(str(path), name), torch.as_tensor(np.asarray(tensor)).float(), rtol=0, atol=0
            )
            compared += 1
    assert compared == 7 * LAYERS


@pytest.mark.parametrize("type_name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "BF16"])
def test_rows_are_dequantised_as_gguf_does_the_whole(tmp_path: Path, type_name: str) -> None:
    from gguf import quants
    from gguf.constants import GGMLQuantizationType

    random_ = np.random.default_rng(0)
    count, size = SIZES[type_name]
    rows, columns = 24, 512
    data = random_.integers(0, 60, rows * columns // count * size, dtype=np.uint8)  # small exponents: finite scales
    path = write_gguf(
        tmp_path / "m.gguf",
        {"blk.0.ffn_up.weight": (type_name, (rows, columns), data.tobytes())},
        keys={"qwen2.block_count": 1},
    )
    expected = quants.dequantize(data.reshape(rows, -1), GGMLQuantizationType[type_name])
    files = LocalFiles(str(path))
    place, info = TensorTable(files).find("model.layers.0.mlp.up_proj.weight")
    if info.dtype == "F32":
        table = TensorTable(files)
        place, info = table.find("model.layers.0.mlp.up_proj.weight")
        ensure(place, info.offset + 5 * 4 * columns, 7 * 4 * columns)
        some = np.fromfile(place, np.float32, 7 * columns, offset=info.offset + 5 * 4 * columns).reshape(7, columns)
        assert np.array_equal(some, expected[5:12])
        assert not np.fromfile(place, np.float32, 5 * columns, offset=info.offset).any()
    assert np.array_equal(read(str(path), "model.layers.0.mlp.up_proj.weight").numpy(), expected)


def test_what_a_file_says_of_itself_is_said_and_trusted_in_nothing(tmp_path: Path) -> None:
    path = model(
        tmp_path / "m.gguf",
        **{"general.name": "Inner 8k", "general.base_model.0.repo_url": "https://huggingface.co/lab/base"},
    )
    notes = " ".join(open_checkpoint(path).notes)
    assert "which nothing checks: name 'Inner 8k', base_model.0.repo_url 'https://huggingface.co/lab/base'" in notes
    assert f"{7 * LAYERS + 2} matrices in Q8_0, read as float32" in notes


def test_the_vocabulary_is_the_files_own_and_a_tokenizer_beside_it_counts_where_it_agrees(tmp_path: Path) -> None:
    types = [1] * (VOCAB - 2) + [3, 5]
    path = model(tmp_path / "a" / "m.gguf", token_types=types)
    assert token_ids(open_form(path)) == {f"t{at}": at for at in range(VOCAB - 2)}
    folder(tmp_path / "a", None, config=None)
    whole = open_form(path)
    assert tokenizer_key(whole) == tokenizer_key(LocalFiles(str(folder(tmp_path / "b", weights()))))
    other = model(tmp_path / "c" / "m.gguf", tokens=[*TOKENS[1:], TOKENS[0]])
    folder(tmp_path / "c", None, config=None)
    assert token_ids(open_form(other)) == {f"t{(at + 1) % VOCAB}": at for at in range(VOCAB)}
    assert any("numbers tokens otherwise" in note for note in open_checkpoint(other).notes)
    repeated = model(tmp_path / "d" / "m.gguf", tokens=["x", *TOKENS[:-2], "x"])
    assert open_checkpoint(repeated).tokenizer_key is None


def test_a_head_of_its_own_is_no_other_architecture(tmp_path: Path) -> None:
    source = floats()
    tied = model(
        tmp_path / "tied.gguf", tensors={name: values for name, values in source.items() if name != "lm_head.weight"}
    )
    own = model(tmp_path / "own.gguf", tensors={**source, "lm_head.weight": source["model.embed_tokens.weight"]})
    a, b = open_checkpoint(tied), open_checkpoint(own)
    assert (a.architecture, a.stratum(), a.num_layers) == (b.architecture, b.stratum(), b.num_layers)
    assert set(b.tensors.names()) - set(a.tensors.names()) == {"lm_head.weight"}


def test_experts_are_matrices_of_their_own(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    experts = generator.normal(size=(3, 8, 32)).astype(np.float32)
    tensors = {"blk.0.ffn_up_exps.weight": ("Q8_0", experts.shape, encoded("Q8_0", experts))}
    path = write_gguf(tmp_path / "m.gguf", tensors, architecture="qwen3moe", keys={"qwen3moe.block_count": 1})
    for expert in range(3):
        got = read(str(path), f"model.layers.0.mlp.experts.{expert}.up_proj.weight").numpy()
        assert np.abs(got - experts[expert]).max() <= np.abs(experts[expert]).max() / 127


def test_folders_and_parts(tmp_path: Path) -> None:
    path = model(tmp_path / "alone" / "m-Q8_0.gguf")
    assert open_checkpoint(tmp_path / "alone").num_layers == LAYERS
    shutil.copy(path, tmp_path / "alone" / "m-Q4_0.gguf")
    with pytest.raises(CheckpointError, match=r"2 GGUF files; name one, as .*m-Q4_0\.gguf"):
        open_checkpoint(tmp_path / "alone")
    (tmp_path / "with").mkdir()
    shutil.copy(path, folder(tmp_path / "with", None) / "m.gguf")
    assert open_checkpoint(tmp_path / "with").num_layers == LAYERS
    first, second = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    model(first, tensors={name: values for name, values in floats().items() if ".layers.1." not in name})
    stored = {
        f"blk.1.{own}.weight": ("F32", values.shape, encoded("F32", values)) for own, values in _second_layer().items()
    }
    write_gguf(second, stored, architecture="llama", keys={})
    keys = read_gguf(first).metadata | {"llama.block_count": LAYERS}
    assert keys["llama.block_count"] == LAYERS
    table = TensorTable(LocalFiles(str(first)))
    assert {f"model.layers.{layer}.self_attn.v_proj.weight" for layer in range(LAYERS)} <= set(table.names())
    second.unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00002\.gguf is not there; fetch the missing shard"):
        open_checkpoint(first)


def _second_layer() -> dict[str, np.ndarray]:
    return {"attn_v": floats()["model.layers.1.self_attn.v_proj.weight"]}


@pytest.mark.parametrize(("change", "message"), [
    ({"architecture": "rwkv6"}, "GGUF of architecture 'rwkv6', whose tensors' names are not known here"),
])  # fmt: skip
def test_an_architecture_that_is_not_known_is_named(tmp_path: Path, change: dict[str, str], message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, keys={}, **change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_what_a_header_claims_beyond_its_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    lies = {
        "counts 1,000,000,000,000 entries": struct.pack("<IQQ", 3, 10**12, 0),
        "counts 12 entries in a file of less": struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 12),
        "header goes on where the file ends": struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"t" + b"\1\0",
        "an array of kind 9": struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 9, 1) + bytes(40),
        "a value of kind 77": struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 77) + bytes(40),
        "stands twice in the header": struct.pack("<IQQ", 3, 0, 2) + key("a", 1) + key("a", 2),
        "general.alignment: 0": struct.pack("<IQQ", 3, 0, 1) + key("general.alignment", 0),
        "expected GGUF of version 2 or 3, got b'GGUF' 50331648": struct.pack(">IQQ", 3, 0, 0),
        "a tensor of 9 dimensions": struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"t" + struct.pack("<I", 9) + bytes(99),
        "t: ends behind byte": struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"t" + struct.pack("<IQQQIQ", 3, 2**40, 2**40, 2**40, 0, 0),
        "rows of 33 in blocks of 32": struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 33, 2, 8, 0) + bytes(999),
    }  # fmt: skip
    for message, header in lies.items():
        path.write_bytes(b"GGUF" + header)
        with pytest.raises(CheckpointError, match=message):
            read_gguf(path)


def _damage(data: bytes, random_: random.Random) -> bytes:
    """Change some bytes of the header, cut it, or let a number claim much."""
    changed = bytearray(data)
    match random_.randrange(4):
        case 0:
            for _ in range(random_.randint(1, 6)):
                changed[random_.randrange(min(len(changed), 3000))] = random_.randrange(256)
        case 1:
            del changed[random_.randrange(len(changed)) :]
        case 2:
            at = random_.randrange(min(len(changed), 3000) - 8)
            changed[at : at + 8] = struct.pack("<Q", random_.choice([2**63, 2**40, 2**32 - 1, 2**24, 0]))
        case _:
            at = random_.randrange(min(len(changed), 3000))
            changed[at:at] = random_.randbytes(random_.randint(1, 40))
    return bytes(changed)


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.nightly)])
def test_damaged_files_are_refused_in_one_line_and_little_memory(tmp_path: Path, count: int) -> None:
    """Whatever is not refused gives a table whose every tensor lies in the file."""
    data = model(tmp_path / "whole.gguf").read_bytes()
    path, random_ = tmp_path / "m.gguf", random.Random(count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    messages = []
    for _ in range(count):
        path.write_bytes(_damage(data, random_))
        try:
            header = read_gguf(path)
            size = path.stat().st_size
            assert all(0 <= info.offset <= size for info in header.tensors.values())
            open_checkpoint(path)
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > count // 4
    assert all("\n" not in message and len(message) < 1000 for message in messages)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_numbers_of_types_are_those_of_gguf() -> None:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    assert {name: GGML_QUANT_SIZES[GGMLQuantizationType[name]] for name in SIZES} == SIZES
    assert all(GGMLQuantizationType[name] == number for name, number in NUMBERS.items())
    assert WIDTH % 32 == 0
