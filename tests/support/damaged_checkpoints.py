"""Real tiny checkpoints, and one damage to one of their files for each seed.

``make_bases(folder)`` saves them, ``damage(folder, seed)`` spoils a copy, ``read(folder)`` reads all that experiments do.
What a damage leaves legible must give the numbers that the checkpoint gave before.
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers
import torch
import transformers

from support.damaged_json import damaged, damaged_bytes
from support.tiny_models import make_model, save

ALPHABET = ["<s>", "</s>", "<pad>", "a", "b", "c", "d", "e", "▁a", "▁b", "ab", "cd", "abc", "Ġab", "Ġ", "é", "日", "ü"]


def _tokenizer(kind: str) -> tokenizers.Tokenizer:
    vocabulary = {
        token: index for index, token in enumerate([*ALPHABET, *(f"t{n}" for n in range(32 - len(ALPHABET)))])
    }
    if kind == "unigram":
        model: Any = tokenizers.models.Unigram(
            [(token, -float(index)) for token, index in vocabulary.items()], unk_id=0
        )
    elif kind == "wordpiece":
        model = tokenizers.models.WordPiece(vocabulary, unk_token="<pad>")
    else:
        model = tokenizers.models.BPE(vocabulary, [("a", "b"), ("c", "d"), ("ab", "c")], unk_token="<pad>")
    return tokenizers.Tokenizer(model)


def add_tokenizer(folder: Path, kind: str) -> None:
    if kind == "vocab.txt":
        (folder / "vocab.txt").write_text("\n".join(ALPHABET) + "\n", encoding="utf-8")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    elif kind == "vocab.json":
        _tokenizer("bpe").model.save(str(folder))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    else:
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=_tokenizer(kind), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
        )
        fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        fast.save_pretrained(folder)


def _quantise(folder: Path, block: tuple[int, int] | None) -> None:
    """Store the attention's matrices as fp8 with a scale per block, or per tensor, and say so in config.json."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    for name in [name for name in tensors if "_proj.weight" in name and "self_attn" in name]:
        weight = tensors[name]
        tensors[name] = weight.to(torch.float8_e4m3fn)
        rows, columns = (1, 1) if block is None else (-(-weight.shape[0] // block[0]), -(-weight.shape[1] // block[1]))
        suffix, shape = ("_scale", (1,)) if block is None else ("_scale_inv", (rows, columns))
        tensors[name + suffix] = torch.linspace(0.5, 2, rows * columns).reshape(shape)
    safetensors.torch.save_file(tensors, path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = (
        {"quant_method": "fbgemm_fp8", "activation_scheme": "dynamic"}
        if block is None
        else {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(block)}
    )
    (folder / "config.json").write_text(json.dumps(config))


def _wrapped(folder: Path) -> Path:
    """A text model inside the configuration of one that sees images."""
    save(make_model("gemma3_text"), folder)
    config = json.loads((folder / "config.json").read_text())
    wrapper = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": config}
    (folder / "config.json").write_text(json.dumps(wrapper))
    return folder


def make_bases(root: Path) -> list[Path]:
    """Save the checkpoints that are damaged: one file, shards, fused and transposed projections, fp8, and each kind of tokenizer."""
    bases = [save(make_model("llama"), root / "llama"), save(make_model("qwen3"), root / "sharded", max_shard_size="8KB"),
             save(make_model("gpt2"), root / "gpt2"), save(make_model("gpt_neox"), root / "grouped"),
             save(make_model("bert"), root / "bert"), save(make_model("llama"), root / "blocks"),
             save(make_model("llama"), root / "scalar"), _wrapped(root / "wrapped")]  # fmt: skip
    _quantise(root / "blocks", (8, 7))
    _quantise(root / "scalar", None)
    for base, kind in zip(
        bases, ["bpe", "unigram", "vocab.json", "wordpiece", "vocab.txt", "bpe", "bpe", "unigram"], strict=True
    ):
        add_tokenizer(base, kind)
    return bases


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its data."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_header(path: Path, header: Any, data: bytes) -> None:
    """Write a safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def damage(folder: Path, seed: int) -> str:
    """Spoil one file of ``folder`` as ``seed`` says, and return what was done."""
    rng = random.Random(seed)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors"]
    path = rng.choice([folder / "config.json", rng.choice(weights), *(path for path in files if path not in weights)])
    if path.suffix == ".safetensors":
        return f"{path.name}: {_damage_weights(path, rng)}"
    if path.suffix == ".json" and rng.random() < 0.8:
        value = json.loads(path.read_text())
        focus = [p for p in (("quantization_config",), ("model",), ("weight_map",), ("added_tokens",)) if p[0] in value]
        if focus and rng.random() < 0.5:
            key = rng.choice(focus)[0]
            value[key], what = damaged(value[key], rng)
            what = f"{key}: {what}"
        else:
            value, what = damaged(value, rng)
        path.write_text(json.dumps(value))
    else:
        data, what = damaged_bytes(path.read_bytes(), rng)
        path.write_bytes(data)
    return f"{path.name}: {what}"


def _damage_weights(path: Path, rng: random.Random) -> str:
    header, data = header_of(path)
    names = [name for name in header if name != "__metadata__"]
    match rng.randrange(8):
        case 0:
            whole, what = damaged_bytes(path.read_bytes(), random.Random(rng.random()))
            start = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
            if whole[start:] != data and len(whole) == len(data) + start and whole[:start] == path.read_bytes()[:start]:
                return "left as it was"  # another weight: no reader can tell
            path.write_bytes(whole)
            return what
        case 1:
            text, what = damaged_bytes(json.dumps(header).encode(), rng)
            write_header(path, text, data)
            return f"header {what}"
        case 2:
            return _fill(path, header, data, rng)
        case 3:
            name = rng.choice([name for name in names if "scale" in name] or names)
            size = header[name]["data_offsets"][1] - header[name]["data_offsets"][0]
            header[name] = {"dtype": "U8", "shape": [size], **{key: header[name][key] for key in ("data_offsets",)}}
            write_header(path, header, data)
            return f"{name} as bytes"
        case _:
            name = rng.choice(names)
            focus = rng.choice([None, ("shape",), ("dtype",), ("data_offsets",)])
            if focus is None:
                header, what = damaged(header, rng)
            else:
                header[name], what = damaged(header[name], rng, path=focus)
            write_header(path, header, data)
            return f"header: {name}: {what}"


def _fill(path: Path, header: dict[str, Any], data: bytes, rng: random.Random) -> str:
    """Finite weights so large that products overflow, infinities, NaN, or one value throughout."""
    names = [name for name in header if name != "__metadata__" and header[name]["dtype"] == "F32"]
    one = rng.choice(names)
    alike = (
        [one],
        [name for name in names if name.rpartition("layers.")[2][1:] == one.rpartition("layers.")[2][1:]],
        names,
    )
    value = rng.choice([3e38, -3e38, float("inf"), float("nan"), 0.0, 1e-45])
    pattern = struct.pack("<f", value) if value < 1e38 else struct.pack("<fff", value, -value, value / 3)
    filled = bytearray(data)
    for name in rng.choice(alike):
        begin, end = header[name]["data_offsets"]
        filled[begin:end] = (pattern * (end - begin))[: end - begin]
    path.write_bytes(path.read_bytes()[: -len(data)] + filled)
    return f"filled: {one} or more with {value}"
