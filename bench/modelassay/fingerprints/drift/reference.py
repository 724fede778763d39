"""What a model answered before it was trained: its prompts, bottom-k sets, logits, hidden states and sigma-curves."""

# P = prompts of one kind, V = rows of the head, K = kept of each row, D = hidden size, S = tokens of the longest prompt

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modelassay.errors import CheckpointError
from modelassay.fingerprints.bottom_k.overlap import PUBLISHED_K, PUBLISHED_ROWS, VALID_SHARE
from modelassay.fingerprints.bottom_k.prompts import (
    CannotPrompt,
    PromptConfig,
    Prompts,
    generate_prompts,
    head_of,
    load_prompts,
    save_prompts,
)
from modelassay.fingerprints.curves import ROLES, Curves
from modelassay.fingerprints.drift.snapshot import adapters
from modelassay.models.vocabulary import Vocabulary
from modelassay_kernels import bottom_k, layer_std

_PROJECTION = re.compile(r"\.(\d+)\.(?:self_attn|attention|attn)\.(q|k|v|o)_proj(?:\.base_layer)?\.weight$")


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """A model's answers before training; everything that `measure` compares with."""

    prompts: Prompts
    rows: tuple[tuple[int, ...], ...]
    """Ids of the ``exact`` prompts as the tokenizer gives them, then those of the ``stable`` ones."""
    valid_V: Tensor
    """bool: rows of the head that are tokens."""
    exact_PK: Tensor
    """Ids of the k least likely rows, as published."""
    stable_PK: Tensor
    """Ids of the k least likely tokens, the least likely first."""
    logits_PV: Tensor
    """float32, of the stable prompts."""
    hidden_PD: Tensor
    """float32: what the head is given at the end of the stable prompts."""
    sigma_RL: Tensor | None
    """float64: standard deviations of q, k, v and o over the layers; None where they are no separate matrices."""
    computed_in: str
    """Type of the logits as the model gave them."""

    @property
    def num_prompts(self) -> int:
        """Prompts of each kind."""
        return len(self.rows) // 2

    @property
    def chance(self) -> float:
        """What two independent bottom-k sets of the corrected kind overlap."""
        return self.stable_PK.shape[1] / int(self.valid_V.sum())

    @property
    def chance_exact(self) -> float:
        """The same of the published kind."""
        return self.exact_PK.shape[1] / len(self.valid_V)

    @property
    def padded(self) -> float:
        """Share of the published sets that is padding, which no text contains and little training moves."""
        return 1 - float(self.valid_V[self.exact_PK].double().mean())

    def save(self, folder: Path) -> None:
        """Write it to a folder, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: getattr(self, name) for name in ("valid_V", "exact_PK", "stable_PK", "logits_PV", "hidden_PD")}
        if self.sigma_RL is not None:
            tensors["sigma_RL"] = self.sigma_RL
        save_prompts(self.prompts, folder / "prompts.json")
        about = {"rows": self.rows, "computed_in": self.computed_in, "source": self.prompts.source}
        (folder / "reference.json").write_text(json.dumps(about))
        part = folder / "reference.safetensors.part"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
        os.replace(part, folder / "reference.safetensors")  # noqa: PTH105 - over one that is there

    @classmethod
    def load(cls, folder: Path) -> Reference:
        """Read what `save` wrote.

        Raises:
            CheckpointError: it is not there, or damaged.
        """
        try:
            about = json.loads((folder / "reference.json").read_text())
            tensors = load_file(folder / "reference.safetensors")
            prompts = load_prompts(folder / "prompts.json", source=about["source"])
            rows = tuple(tuple(row) for row in about["rows"])
            return cls(
                prompts=prompts,
                rows=rows,
                computed_in=about["computed_in"],
                sigma_RL=tensors.pop("sigma_RL", None),
                **tensors,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder}: no reference of the model before training ({error}); it is written at step 0: begin the training anew"
            ) from error


def reference_of(
    model: Any, tokenizer: Any, config: PromptConfig | None = None, *, name: str = "the model before training"
) -> Reference:
    """Compute the reference of a model as it is: prompts that it grows itself, and its answers, in the precision it is called in.

    Costs the growing of 2 P prompts, one forward pass of them, and a reading of the attention matrices.

    Raises:
        CannotPrompt: the model or its tokenizer cannot have such prompts, or its logits are not finite.
    """
    vocabulary = Vocabulary(None, tokenizer)
    with untouched(model):
        prompts = generate_prompts(model, vocabulary, config or PromptConfig(), name=name)
    rows = [*prompts.inputs("exact", vocabulary), *(list(prompt.ids) for prompt in prompts.stable)]
    logits_NV, hidden_ND = last_answers(model, rows, name=name)
    num, num_rows = len(prompts.stable), logits_NV.shape[1]
    valid_V = vocabulary.valid_V(num_rows).clone()
    k_exact, k_stable = round(PUBLISHED_K / PUBLISHED_ROWS * num_rows), round(VALID_SHARE * int(valid_V.sum()))
    if k_exact < 1 or k_stable < 2:
        raise CannotPrompt(f"{name}: {int(valid_V.sum())} tokens leave k = {k_stable}, too few to compare")
    if not logits_NV.isfinite().all():
        raise CannotPrompt(f"{name}: its logits are not finite, so there is nothing to drift from; look at its weights")
    return Reference(
        prompts=prompts,
        rows=tuple(tuple(row) for row in rows),
        valid_V=valid_V,
        exact_PK=lowest(logits_NV[:num], k_exact, None),
        stable_PK=lowest(logits_NV[num:], k_stable, valid_V),
        logits_PV=logits_NV[num:].float().cpu(),
        hidden_PD=hidden_ND[num:].float().cpu(),
        sigma_RL=sigma_of(model),
        computed_in=str(logits_NV.dtype).removeprefix("torch."),
    )


def lowest(logits_PV: Tensor, k: int, valid_V: Tensor | None) -> Tensor:
    """Return the ids of the k lowest logits, the lowest first, ties by the smaller id: int64 [P, K] on the processor."""
    valid = None if valid_V is None else valid_V.to(logits_PV.device)
    return bottom_k(logits_PV.float(), k, valid=valid)[1].cpu()


def last_answers(model: Any, rows: Sequence[Sequence[int]], *, name: str = "the model") -> tuple[Tensor, Tensor]:
    """Return logits [N, V], in the model's own type, and what the head is given [N, D], at the last token of each row.

    One forward pass over all rows, filled up at their ends: of a causal model no token sees what follows it. The head is given the
    last tokens alone. Training mode and random streams are put back.
    """
    device = next(model.parameters()).device
    ends = torch.tensor([len(row) - 1 for row in rows], device=device)
    ids_NS = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
    caught: list[Tensor] = []

    def catch(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        hidden_NSD: Tensor = args[0]
        caught.append(hidden_NSD[torch.arange(len(ends), device=device), ends].clone())
        return (caught[-1][:, None],)

    handle = head_of(model, name).register_forward_pre_hook(catch)
    try:
        with untouched(model), torch.inference_mode():
            logits_N1V: Tensor = model(input_ids=ids_NS, use_cache=False).logits
    finally:
        handle.remove()
    return logits_N1V[:, -1], caught[-1]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and put back afterwards each module's mode and torch's random streams."""
    training = [module for module in model.modules() if module.training]
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for module in training:
            module.training = True


