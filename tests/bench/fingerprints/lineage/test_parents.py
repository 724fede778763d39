"""Ingredients of mixtures are recovered with their weights, and nobody else is named."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelassay.fingerprints.lineage.parents import Parents, parents
from modelassay.models.checkpoints import Checkpoint, open_checkpoint
from support.tiny_models import make_model, save


def model(seed: int, **changes: int) -> Any:
    made: Any = make_model("llama", **changes)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape) + (weight.ndim == 1))
    return made


def combined(*terms: tuple[float, Any]) -> Any:
    result = model(0)
    states = [(share, dict(each.named_parameters())) for share, each in terms]
    with torch.no_grad():
        for name, weight in result.named_parameters():
            weight.copy_(sum(share * state[name].double() for share, state in states))
    return result


def moved(parent: Any, size: float, seed: int) -> Any:
    return combined((1.0, parent), (size, model(seed)))


def opened(folder: Path, **models: Any) -> dict[str, Checkpoint]:
    return {name: open_checkpoint(save(each, folder / name)) for name, each in models.items()}


def result_of(folder: Path, child: Any, **candidates: Any) -> tuple[Parents, dict[str, float]]:
    checkpoints = opened(folder, child=child, **candidates)
    result = parents(checkpoints["child"], [checkpoints[name] for name in candidates])
    return result, {Path(parent.name).name: parent.weight for parent in result.parents}


@pytest.mark.parametrize("shares", [(0.7, 0.3), (0.5, 0.5), (0.2, 0.5, 0.3), (1.3, -0.3)])
def test_weights_of_a_linear_mixture_of_strangers(shares: Sequence[float], tmp_path: Path) -> None:
    models = [model(seed) for seed in range(1, 5)]
    child = combined(*zip(shares, models, strict=False))
    result, weights = result_of(tmp_path, child, a=models[0], b=models[1], c=models[2], d=models[3])
    expected = dict(zip("abc", shares, strict=False))
    assert weights == pytest.approx(expected, abs=1e-5)
    assert result.residual < 1e-9
    assert {Path(name).name for name, _ in result.excluded} == set("abcd") - set(expected)
    assert "linear mixture" in result.sentence
    assert "is not excluded" in result.sentence


def test_alpha_of_a_mixture_of_two_relatives(tmp_path: Path) -> None:
    """Both are within 10 % of their root; the differences decide, and the root, which lies near too, is not named."""
    root = model(1)
    first, second = moved(root, 0.1, 2), moved(root, 0.1, 3)
    _, weights = result_of(
        tmp_path, combined((0.35, first), (0.65, second)), root=root, first=first, second=second, other=model(4)
    )
    assert weights == pytest.approx({"first": 0.35, "second": 0.65}, abs=1e-4)


def test_an_average_is_told_from_a_root_that_lies_nearer_than_either(tmp_path: Path) -> None:
    """The two moved apart, so that beside the root one alone explains under half of what it leaves."""
    root = model(1)
    first = moved(root, 0.1, 2)
    second = combined((1.0, root), (-0.05, model(2)), (0.1, model(3)))
    result, weights = result_of(
        tmp_path, combined((0.5, first), (0.5, second)), root=root, first=first, second=second, other=model(4)
    )
    assert weights == pytest.approx({"first": 0.5, "second": 0.5}, abs=1e-4)
    assert result.residual < 1e-9


def test_a_child_has_one_parent_where_its_sibling_stands_beside(tmp_path: Path) -> None:
    root = model(1)
    result, weights = result_of(
        tmp_path, moved(root, 0.3, 2), sibling=moved(root, 0.2, 3), root=root, stranger=model(4)
    )
    assert weights == pytest.approx({"root": 1.0}, abs=0.02)
    assert result.residual == pytest.approx(0.3**2 / 1.09, abs=0.01)
    reasons = {Path(name).name: reason for name, reason in result.excluded}
    assert "of what the parents leave" in reasons["sibling"]
    assert "is needed" in reasons["stranger"]


def test_an_ingredient_that_is_not_at_hand_stays_in_the_residual(tmp_path: Path) -> None:
    here, absent = model(1), model(2)
    result, weights = result_of(tmp_path, combined((0.6, here), (0.4, absent)), here=here, stranger=model(3))
    assert weights == pytest.approx({"here": 0.6}, abs=0.03)
    assert result.residual == pytest.approx(0.16 / 0.52, abs=0.02)
    assert "whether between the two or mixed in" in result.sentence


def test_strangers_have_no_parents_and_other_shapes_are_excluded(tmp_path: Path) -> None:
    result, weights = result_of(tmp_path, model(1), x=model(2), y=model(3), deep=model(4, num_hidden_layers=5))
    assert (weights, result.residual) == ({}, 1.0)
    assert "no candidate's matrices" in result.sentence
    assert any("layers 3 and 5" in reason for _, reason in result.excluded)


def test_the_rotated_copy_of_an_ingredient_is_turned_back(tmp_path: Path) -> None:
    """Neurons of one number give the turn; norms had been folded into the matrices before it."""
    a, b = model(1), model(2)
    turned = combined((1.0, a))
    size = turned.config.hidden_size
    turn = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0])
    with torch.no_grad():
        for name, weight in turned.named_parameters():
            layer = name.rsplit(".", 3)[0]
            norms = dict(turned.named_parameters())
            if any(part in name for part in ("q_proj", "k_proj", "v_proj")) and weight.ndim == 2:
                scale = norms[f"{layer}.input_layernorm.weight"]
                weight.copy_((weight * scale).double() @ turn)
            elif any(part in name for part in ("gate_proj", "up_proj")) and weight.ndim == 2:
                weight.copy_((weight * norms[f"{layer}.post_attention_layernorm.weight"]).double() @ turn)
            elif any(part in name for part in ("o_proj", "down_proj")) and weight.ndim == 2:
                weight.copy_(turn.T @ weight.double())
            elif "embed" in name:
                weight.copy_(weight.double() @ turn)
        for name, weight in turned.named_parameters():
            if "norm" in name:
                weight.fill_(1)
    result, weights = result_of(tmp_path, turned, a=a, b=b)
    assert weights == pytest.approx({"a": 1.0}, abs=0.01)
    assert result.residual < 0.01


@pytest.mark.parametrize("fill", [0.0, float("nan")])
def test_hostile_weights_name_nobody(fill: float, tmp_path: Path) -> None:
    broken = model(1)
    with torch.no_grad():
        for layer in broken.model.layers:
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                getattr(layer.self_attn, name).weight.fill_(fill)
    result, weights = result_of(tmp_path, broken, x=model(2))
    assert (weights, result.residual) == ({}, 1.0)
    assert "zero or not finite" in result.excluded[0][1]
