"""Rows for tiny models, and gradients of single rows by plain autograd in float64, which share no code with influence."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modelassay.training.rows import IGNORED, Row
from support.curvature_cases import VOCABULARY, make_model

BIASED = {"attention_bias": True, "mlp_bias": True}


def tiny(model_type: str, **changes: Any) -> Any:
    """A tiny float64 model; Llama's with biases everywhere."""
    return make_model(model_type, **(BIASED if model_type == "llama" else {}), **changes)


def rows_of(count: int = 7, seed: int = 3, *, vocabulary: int = VOCABULARY) -> list[Row]:
    """Rows of different lengths, the first tokens without loss."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        length = 4 + (number * 3) % 5
        ids = tuple(torch.randint(0, vocabulary, (length,), generator=generator).tolist())
        rows.append(Row(ids=ids, loss=tuple(place > number % 3 for place in range(length))))
    return rows


def matrix_gradients(model: Any, module: str, row: Row, labels: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """The gradient [O, J] of a row's summed loss by a layer's weight and bias, and the row's logits at counted tokens [N, V]."""
    layer = model.get_submodule(module)
    wanted = [layer.weight] + ([layer.bias] if layer.bias is not None else [])
    logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, :-1]
    targets = torch.tensor(row.labels[1:])
    counted = targets != IGNORED
    chosen = targets[counted] if labels is None else torch.tensor(labels)
    loss = F.cross_entropy(logits[counted], chosen, reduction="sum")
    parts = torch.autograd.grad(loss, wanted)
    matrix = parts[0] if len(parts) == 1 else torch.cat([parts[0], parts[1][:, None]], 1)
    return matrix.detach(), logits[counted].detach()