def sigma_of(model: nn.Module) -> Tensor | None:
    """Return the standard deviations of q, k, v and o over the layers, float64 [4, L], adapters added to their matrices.

    None where a layer lacks one as a matrix of its own, as models with fused projections do.
    """
    added = {f"{name.removesuffix('.weight')}.base_layer.weight": delta for _, name, delta in adapters(model)}
    by_place: dict[tuple[str, int], Tensor] = {}
    for name, weight in model.named_parameters():
        if match := _PROJECTION.search(name):
            delta = added.get(name)
            whole = weight.detach() if delta is None else weight.detach().float() + delta
            by_place[match[2], int(match[1])] = whole
    layers = sorted({layer for _, layer in by_place})
    if not layers or len(by_place) != len(ROLES) * len(layers):
        return None
    stds = layer_std([by_place[role, layer] for role in ROLES for layer in layers])
    return torch.as_tensor(stds).double().cpu().view(len(ROLES), len(layers))


def curves_of(sigma_RL: Tensor, name: str) -> Curves | None:
    """Return sigma-curves as methods compare them; None where one is not finite and positive."""
    values = sigma_RL.numpy()
    if not (np.isfinite(values) & (values > 0)).all():
        return None
    return Curves(name=name, sigma=dict(zip(ROLES, values, strict=True)), stratum=values.shape[1])
