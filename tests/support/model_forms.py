"""The forms and places in which people have a model: each made of one tiny model, so that whatever opens must give its numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB = 2, 64, 4, 2, 16, 96, 64

CONFIG: Final[Mapping[str, Any]] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": VOCAB,
    "torch_dtype": "bfloat16",
}  # fmt: skip
TOKENIZER: Final = {
    "version": "1.0",
    "model": {"type": "BPE", "vocab": {f"t{at}": at for at in range(VOCAB)}, "merges": []},
}
POINTER: Final = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'5' * 64}\nsize 90868376\n"

Tensors = dict[str, Tensor]


def weights(seed: int = 1, prefix: str = "model.") -> Tensors:
    """Every tensor of a small llama, in bfloat16."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.05).bfloat16()

    tensors = {f"{prefix}embed_tokens.weight": drawn(VOCAB, WIDTH), "lm_head.weight": drawn(VOCAB, WIDTH)}
    shapes = {
        "self_attn.q_proj": (HEADS * HEAD_DIM, WIDTH), "self_attn.k_proj": (KV_HEADS * HEAD_DIM, WIDTH),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, WIDTH), "self_attn.o_proj": (WIDTH, HEADS * HEAD_DIM),
        "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER),
    }  # fmt: skip
    for layer in range(LAYERS):
        for module, shape in shapes.items():
            tensors[f"{prefix}layers.{layer}.{module}.weight"] = drawn(*shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}layers.{layer}.{norm}.weight"] = 1 + drawn(WIDTH)
    tensors[f"{prefix}norm.weight"] = 1 + drawn(WIDTH)
    return tensors


MATRIX: Final = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}


