"""Three families of tiny models on the stand-in Hub: members that load, members that do not, copies, and members that are gone."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from support.hub_server import HubServer
from support.tiny_models import make_model, save

ROWS = 640
BASES = {"lab/alpha": ("qwen2", 1), "lab/beta": ("llama", 2), "lab/gamma": ("qwen2", 1)}
"""Architecture and tokenizer; alpha and gamma share theirs, so their members are each other's hard strangers."""

FEW = (0, 1, 2, 3, 4, 5, 7, 9, 10)
MANY = (11, 30, 90, 150, 400, 2_000, 20_000, 90_000, 1_500_000)
NOISE_OF_FEW = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 4.0)
NOISE_OF_MANY = (0.08, 0.1, 0.12, 0.14, 0.15, 0.16, 0.18, 0.2, 0.22)


@dataclass
class Families:
    """What was put on the Hub."""

    hub: HubServer
    root: Path
    members: dict[str, list[str]] = field(default_factory=dict)
    """By base."""

    def add(self, base: str, name: str, folder: Path | None, *, downloads: int | None, **said: Any) -> None:
        """List a member, and serve ``folder`` as it; None: its repository is gone."""
        relation = said.pop("relation", "finetune")
        tags = [f"base_model:{base}", f"base_model:{relation}:{base}", *said.pop("more_tags", [])]
        commit = None if folder is None else self.hub.add(name, folder)
        config = {} if folder is None or "config" in said else json.loads((folder / "config.json").read_text())
        files = said.pop("files", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
        order = len(self.hub.listed)
        self.hub.listed[name] = {
            "tags": tags, "downloads": downloads, "downloadsAllTime": None if downloads is None else 7 * downloads,
            "sha": commit, "createdAt": f"2026-01-{1 + order // 24:02d}T{order % 24:02d}:00:00.000Z",
            "config": {"architectures": config.get("architectures", ["Qwen2ForCausalLM"]), "model_type": "qwen2"},
            "siblings": [{"rfilename": file} for file in files], "pipeline_tag": "text-generation", "gated": False,
            "private": False, "disabled": False, "library_name": "transformers",
        } | said  # fmt: skip
        self.members.setdefault(base, []).append(name)


def put_families(hub: HubServer, root: Path) -> Families:
    """Serve and list 3 bases with 59 members, of which 14 cannot be measured or are copies."""
    found = Families(hub, root)
    for number, (base, (kind, words)) in enumerate(BASES.items()):
        folder = _base(root / base, kind, words, seed=10 + number)
        hub.add(base, folder)
        for at, (downloads, noise) in enumerate(zip(FEW + MANY, NOISE_OF_FEW + NOISE_OF_MANY, strict=True)):
            if base == "lab/alpha" or at % 3 != 1:
                name = f"{base}-{at}"
                found.add(base, name, _child(folder, root / name, noise, seed=at), downloads=downloads)
    _put_oddities(found)
    return found


def _put_oddities(found: Families) -> None:
    hub, root, base = found.hub, found.root, "lab/alpha"
    again = root / "again" / "alpha-8"
    shutil.copytree(root / f"{base}-8", again)
    weights = load_file(again / "model.safetensors")
    save_file(
        {name: weights[name] for name in reversed(weights)}, again / "model.safetensors", metadata={"format": "pt"}
    )
    found.add(base, "else/alpha-8-again", again, downloads=55)
    found.add(base, "else/alpha-mirror", root / base, downloads=4_000)
    found.add(base, "else/alpha-shy", _child(root / base, root / "else/alpha-shy", 0.1, seed=90), downloads=None)
    found.add(base, "else/alpha-flaky", _child(root / base, root / "else/alpha-flaky", 0.1, seed=91), downloads=60)
    found.add(base, "else/alpha-gamma", _child(root / base, root / "else/alpha-gamma", 0.1, seed=92), downloads=70,
              relation="merge", more_tags=["base_model:lab/gamma", "base_model:merge:lab/gamma"])  # fmt: skip
    damaged = _child(root / base, root / "else/alpha-damaged", 0.1, seed=93)
    (damaged / "config.json").write_text(
        (damaged / "config.json").read_text().replace('"hidden_size": 16', '"hidden_size": 24')
    )
    found.add(base, "else/alpha-damaged", damaged, downloads=12)
    silent = _child(
        root / base, root / "else/alpha-silent", 0.1, seed=94
    )  # its head has fewer rows than its tokenizer has tokens
    small = load_file(silent / "model.safetensors")
    save_file({name: value[:80].clone() if value.shape[0] == ROWS else value for name, value in small.items()},
              silent / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    (silent / "config.json").write_text(
        (silent / "config.json").read_text().replace(f'"vocab_size": {ROWS}', '"vocab_size": 80')
    )
    found.add(base, "else/alpha-silent", silent, downloads=14)
    torn = _child(root / base, root / "else/alpha-torn", 0.1, seed=95)
    (torn / "config.json").write_text("{")
    found.add(base, "else/alpha-torn", torn, downloads=15, config={"architectures": ["Qwen2ForCausalLM"]})
    found.add(base, "else/alpha-lora", None, downloads=300, relation="adapter",
              files=["adapter_config.json", "adapter_model.safetensors"], config=None)  # fmt: skip
    found.add(
        base, "else/alpha-gguf", None, downloads=9_000, relation="quantized", files=["alpha.Q4.gguf"], config=None
    )
    found.add(base, "else/alpha-awq", None, downloads=80, relation="quantized",
              config={"architectures": ["Qwen2ForCausalLM"], "quantization_config": {"quant_method": "awq"}})  # fmt: skip
    found.add(base, "else/alpha-sees", None, downloads=25, pipeline_tag="image-classification")
    found.add(
        base, "else/alpha-pickled", None, downloads=3, files=["config.json", "pytorch_model.bin", "tokenizer.json"]
    )
    found.add(base, "else/alpha-judge", None, downloads=8, config={"architectures": ["Qwen2ForSequenceClassification"]})
    found.add(base, "else/alpha-gone", None, downloads=0)
    for name, code in (("gated", (403, "GatedRepo")), ("down", (520, "Unknown"))):
        found.add(base, f"else/alpha-{name}", root / base, downloads=500)
        hub.refusals[f"else/alpha-{name}"] = [code] * 10_000
    hub.refusals["else/alpha-flaky"] = [(503, "Unavailable")]


def _base(folder: Path, kind: str, words: int, *, seed: int) -> Path:
    model = make_model(kind, vocab_size=ROWS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                       num_key_value_heads=1, head_dim=8, tie_word_embeddings=False)  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    save(model, folder)
    _tokenizer(words).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"})
    )
    return folder


def _tokenizer(seed: int) -> Tokenizer:
    """A byte-level BPE of 620 tokens over made-up words: fewer than the head has rows."""
    rng = random.Random(seed)
    syllables = ["".join(rng.choices("bcdfghjklmnprstvz", k=1) + rng.choices("aeiou", k=1)) for _ in range(60)]
    text = [" ".join("".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(40)) for _ in range(100)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=620, special_tokens=["<end>"], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def _child(parent: Path, folder: Path, noise: float, *, seed: int) -> Path:
    """The parent with normal noise on all weights, in units of each tensor's deviation."""
    shutil.copytree(parent, folder)
    generator = torch.Generator().manual_seed(1000 + seed)
    moved = {name: value + noise * value.std() * torch.randn(value.shape, generator=generator)
             for name, value in load_file(parent / "model.safetensors").items()}  # fmt: skip
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def suite_text(listings: dict[str, Path] | None = None) -> str:
    """A suite of the three families; with ``listings``, from snapshots."""
    rows = [f"    - {{model: hf:{base}, listing: {path}}}" for base, path in (listings or {}).items()]
    bases = f"[{', '.join(f'hf:{base}' for base in BASES)}]"
    return "\n".join([
        "suite: downloads", "question: noise?", "profiles:",
        f"  mine: {{bases: {bases}, random_sample: 28, most_downloaded: 8, threshold: 0.05}}",
        "matrix:", f"  model: {bases}", *(["  include:", *rows] if rows else []), "",
    ])  # fmt: skip
