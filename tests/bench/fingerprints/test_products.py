"""Products against full singular value decompositions, and what no change of basis inside attention may move."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelassay.fingerprints import products as module
from modelassay.fingerprints.curves import PRODUCTS
from modelassay.fingerprints.products import product_curves, summarise
from modelassay.models.checkpoints import open_checkpoint
from support.tiny_models import expected_blocks, make_model, save

Array = np.ndarray
SHAPES = [(1, 1, 1, 1), (1, 1, 5, 3), (2, 1, 3, 7), (6, 3, 5, 17), (4, 4, 2, 9), (3, 1, 8, 5), (8, 2, 1, 6)]
"""Query heads, key-value heads, head dimension, hidden size: one head, one group, more rows than columns and fewer."""


def layer(heads: int, groups: int, dim: int, width: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {
        "q": (heads * dim, width),
        "k": (groups * dim, width),
        "v": (groups * dim, width),
        "o": (width, heads * dim),
    }
    return {role: rng.normal(scale=rng.uniform(0.5, 2), size=shape) for role, shape in shapes.items()}


def oracle(m: dict[str, Array], heads: int, groups: int, dim: int) -> dict[str, float]:
    """Every head's product formed in full, [D, D], and all singular values of all heads taken together."""
    summaries = {}
    for name in ("qk", "vo"):
        values: list[float] = []
        for head in range(heads):
            query = slice(head * dim, (head + 1) * dim)
            group = head // (heads // groups)
            key = slice(group * dim, (group + 1) * dim)
            product = m["q"][query].T @ m["k"][key] if name == "qk" else m["o"][:, query] @ m["v"][key]
            values += list(np.linalg.svd(product, compute_uv=False)[:dim])
        s2 = np.square(values)
        summaries |= {
            f"{name}-norm": s2.sum() ** 0.5,
            f"{name}-top": s2.max() ** 0.5,
            f"{name}-rank": s2.sum() ** 2 / (s2**2).sum(),
        }
    return summaries


@pytest.mark.parametrize(("heads", "groups", "dim", "width"), SHAPES)
def test_summary_is_that_of_the_singular_values(heads: int, groups: int, dim: int, width: int) -> None:
    m = layer(heads, groups, dim, width)
    summary = summarise(m, head_dim=dim)
    assert tuple(summary) == PRODUCTS
    assert summary == pytest.approx(oracle(m, heads, groups, dim), rel=1e-9)


def rotation(rng: np.random.Generator, dim: int) -> Array:
    """Rotate each pair (i, i + dim / 2), as rotary embeddings do: what commutes with them."""
    half = dim // 2
    angle = rng.uniform(0, 2 * np.pi, half)
    turn = np.zeros((dim, dim))
    at = np.arange(half)
    turn[at, at], turn[at, at + half], turn[at + half, at], turn[at + half, at + half] = (
        np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    )  # fmt: skip
    return turn


HEADS, GROUPS, DIM, WIDTH = 6, 3, 4, 11


