"""AdamW whose weights, averages and master copy have each a stated precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from modelassay.training.settings import Training

_AVERAGES = ("exp_avg", "exp_avg_sq")


class AdamW:
    """torch's AdamW on tensors of the widest of the three types, rounded after each step to the types that are stated.

    ========  ======  ========  =====================================================================
    weights   states  master    one step
    ========  ======  ========  =====================================================================
    float32   None    None      torch's AdamW, on the weights themselves
    bfloat16  None    None      the same in bfloat16 (as transformers 5 loads most models)
    bfloat16  None    float32   on a float32 copy, rounded into the weights
    bfloat16  float32 None      computed in float32, rounded; the next step starts from the rounded weights
    float32   bfloat16 None     computed in float32; the averages are rounded
    ========  ======  ========  =====================================================================

    Where a type is narrower than the widest, its values lie on its grid but are held in the widest type: the bits of a
    result are those of narrow storage, the memory is not.
    """

    def __init__(self, weights: Mapping[str, Tensor], training: Training) -> None:
        """Take weights by name; matrices decay, vectors do not."""
        self.weights = dict(weights)
        self._training = training
        stored = getattr(torch, training.master or training.weights)
        self._states: torch.dtype = getattr(torch, training.states) if training.states else stored
        widest = reduce(torch.promote_types, (getattr(torch, training.weights), stored, self._states))
        self._updates_weights = training.master is None and widest == stored
        self._stored: torch.dtype = stored
        self.updated: dict[str, Tensor] = (
            self.weights
            if self._updates_weights
            else {name: weight.detach().to(stored).to(widest, copy=True) for name, weight in self.weights.items()}
        )
        """What torch's AdamW is given: the weights themselves, or copies."""
        matrices = [tensor for tensor in self.updated.values() if tensor.ndim >= 2]
        vectors = [tensor for tensor in self.updated.values() if tensor.ndim < 2]
        groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self._torch = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=training.learning_rate,
            betas=(training.beta1, training.beta2),
            eps=training.eps,
            fused=training.implementation == "fused",
            foreach=training.implementation == "foreach",
        )

    def collect(self) -> None:
        """Add the gradients of a backward pass to what is updated; called after each."""
        if self._updates_weights:
            return
        for name, weight in self.weights.items():
            if weight.grad is None:
                continue
            gradient, copy = weight.grad.to(self.updated[name].dtype), self.updated[name]
            copy.grad = gradient if copy.grad is None else copy.grad + gradient
            weight.grad = None

    def gradients(self) -> list[Tensor]:
        """Return the gradients that there are."""
        return [tensor.grad for tensor in self.updated.values() if tensor.grad is not None]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update the weights, and forget the gradients."""
        for group in self._torch.param_groups:
            group["lr"] = learning_rate
        self._torch.step()
        self._torch.zero_grad()
        if self._updates_weights and self._states == self._stored:
            return
        for name, copy in self.updated.items():
            for average in _AVERAGES:
                if average in self._torch.state[copy]:
                    _round(self._torch.state[copy][average], self._states)
            if not self._updates_weights:
                _round(copy, self._stored)
                self.weights[name].copy_(copy)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that the next step depends on besides the weights, each in its stated type."""
        tensors: dict[str, Tensor] = {}
        for name, copy in self.updated.items():
            state = self._torch.state.get(copy, {})
            tensors |= {f"{key}/{name}": value.to(self._states) for key, value in state.items() if key in _AVERAGES}
            tensors |= {f"{key}/{name}": value for key, value in state.items() if key not in _AVERAGES}
            if self._training.master is not None:
                tensors[f"master/{name}"] = copy.detach().to(self._stored)
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `tensors`, once the weights are those of that moment.

        torch's own ``load_state_dict`` would cast the averages to the type of the weights.
        """
        for name, copy in self.updated.items():
            if not self._updates_weights:
                copy.copy_(tensors.get(f"master/{name}", self.weights[name]))
            for key in (*_AVERAGES, "step"):
                if (value := tensors.get(f"{key}/{name}")) is not None:
                    self._torch.state[copy][key] = self._as_kept(key, value, like=copy)

    def _as_kept(self, key: str, value: Tensor, *, like: Tensor) -> Tensor:
        """As torch's AdamW keeps it: the averages beside the weights, the count of steps there only if it is fused."""
        if key in _AVERAGES:
            return value.to(device=like.device, dtype=like.dtype)
        return value.to(like.device) if self._training.implementation == "fused" else value


def count_nonfinite(tensors: Sequence[Tensor]) -> int:
    """Return how many numbers of ``tensors`` are NaN or infinite.

    >>> count_nonfinite([torch.tensor([1.0, float("nan")]), torch.tensor([float("-inf")])])
    2
    """
    return sum(int((~torch.isfinite(tensor)).sum()) for tensor in tensors)


def _round(tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        tensor.copy_(tensor.to(dtype))
