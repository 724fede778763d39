"""The trained weights as they were at step 0, on disk: what moved since then, exactly, without the model in memory twice."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from modelassay.errors import CheckpointError
from modelassay.fingerprints.drift.numeric import num_changed_bits

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)\.")
NORM = re.compile(r"norm|ln_|layernorm", re.IGNORECASE)
"""How the names of norms' weights read."""


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """What became of the trained weights since the snapshot."""

    num_weights: int
    num_moved: int
    """Weights of which any bit is another."""
    num_moved_norms: int
    """Of these, weights of norms."""
    num_norms: int
    num_nonfinite: int
    distance: dict[str, float] = field(default_factory=dict)
    """By layer (``layer 3``, and ``rest``): size of the change over size of what it was, both Frobenius norms. Of an adapter, its
    product against the matrix that it changes."""

    @property
    def moved(self) -> float:
        """Share of the trained weights that moved."""
        return self.num_moved / self.num_weights if self.num_weights else 0.0

    @property
    def moved_norms(self) -> float:
        """Share of the trained weights of norms that moved; NaN where no norm is trained."""
        return self.num_moved_norms / self.num_norms if self.num_norms else math.nan


class Snapshot:
    """The trained weights of one model at one moment, as a file that is read a tensor at a time."""

    def __init__(self, path: Path) -> None:
        """Open what `take` wrote."""
        self.path = path

    @classmethod
    def take(cls, model: nn.Module, path: Path) -> Snapshot:
        """Write all weights that require a gradient to ``path``, whole or not at all."""
        part = path.with_name(f"{path.name}.part")
        save_file({name: weight.detach().cpu().contiguous() for name, weight in trained(model).items()}, part)
        os.replace(part, path)  # noqa: PTH105 - over one that is there
        return cls(path)

    def compare(self, model: nn.Module) -> WeightChange:
        """Return what became of the weights.

        Raises:
            CheckpointError: the model trains other weights than it did, or the file is damaged.
        """
        weights = trained(model)
        squares: dict[str, list[float]] = {}
        counts = {"moved": 0, "moved_norms": 0, "norms": 0, "nonfinite": 0}
        adapted = {id(module) for module, _, _ in adapters(model)}
        within = {id(weight) for module in model.modules() if id(module) in adapted for weight in module.parameters()}
        for name, now, before in self._pairs(weights):
            moved = num_changed_bits(now, before)
            counts["moved"] += moved
            if now.ndim < 2 and NORM.search(name):
                counts["norms"] += now.numel()
                counts["moved_norms"] += moved
            counts["nonfinite"] += int((~now.isfinite()).sum())
            if id(weights[name]) not in within:
                _add(squares, name, now.float() - before.float() if moved else None, before)
        for module, name, delta in adapters(model):
            _add(squares, name, delta, module.base_layer.weight)
        return WeightChange(
            num_weights=sum(weight.numel() for weight in weights.values()),
            num_moved=counts["moved"],
            num_moved_norms=counts["moved_norms"],
            num_norms=counts["norms"],
            num_nonfinite=counts["nonfinite"],
            distance={
                layer: math.sqrt(change / size) if size else math.nan for layer, (change, size) in squares.items()
            },
        )

    def _pairs(self, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
        try:
            with safe_open(self.path, framework="pt") as file:
                if set(file.keys()) != set(weights):
                    raise CheckpointError(
                        f"{self.path}: holds {len(file.keys())} tensors, the model trains {len(weights)} and not the same; it is the "
                        "snapshot of another training: delete its folder to begin anew"
                    )
                for name, weight in weights.items():
                    yield name, weight.detach(), file.get_tensor(name).to(weight.device)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error}); delete its folder to begin anew") from error


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that require a gradient by name, those that are tied once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def adapters(model: nn.Module) -> Iterator[tuple[Any, str, Tensor]]:
    """Yield the modules that low-rank adapters of peft change: each with the name of its matrix and what is added to it now."""
    for name, module in model.named_modules():
        each: Any = module
        if not hasattr(each, "get_delta_weight") or not hasattr(each, "base_layer"):
            continue
        active = [adapter for adapter in each.active_adapters if adapter in getattr(each, "lora_A", {})]
        if active:
            with torch.no_grad():
                yield each, f"{name}.weight", sum(each.get_delta_weight(adapter).float() for adapter in active)


def layer_of(name: str) -> str:
    """Return which layer a weight belongs to by its name.

    >>> layer_of("model.layers.3.mlp.up_proj.weight"), layer_of("model.norm.weight")
    ('layer 3', 'rest')
    """
    match = _LAYER.search(name)
    return f"layer {match[1]}" if match else "rest"


def _add(squares: dict[str, list[float]], name: str, change: Tensor | None, before: Tensor) -> None:
    entry = squares.setdefault(layer_of(name), [0.0, 0.0])
    entry[0] += 0.0 if change is None else float(change.norm()) ** 2
    entry[1] += float(before.float().norm()) ** 2