def rotated(m: dict[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    q, k = m["q"].reshape(HEADS, DIM, WIDTH), m["k"].reshape(GROUPS, DIM, WIDTH)
    turns = np.stack([rotation(rng, DIM) for _ in range(GROUPS)])
    return {**m, "q": (turns.repeat(HEADS // GROUPS, 0) @ q).reshape(-1, WIDTH), "k": (turns @ k).reshape(-1, WIDTH)}


def rescaled(m: dict[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    by_group = np.exp(rng.normal(size=GROUPS))
    per_query, per_key = (by_group.repeat(n)[:, None] for n in (HEADS // GROUPS * DIM, DIM))
    return {"q": m["q"] * per_query, "k": m["k"] / per_key, "v": m["v"] * per_key, "o": m["o"] / per_query.T}


def permuted(m: dict[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    """Groups in another order with their queries, and the queries of each group in another order."""
    groups = rng.permutation(GROUPS)
    per_group = HEADS // GROUPS
    heads = np.concatenate([group * per_group + rng.permutation(per_group) for group in groups])
    return {
        "q": m["q"].reshape(HEADS, DIM, WIDTH)[heads].reshape(-1, WIDTH),
        "o": m["o"].reshape(WIDTH, HEADS, DIM)[:, heads].reshape(WIDTH, -1),
        **{role: m[role].reshape(GROUPS, DIM, WIDTH)[groups].reshape(-1, WIDTH) for role in "kv"},
    }


def hidden(m: dict[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    order, sign = rng.permutation(WIDTH), rng.choice([-1.0, 1.0], WIDTH)
    return {**{role: m[role][:, order] * sign for role in "qkv"}, "o": m["o"][order] * sign[:, None]}


@pytest.mark.parametrize("change", [rotated, rescaled, permuted, hidden])
def test_what_leaves_the_function_as_it_is_leaves_the_products(
    change: Callable[[dict[str, Array], np.random.Generator], dict[str, Array]],
) -> None:
    m = layer(HEADS, GROUPS, DIM, WIDTH, seed=1)
    changed = change(m, np.random.default_rng(2))
    assert max(np.abs(changed[role] - m[role]).max() for role in m) > 0.1
    assert summarise(changed, head_dim=DIM) == pytest.approx(summarise(m, head_dim=DIM), rel=1e-9)


def test_queries_of_another_group_are_another_function() -> None:
    m = layer(HEADS, GROUPS, DIM, WIDTH, seed=1)
    wrong = {**m, "q": m["q"].reshape(HEADS, DIM, WIDTH)[::-1].reshape(-1, WIDTH)}
    before, after = (summarise(x, head_dim=DIM) for x in (m, wrong))
    assert abs(after["qk-norm"] / before["qk-norm"] - 1) > 1e-4  # rounding is 1e-15
    assert after["vo-norm"] == before["vo-norm"]


def test_a_pruned_head_counts_nothing_and_a_pruned_layer_is_zero() -> None:
    m = layer(4, 2, 3, 8)
    for role, keep in (("q", 2), ("o", 2)):
        m[role] = m[role].copy()
        (m[role][keep * 3 :] if role == "q" else m[role][:, keep * 3 :])[...] = 0
    small = {"q": m["q"][:6], "k": m["k"][:3], "v": m["v"][:3], "o": m["o"][:, :6]}
    assert summarise(m, head_dim=3) == pytest.approx(summarise(small, head_dim=3), rel=1e-12)
    zero = summarise({role: 0 * x for role, x in m.items()}, head_dim=3)
    assert zero == dict.fromkeys(PRODUCTS, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # inf times 0, as the caller will say
def test_weights_that_are_no_numbers_give_no_numbers(bad: float) -> None:
    m = layer(4, 2, 3, 8)
    m["v"][0, 0] = bad
    summary = summarise(m, head_dim=3)
    assert np.isfinite([summary["qk-norm"], summary["qk-top"], summary["qk-rank"]]).all()
    assert not any(np.isfinite(summary[name]) and summary[name] > 0 for name in ("vo-norm", "vo-top", "vo-rank"))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_rank_knows_no_scale(scale: float) -> None:
    m = layer(4, 2, 3, 8)
    before, after = summarise(m, head_dim=3), summarise({role: x * scale for role, x in m.items()}, head_dim=3)
    for name in PRODUCTS:
        assert after[name] == pytest.approx(before[name] * (1 if "rank" in name else scale**2), rel=1e-9)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "phi3", "mixtral"])
def test_of_a_checkpoint_however_its_matrices_are_stored(model_type: str, tmp_path: Path) -> None:
    model: Any = make_model(model_type)
    blocks = {key: block.double().numpy() for key, block in expected_blocks(model).items()}
    checkpoint = open_checkpoint(save(model, tmp_path))
    for at in range(checkpoint.num_layers):
        expected = oracle({role: blocks[role, at] for role in "qkvo"}, checkpoint.num_heads, checkpoint.num_kv_heads,
                          checkpoint.head_dim)  # fmt: skip
        assert product_curves(checkpoint, at) == pytest.approx(expected, rel=1e-9)


def test_of_a_checkpoint_in_bfloat16_nothing_is_rounded_again(tmp_path: Path) -> None:
    model: Any = make_model("qwen2").to(torch.bfloat16)
    blocks = {key: block.double().numpy() for key, block in expected_blocks(model).items()}
    checkpoint = open_checkpoint(save(model, tmp_path))
    expected = oracle({role: blocks[role, 2] for role in "qkvo"}, checkpoint.num_heads, checkpoint.num_kv_heads,
                      checkpoint.head_dim)  # fmt: skip
    assert product_curves(checkpoint, 2) == pytest.approx(expected, rel=1e-9)


def test_weights_whose_fourth_powers_vanish_have_a_rank() -> None:
    """The rank is of ratios, whatever their size."""
    generator = np.random.default_rng(0)
    matrices = {role: generator.normal(size=(8, 8)) for role in "qkvo"}
    sizes = (1.0, 1e-60)
    ranks = [summarise({role: size * matrix for role, matrix in matrices.items()}, head_dim=8) for size in sizes]
    for name in ranks[0]:
        if name.endswith("-rank"):
            assert ranks[1][name] == pytest.approx(ranks[0][name], rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 2.0**70, 2.0**-90])
def test_wide_models_in_fp32_agree_with_float64(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where squares leave fp32, and with one dimension that outweighs the rest."""
    monkeypatch.setattr(module, "WIDE", 64)
    m = {role: (scale * x).astype(np.float32) for role, x in layer(6, 3, 16, 300).items()}
    m["q"][:, 7] *= 1000
    m["o"][11] *= 1000
    expected = oracle({role: x.astype(np.float64) for role, x in m.items()}, 6, 3, 16)
    assert summarise(m, head_dim=16) == pytest.approx(expected, rel=1e-5)
