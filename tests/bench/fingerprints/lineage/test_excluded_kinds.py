"""Changes that look like training or like nothing at all are told apart from it, in both orders of the arguments."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from modelassay.fingerprints.lineage.rates import DIRECTIONS, Named, error_rate
from modelassay.fingerprints.lineage.result import Kind
from support.lineage_cases import base, outcome, trained


def linear(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not model.lm_head]


def stranger() -> Any:
    model = base()
    torch.manual_seed(9)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.2 * torch.distributions.Laplace(0.0, 1.0).sample(weight.shape) + (weight.ndim == 1))
    return model


def mixed(share: float) -> Any:
    model, other = base(), stranger()
    with torch.no_grad():
        for weight, another in zip(model.parameters(), other.parameters(), strict=True):
            weight.copy_((1 - share) * weight + share * another)
    return model


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_mixture_with_a_stranger_is_no_continued_training(share: float, tmp_path: Path) -> None:
    """One ingredient is at hand; that there is another parent, and its weight, shows all the same."""
    result = outcome(tmp_path, base(), mixed(share))
    assert (result.kind, result.parent) == ("merged", "a")
    assert f"weight {share:.2f}" in result.evidence
    assert "another parent" in result.evidence
    assert "of pairs" not in result.evidence
    assert "0 of 175 pairs" in result.evidence


def test_heavy_training_is_no_mixture(tmp_path: Path) -> None:
    result = outcome(tmp_path, base(), trained(0.4, decay=0.1)(base()))
    assert result.kind == "continued"
    assert "a merge of relatives looks the same and is not excluded" in result.evidence
    assert "0 of 23 pairs" in result.evidence


def truncated() -> Any:
    model = base()
    with torch.no_grad():
        for layer in linear(model):
            left, values, right = torch.linalg.svd(layer.weight.double(), full_matrices=False)
            kept = len(values) // 2
            layer.weight.copy_((left[:, :kept] * values[:kept]) @ right[:kept])
    return model


def rounded_to_fp8() -> Any:
    model = base()
    with torch.no_grad():
        for layer in linear(model):
            scale = layer.weight.abs().max() / 448
            layer.weight.copy_((layer.weight / scale).to(torch.float8_e4m3fn).float() * scale)
    return model


def rounded_to_4_bits() -> Any:
    model = base()
    with torch.no_grad():
        for layer in linear(model):
            for columns in layer.weight.split(32, dim=1):
                scale = columns.abs().amax(1, keepdim=True) / 7
                columns.copy_((columns / scale).round() * scale)
    return model


def flipped() -> Any:
    model, generator = base(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in linear(model):
            layer.weight.copy_(
                torch.where(torch.rand(layer.weight.shape, generator=generator) < 0.3, -1, 1) * layer.weight
            )
    return model


def reversed_layers() -> Any:
    model = base()
    model.model.layers = torch.nn.ModuleList(list(model.model.layers)[::-1])
    return model


def renumbered() -> Any:
    """Hidden dimensions in another order throughout."""
    model = base()
    order = torch.from_numpy(np.random.default_rng(0).permutation(model.config.hidden_size))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in ("embed", "q_proj.w", "k_proj.w", "v_proj.w", "gate", "up_proj")):
                weight.copy_(weight[:, order])
            elif any(part in name for part in ("o_proj", "down_proj", "norm")):
                weight.copy_(weight[order])
    return model


@pytest.mark.parametrize(("make", "kind", "parent"), [
    (truncated, "truncated", "a"), (rounded_to_fp8, "rounded", "a"), (rounded_to_4_bits, "rounded", "a"), (flipped, "flipped", None),
    (reversed_layers, "reordered", None), (renumbered, "renumbered", None),
])  # fmt: skip
def test_kinds_that_training_is_mistaken_for(make: Any, kind: str, parent: str | None, tmp_path: Path) -> None:
    result = outcome(tmp_path, base(), make())
    assert (result.kind, result.parent) == (kind, parent)
    assert ("the parent named was wrong" in result.evidence) == (parent is not None)


def test_parts_that_were_frozen_are_named(tmp_path: Path) -> None:
    model, still = trained(0.1)(base()), base()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(still.model.embed_tokens.weight)
        for name in ("q_proj", "o_proj"):
            getattr(model.model.layers[1].self_attn, name).weight.copy_(
                getattr(still.model.layers[1].self_attn, name).weight
            )
    result = outcome(tmp_path, base(), model)
    assert "frozen: 3 of 29 matrices are equal in both (1.q, 1.o, embed_tokens.weight)" in result.evidence.replace(
        "model.embed", "embed"
    )


def test_exact_interval_of_an_error_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clopper and Pearson by their definition: at the upper end no error among n roots has probability 0.025."""
    for kind, named in DIRECTIONS.items():
        assert named.wrong == named.wrong_roots == 0
        upper = 100 * (1 - 0.025 ** (1 / named.roots))
        assert f"0 of {named.pairs} pairs" in error_rate(kind)
        assert f"over {named.roots} roots 0 to {upper:.0f} %" in error_rate(kind)
    assert "not measured" in error_rate("narrowed")
    monkeypatch.setitem(DIRECTIONS, "moe", Named(30, 10, 4, 2))  # type: ignore[index]
    assert "4 of 30 pairs" in error_rate("moe")
    assert "over 10 roots 3 to 56 %" in error_rate("moe")  # 2 of 10: 0.0252 to 0.5561, as in tables


def test_every_kind_that_may_have_a_parent_has_a_rate() -> None:
    without = set(get_args(Kind)) - DIRECTIONS.keys()
    assert without == {
        "heads", "neurons", "rotated", "scaled", "thinned", "folded", "renumbered", "turned", "reordered", "narrowed", "regrouped", "flipped",
        "vocabulary", "untied", "unknown",
    }  # fmt: skip
