"""AdamW whose weights, averages and master copy have each a stated precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from modelassay.errors import UsageError
from modelassay.training.settings import Training

_AVERAGES = ("exp_avg", "exp_avg_sq", "momentum_buffer")
_EMBEDDINGS = ("embed", "wte", "wpe", "lm_head")
"""In the names of matrices whose rows are looked up or chosen among: Muon leaves them to AdamW."""


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

    With stochastic rounding of bfloat16 weights a step is computed in float32 from the weights as they are, and rounded by chance.

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
        if training.stochastic_rounding:
            _check_stochastic(training)
            widest = torch.float32
        self._updates_weights = training.master is None and widest == stored
        self._stored: torch.dtype = stored
        self.updated: dict[str, Tensor] = (
            self.weights
            if self._updates_weights
            else {name: weight.detach().to(stored).to(widest, copy=True) for name, weight in self.weights.items()}
        )
        """What torch's AdamW is given: the weights themselves, or copies."""
        hidden = [
            tensor
            for name, tensor in self.updated.items()
            if training.optimiser == "muon" and is_hidden_matrix(name, tensor)
        ]
        taken = set(map(id, hidden))
        matrices = [tensor for tensor in self.updated.values() if tensor.ndim >= 2 and id(tensor) not in taken]
        vectors = [tensor for tensor in self.updated.values() if tensor.ndim < 2]
        groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        self._torch = [
            *([_torch_optimiser(groups, training)] if groups else []),
            *([_muon(hidden, training)] if hidden else []),
        ]
        self._of = {
            id(tensor): each for each in self._torch for group in each.param_groups for tensor in group["params"]
        }

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
        if self._training.optimiser == "noise":
            self._draw_gradients()
        for each in self._torch:
            for group in each.param_groups:
                group["lr"] = learning_rate
            each.step()
            each.zero_grad()
        if self._updates_weights and self._states == self._stored:
            return
        for name, copy in self.updated.items():
            for average in _AVERAGES:
                if average in self._state(copy):
                    _round(self._state(copy)[average], self._states)
            if not self._updates_weights:
                if self._training.stochastic_rounding:
                    copy.copy_(round_stochastically(copy))
                _round(copy, self._stored)
                self.weights[name].copy_(copy)

    def _draw_gradients(self) -> None:
        """Put standard normal numbers in place of the gradients, drawn in float32 from torch's stream of the processor."""
        for copy in self.updated.values():
            copy.grad = torch.randn(copy.shape).to(device=copy.device, dtype=copy.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that the next step depends on besides the weights, each in its stated type."""
        tensors: dict[str, Tensor] = {}
        for name, copy in self.updated.items():
            state = self._state(copy)
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
                    self._state(copy)[key] = self._as_kept(key, value, like=copy)

    def _state(self, copy: Tensor) -> dict[str, Tensor]:
        """What torch's optimiser keeps of a tensor, empty before its first step."""
        state: dict[str, Tensor] = self._of[id(copy)].state[copy]
        return state

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


def round_stochastically(values: Tensor) -> Tensor:
    """Return float32 values rounded to bfloat16's grid, up or down so that the mean over draws is the value.

    Sixteen random bits are added below the sixteen that stay: what carries over rounds away from zero, with the probability of the
    distance. Draws from torch's stream; what is not finite stays as it is.

    >>> bool((round_stochastically(torch.tensor([1.0, float("inf")])) == torch.tensor([1.0, float("inf")])).all())
    True
    """
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32).to(bits.device)
    rounded = ((bits + noise) & -65536).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values)


def _torch_optimiser(groups: list[dict[str, Any]], training: Training) -> torch.optim.Optimizer:
    fused, foreach = training.implementation == "fused", training.implementation == "foreach"
    if training.optimiser in {"adamw", "muon"}:
        betas = (training.beta1, training.beta2)
        return torch.optim.AdamW(
            groups, lr=training.learning_rate, betas=betas, eps=training.eps, fused=fused, foreach=foreach
        )
    return _Descent(groups, defaults={"lr": training.learning_rate})


def is_hidden_matrix(name: str, weight: Tensor) -> bool:
    """Return whether Muon updates a weight: a matrix that is neither an embedding nor the head.

    >>> is_hidden_matrix("model.layers.0.mlp.up_proj.weight", torch.empty(3, 2))
    True
    """
    return weight.ndim == 2 and not any(part in name for part in _EMBEDDINGS)


def _muon(matrices: list[Tensor], training: Training) -> torch.optim.Optimizer:
    """torch's, whose update is scaled to a root mean square of 0.2 as AdamW's has: learning rate and decay then serve both (Liu et al. 2025, 2502.16982)."""
    return torch.optim.Muon(
        matrices, lr=training.learning_rate, weight_decay=training.weight_decay, adjust_lr_fn="match_rms_adamw"
    )


class _Descent(torch.optim.Optimizer):
    """w <- w - lr * decay * w - lr * gradient: decoupled as in AdamW, so that it is not scaled by what replaces the gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(weight.grad, alpha=-group["lr"])


def _check_stochastic(training: Training) -> None:
    if training.weights != "bfloat16" or training.master is not None:
        raise UsageError(
            f"training: stochastic rounding is of bfloat16 weights without a master copy, got weights {training.weights} "
            f"and master {training.master}"
        )


def _round(tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        tensor.copy_(tensor.to(dtype))