def folder(
    path: Path,
    tensors: Tensors | None,
    *,
    config: Mapping[str, Any] | None = CONFIG,
    tokenizer: bool = True,
    name: str = "model.safetensors",
) -> Path:
    """Write a model's folder; without tensors, config or tokenizer where these are not given."""
    path.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    if tokenizer:
        (path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    if tensors is not None:
        save_file({key: value.contiguous() for key, value in tensors.items()}, path / name)
    return path


def halves(tensors: Tensors) -> tuple[Tensors, Tensors]:
    names = list(tensors)
    return {name: tensors[name] for name in names[:9]}, {name: tensors[name] for name in names[9:]}


def write_shards(path: Path, tensors: Tensors, stem: str, ending: str, *, index: str | None) -> None:
    file_of: dict[str, str] = {}
    for number, part in enumerate(halves(tensors), 1):
        name = f"{stem}-{number:05d}-of-00002{ending}"
        if ending == ".safetensors":
            save_file(part, path / name)
        else:
            torch.save(part, path / name)
        file_of |= dict.fromkeys(part, name)
    if index is not None:
        (path / index).write_text(json.dumps({"metadata": {}, "weight_map": file_of}))


Made = Callable[[Path], str]
"""Makes a form below a folder and returns what a user names."""


def _plain(path: Path) -> str:
    return str(folder(path / "m", weights()))


def _below(path: Path, name: str) -> str:
    return str(Path(_plain(path)) / name)


def _bin(path: Path, save: Callable[[Path], None]) -> str:
    place = folder(path / "m", None)
    save(place)
    return str(place)


def _renamed(path: Path, name: str) -> str:
    return str(folder(path / "m", weights(), name=name))


def _shards(path: Path, stem: str, ending: str, index: str | None) -> str:
    place = folder(path / "m", None)
    write_shards(place, weights(), stem, ending, index=index)
    return str(place)


def _beside(path: Path, name: str, content: bytes | None = None) -> str:
    place = Path(_plain(path))
    if content is None:
        save_file({"x": torch.zeros(4)}, place / name)
    else:
        (place / name).write_bytes(content)
    return str(place)


def _cache(path: Path, *, main: str | None = "abc123", snapshots: tuple[str, ...] = ("abc123",)) -> str:
    root = path / "models--org--name"
    blobs = root / "blobs"
    blobs.mkdir(parents=True)
    source = Path(_plain(path))
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        shutil.copy(source / name, blobs / f"b-{name}")
    for snapshot in snapshots:
        place = root / "snapshots" / snapshot
        place.mkdir(parents=True)
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (place / name).symlink_to(f"../../blobs/b-{name}")
    if main is not None:
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(main)
    return str(root)


def _trainer(path: Path, *steps: int) -> str:
    for step in steps:
        place = folder(path / "out" / f"checkpoint-{step}", weights())
        torch.save({}, place / "optimizer.pt")
        torch.save({"x": torch.zeros(2)}, place / "training_args.bin")
    return str(path / "out")


def _dangling(path: Path) -> str:
    root = Path(_cache(path))
    shutil.copytree(root / "snapshots" / "abc123", path / "copied", symlinks=True)
    return str(path / "copied")


def _prefixed(path: Path, change: Callable[[str], str]) -> str:
    return str(folder(path / "m", {change(name): tensor for name, tensor in weights().items()}))


def _text(path: Path, name: str, content: str | bytes, *, config: Mapping[str, Any] | None = CONFIG) -> str:
    place = folder(path / "m", None, config=config, tokenizer=config is not None)
    target = place / name
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(place)


def _cut(path: Path) -> str:
    place = Path(_plain(path))
    data = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(data[:-500])
    return str(place)


def _lost_shard(path: Path, index: str | None) -> str:
    place = Path(_shards(path, "model", ".safetensors", index))
    (place / "model-00002-of-00002.safetensors").unlink()
    return str(place)


def _lfs_tokenizer(path: Path) -> str:
    place = Path(_plain(path))
    (place / "tokenizer.json").write_text(POINTER)
    return str(place)


def _linked(name: str) -> Made:
    return lambda path: _below(path, name)


READ: Final[Mapping[str, Made]] = {
    "single file": _plain,
    "fp16": lambda path: str(folder(path / "m", {name: t.half() for name, t in weights().items()})),
    "fp32": lambda path: str(folder(path / "m", {name: t.float() for name, t in weights().items()})),
    "shards and index": lambda path: _shards(path, "model", ".safetensors", "model.safetensors.index.json"),
    "shards without index": lambda path: _shards(path, "model", ".safetensors", None),
    "variant": lambda path: _renamed(path, "model.fp16.safetensors"),
    "variant in shards": lambda path: _shards(path, "model.fp16", ".safetensors", "model.safetensors.index.fp16.json"),
    "another name": lambda path: _renamed(path, "consolidated.safetensors"),
    "beside consolidated": lambda path: _beside(path, "consolidated.safetensors"),
    "beside an adapter": lambda path: _beside(path, "adapter_model.safetensors"),
    "beside a pickle": lambda path: _beside(path, "pytorch_model.bin", b"none"),
    "pickle": lambda path: _bin(path, lambda place: torch.save(weights(), place / "pytorch_model.bin")),
    "pickle of a training": lambda path: _bin(path, lambda place: torch.save({"state_dict": weights(), "step": 3}, place / "last.pt")),
    "pickle of before 2020": lambda path: _bin(
        path, lambda place: torch.save(weights(), place / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    ),
    "pickle called pth": lambda path: _bin(path, lambda place: torch.save(weights(), place / "consolidated.00.pth")),
    "pickles and index": lambda path: _shards(path, "pytorch_model", ".bin", "pytorch_model.bin.index.json"),
    "pickles without index": lambda path: _shards(path, "pytorch_model", ".bin", None),
    "pickle beside an adapter": lambda path: _pickle_beside_adapter(path),
    "path to the file": _linked("model.safetensors"),
    "path to config.json": _linked("config.json"),
    "path to a shard": lambda path: f"{_shards(path, 'model', '.safetensors', 'model.safetensors.index.json')}/model-00001-of-00002.safetensors",
    "path to an index": lambda path: f"{_shards(path, 'model', '.safetensors', 'model.safetensors.index.json')}/model.safetensors.index.json",
    "cache snapshot": lambda path: f"{_cache(path)}/snapshots/abc123",
    "cache folder": _cache,
    "cache folder without refs": lambda path: _cache(path, main=None),
    "checkpoint of a Trainer": lambda path: f"{_trainer(path, 500)}/checkpoint-500",
    "output of a Trainer": lambda path: _trainer(path, 500),
    "pointer as tokenizer": _lfs_tokenizer,
    "no tokenizer": lambda path: str(folder(path / "m", weights(), tokenizer=False)),
    "tied": lambda path: str(folder(path / "m", {n: t for n, t in weights().items() if n != "lm_head.weight"}, config={**CONFIG, "tie_word_embeddings": True})),
    "no prefix": lambda path: _prefixed(path, lambda name: name.removeprefix("model.")),
    "torch.compile": lambda path: _prefixed(path, lambda name: f"_orig_mod.{name}"),
    "data parallel": lambda path: _prefixed(path, lambda name: f"module.{name}"),
    "state of PEFT": lambda path: _prefixed(path, lambda name: f"base_model.model.{name}"),
    "unmerged": lambda path: _prefixed(path, lambda name: name.replace("_proj.weight", "_proj.base_layer.weight") if "self_attn" in name else name),
    "language_model": lambda path: _prefixed(path, lambda name: f"language_model.{name}"),
    "llm": lambda path: _prefixed(path, lambda name: f"llm.{name}"),
    "thinker": lambda path: _prefixed(path, lambda name: f"thinker.{name}"),
    "backbone": lambda path: _prefixed(path, lambda name: name.replace("model.", "backbone.", 1)),
    "transformer": lambda path: _prefixed(path, lambda name: name.replace("model.", "transformer.", 1)),
    "tied, only the head stored": lambda path: str(folder(
        path / "m", {n: t for n, t in weights().items() if "embed_tokens" not in n}, config={**CONFIG, "tie_word_embeddings": True}
    )),
    "text_model": lambda path: _prefixed(path, lambda name: name.replace("model.", "model.text_model.", 1) if name.startswith("model.") else name),
}  # fmt: skip
"""Forms that hold the numbers of `weights()` as they are."""

REFUSED: Final[Mapping[str, tuple[Made, str]]] = {
    "lost shard of an index": (lambda path: _lost_shard(path, "model.safetensors.index.json"), "names model-00002-of-00002.safetensors, which is not there"),
    "lost shard": (lambda path: _lost_shard(path, None), "1 of 2 shards are not there: model-00002-of-00002.safetensors; fetch them"),
    "two variants": (
        lambda path: _beside_variant(path), "got model.bf16.safetensors, model.fp16.safetensors; name one: .*/m/model.bf16.safetensors"),
    "cut short": (_cut, "in a file of [0-9]+; the file is damaged or its download was cut short"),
    "TensorFlow": (lambda path: _text(path, "tf_model.h5", b"x"), "got tf_model.h5, which is TensorFlow's and not read"),
    "Flax": (lambda path: _text(path, "flax_model.msgpack", b"x"), "got flax_model.msgpack, which is Flax's and not read"),
    "ONNX": (lambda path: f"{_text(path, 'model.onnx', b'x')}/model.onnx", r"got a file of a format that is not read \(ONNX's\)"),
    "ONNX below": (lambda path: _text(path, "onnx/model.onnx", b"x"), "got none; fetch the weights"),
    "only an adapter": (
        lambda path: _only(path, "adapter_model.safetensors"), "got none but adapter_model.safetensors, an adapter without adapter_config.json"),
    "diffusers": (lambda path: _text(path, "model_index.json", "{}", config=None), "no config.json; it holds a pipeline of diffusers"),
    "Mistral's layout": (
        lambda path: _text(path, "params.json", "{}", config=None), "weights as their authors' own code reads them"),
    "no config": (lambda path: str(folder(path / "m", weights(), config=None)), "no config.json beside model.safetensors"),
    "empty folder": (lambda path: str(folder(path / "m", None, config=None, tokenizer=False)), r"transformers wrote \(the folder is empty\)"),
    "folder of models": (lambda path: str(Path(_plain(path)).parent), "no config.json, but m below it holds a model; name that"),
    "two checkpoints": (lambda path: _trainer(path, 500, 1000), "2 checkpoints of one training; name one, as .*checkpoint-1000"),
    "two snapshots": (
        lambda path: _cache(path, main=None, snapshots=("abc", "def")), "2 snapshots in the Hub's cache and no refs/main that names one"),
    "links without blobs": (_dangling, "config.json is a link to .*, which is not there, as where a snapshot"),
    "pointer": (lambda path: _text(path, "model.safetensors", POINTER), "is a pointer of git-LFS to 90868376 bytes.*git lfs pull"),
    "pointer as pickle": (lambda path: _text(path, "pytorch_model.bin", POINTER), "is a pointer of git-LFS to 90868376 bytes"),
    "empty file": (lambda path: _text(path, "model.safetensors", b""), "is empty; its download did not begin"),
    "web page": (lambda path: _text(path, "model.safetensors", "<!DOCTYPE html><title>Denied</title>"), "is a web page, not weights"),
    "pickle called safetensors": (lambda path: _pickled_as(path, "model.safetensors"), "is what torch.save wrote, no safetensors file"),
    "code in a pickle": (lambda path: _bin(path, lambda place: torch.save({"x": Path("y")}, place / "pytorch_model.bin")), "cannot read it: UnpicklingError"),
    "not a pickle": (lambda path: _text(path, "pytorch_model.bin", b"abc" * 100), r"torch.load\(weights_only=True\) cannot read it"),
    "pickle without tensors": (lambda path: _bin(path, lambda place: torch.save({"a": 1}, place / "pytorch_model.bin")), "expected tensors by name"),
    "nothing there": (lambda path: str(path / "gone"), "got nothing there; check the path"),
    "name of the Hub": (lambda path: "Qwen/Qwen2.5-0.5B", "a repository of the Hub is written hf:Qwen/Qwen2.5-0.5B"),
    "name without organisation": (lambda path: "bert-base-uncased", "a repository of the Hub is written hf:ORG/NAME"),
    "capital scheme": (lambda path: "HF:Qwen/Qwen2.5-0.5B", "a repository of the Hub is written hf:Qwen/Qwen2.5-0.5B$"),
    "hf: without organisation": (lambda path: "hf:gpt2", "write hf:ORG/NAME"),
    "ollama": (lambda path: "ollama:llama3", "ollama show --modelfile"),
    "bucket": (lambda path: "s3://bucket/model", "nothing here fetches s3://"),
    "page of a data set": (lambda path: "https://huggingface.co/datasets/a/b", "not the page of a model"),
    "a Python file": (lambda path: __file__, "expected a folder with config.json, got a file; name the folder, or a file of weights"),
}  # fmt: skip
"""Forms that no numbers can be read of, and what is said of each."""


def _pickle_beside_adapter(path: Path) -> str:
    place = folder(path / "m", None)
    torch.save(weights(), place / "pytorch_model.bin")
    save_file({"x": torch.zeros(4)}, place / "adapter_model.safetensors")
    return str(place)


def _beside_variant(path: Path) -> str:
    for variant in ("fp16", "bf16"):
        _renamed(path, f"model.{variant}.safetensors")
    return str(path / "m")


def _only(path: Path, name: str) -> str:
    place = folder(path / "m", None)
    save_file({"x": torch.zeros(4)}, place / name)
    return str(place)


def _pickled_as(path: Path, name: str) -> str:
    place = folder(path / "m", None)
    torch.save({f"layer.{at}": torch.randn(64, 64) for at in range(2)}, place / name)
    return str(place)
