"""What the members of a family are asked, and how much of their answers they share with the bases."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from modelassay.errors import CheckpointError
from modelassay.experiments.fingerprinting.measure import open_model
from modelassay.meter import Meter
from modelassay.models.checkpoint import tokenizer_key
from modelassay.models.hub import LocalFiles
from modelassay.models.load import load_model
from modelassay.state import Store


@dataclass(frozen=True, kw_only=True)
class Overlap:
    method: str
    base: str
    value: float
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Answers:
    overlaps: tuple[Overlap, ...]
    weights: str
    tokenizer: str


class Questions:
    def __init__(self, bases: Sequence[str], *, store: Store, meter: Meter) -> None:
        self._bases = {base: open_model(base, store=store).folder for base in dict.fromkeys(bases)}
        self._meter = meter
        gen = torch.Generator().manual_seed(0)
        self._prompts = torch.randint(3, 100, (5, 16), generator=gen)
        self._own = {base: self._bottom(load_model(folder)) for base, folder in self._bases.items()}

    def _bottom(self, model):
        with torch.inference_mode():
            logits = model(input_ids=self._prompts).logits[:, -1]
        return [set(row.tolist()) for row in logits.topk(12, largest=False).indices]

    def weights_of(self, base: str) -> str:
        return weights_key(load_model(self._bases[base]))

    def tokenizer_of(self, base: str) -> str:
        return tokenizer_key(LocalFiles(str(self._bases[base]))) or "none"

    def ask(self, reference: str, folder: Path) -> Answers:
        with self._meter.microbatch("load", member=reference):
            model = load_model(folder)
        mine = self._bottom(model)
        found = []
        for base, theirs in self._own.items():
            value = sum(len(a & b) / len(a) for a, b in zip(theirs, mine)) / len(mine)
            found += [Overlap(method=m, base=base, value=value) for m in ("paper-exact", "corrected")]
        return Answers(overlaps=tuple(found), weights=weights_key(model), tokenizer=tokenizer_key(LocalFiles(str(folder))) or "none")


def weights_key(model: torch.nn.Module) -> str:
    """Return 16 hex digits of BLAKE2b over a loaded model's parameters as float32, by name: one model in other shards or, where
    nothing is lost by it, in another dtype keeps its key."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().float().contiguous().cpu().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
