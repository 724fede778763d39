"""Sketches: the order of hidden dimensions, exact where numbers are random, and blind to nothing but them."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, spearmanr
from transformers import LlamaConfig, LlamaForCausalLM

from modelassay.fingerprints.independence import sketch as sketches
from modelassay.fingerprints.independence.blocks import NUM_LAYERS, SampledModel
from modelassay.fingerprints.independence.sketch import UNREAD, Sketch, alike, correlations, sketch_of
from modelassay.models.checkpoints import open_checkpoint
from support.tiny_models import make_model, save

WIDTH = 40


def drawn(rng: np.random.Generator, size: int, *, unread: tuple[int, ...] = ()) -> Sketch:
    ranks = np.stack([rng.permutation(size) for _ in range(NUM_LAYERS)]).astype(np.uint16)
    ranks[list(unread)] = UNREAD
    return Sketch(width=size, ranks_FM=ranks, num_bytes=0)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
    )
    made = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in made.model.layers:
            size = torch.rand(WIDTH) + 0.2
            layer.self_attn.q_proj.weight.mul_(size)
            layer.mlp.gate_proj.weight.mul_(size)
            layer.mlp.up_proj.weight.mul_(size)
            layer.post_attention_layernorm.weight.copy_(torch.rand(WIDTH) + 0.5)
    return made


def of(model: LlamaForCausalLM, folder: Path) -> Sketch:
    model.save_pretrained(folder)
    return sketch_of(SampledModel(open_checkpoint(str(folder))))


def test_ranks_are_those_of_the_energy_that_reads_each_dimension(model: LlamaForCausalLM, tmp_path: Path) -> None:
    sketch = of(model, tmp_path)
    assert sketch.width == WIDTH
    sampled = SampledModel(open_checkpoint(str(tmp_path)))
    rows = sketches.places_of(sampled, sampled, 32, most=128, seed=0)[0]
    for number, at in enumerate(sampled.layers):
        layer = model.model.layers[at]
        norm = layer.post_attention_layernorm.weight.double()
        weights = {
            "q": layer.self_attn.q_proj.weight.double(), "gate": layer.mlp.gate_proj.weight.double() * norm, "up": layer.mlp.up_proj.weight.double() * norm,
        }  # fmt: skip
        total = torch.zeros(WIDTH, dtype=torch.float64)
        for role, weight in weights.items():
            begin, count = rows[at, role]
            energy = weight[begin : begin + count].square().mean(0)
            total += energy / energy.sum()
        expected = total.argsort().argsort()
        assert sketch.ranks_FM[number].tolist() == expected.tolist()


def test_a_copy_is_found_and_a_renumbered_one_is_not(model: LlamaForCausalLM, tmp_path: Path) -> None:
    sketch = of(model, tmp_path / "a")
    same = alike(sketch, sketch)
    assert same is not None
    assert same.correlation == 1.0
    # the chance of the one order among all of them, times the layers it is corrected for
    assert same.log10_p == pytest.approx(math.log10(NUM_LAYERS) - math.lgamma(WIDTH + 1) / math.log(10))
    order = np.random.default_rng(5).permutation(WIDTH)
    renumbered = Sketch(width=WIDTH, ranks_FM=np.ascontiguousarray(sketch.ranks_FM[:, order]), num_bytes=0)
    moved = alike(sketch, renumbered)
    assert moved is not None
    assert moved.log10_p > -3
    noisy = LlamaForCausalLM(model.config)
    noisy.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in noisy.parameters():
            weight.add_(0.05 * weight.std() * torch.randn_like(weight))
    child = alike(sketch, of(noisy, tmp_path / "b"))
    assert child is not None
    assert child.log10_p < -15


def test_p_is_the_share_of_orders_that_are_as_near() -> None:
    """Every pair of orders of five dimensions in one layer, counted."""
    identity = np.arange(5)

    def one(order: tuple[int, ...]) -> Sketch:
        ranks = np.full((NUM_LAYERS, 5), UNREAD, dtype=np.uint16)
        ranks[1] = order
        return Sketch(width=5, ranks_FM=ranks, num_bytes=0)

    orders = list(itertools.permutations(range(5)))
    counts = {order: sum(order[i] > order[j] for i, j in itertools.combinations(range(5), 2)) for order in orders}
    for order in orders[::7]:
        result = alike(one(tuple(identity)), one(order))
        assert result is not None
        assert result.layer == 1
        assert result.num_inversions == counts[order]
        share = sum(count <= counts[order] for count in counts.values()) / len(orders)
        assert 10**result.log10_p == pytest.approx(min(1.0, NUM_LAYERS * share))
        assert result.correlation == pytest.approx(kendalltau(identity, order).statistic)
        back = alike(one(order), one(tuple(identity)))
        assert back is not None
        assert back.log10_p == result.log10_p


def test_of_independent_numberings_no_more_are_called_than_the_level() -> None:
    rng = np.random.default_rng(11)
    p = [10**result.log10_p for _ in range(1500) if (result := alike(drawn(rng, 24), drawn(rng, 24))) is not None]
    assert len(p) == 1500
    for level in (0.01, 0.05, 0.2):
        assert np.mean(np.array(p) <= level) <= level + 3 * math.sqrt(level / 1500)
    assert np.mean(np.array(p) <= 0.2) > 0.1  # four layers share the level: not much is given away


def test_correlations_are_spearmans_in_the_nearest_layer_that_both_have() -> None:
    rng = np.random.default_rng(2)
    own, others = (
        drawn(rng, 33, unread=(2,)),
        [drawn(rng, 33, unread=each) for each in ((), (0,), (0, 1, 3), (0, 1, 2, 3))],
    )
    got = correlations(own, np.stack([other.ranks_FM for other in others]))
    for value, other in zip(got, others, strict=True):
        layers = [at for at in range(NUM_LAYERS) if own.ranks_FM[at, 0] != UNREAD and other.ranks_FM[at, 0] != UNREAD]
        expected = max((spearmanr(own.ranks_FM[at], other.ranks_FM[at]).statistic for at in layers), default=-1.0)
        assert value == pytest.approx(expected, abs=1e-5)
    assert alike(own, others[3]) is None
    assert alike(own, drawn(rng, 34)) is None


def test_equal_sizes_are_ordered_by_chance_and_not_by_number() -> None:
    """Of two models whose dimensions are all alike the orders say nothing."""
    values = [np.concatenate([np.zeros(60), np.full(4, size)]) for size in (1.0, 2.0)]
    one, other = (sketches._ranks(each) for each in values)
    assert abs(spearmanr(one[:60], other[:60]).statistic) < 0.4
    assert sketches._ranks(values[0]).tolist() == one.tolist()


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "gemma"])
def test_layouts_that_store_inputs_first_or_fuse_roles_have_sketches(model_type: str, tmp_path: Path) -> None:
    """In GPT-2 the columns of q, gate and up are outputs, and those of o are the hidden dimensions."""
    torch.manual_seed(4)
    made = make_model(model_type)
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_(std=0.02 if weight.dim() > 1 else 1.0)
    sketch = sketch_of(SampledModel(open_checkpoint(save(made, tmp_path / "a"))))
    assert not sketch.is_empty
    same = alike(sketch, sketch_of(SampledModel(open_checkpoint(save(made, tmp_path / "b")))))
    assert same is not None
    assert same.correlation == 1.0


def test_what_cannot_be_read_is_left_out(model: LlamaForCausalLM, tmp_path: Path) -> None:
    broken = LlamaForCausalLM(model.config)
    with torch.no_grad():
        for layer in broken.model.layers[:1]:
            for weight in (layer.self_attn.q_proj, layer.mlp.gate_proj, layer.mlp.up_proj):
                weight.weight.fill_(math.nan)
    sketch = of(broken, tmp_path)
    assert [bool((row == UNREAD).all()) for row in sketch.ranks_FM] == [True, False, False, False]
    assert not sketch.is_empty
    with pytest.raises(ValueError, match="no permutation"):
        Sketch(width=4, ranks_FM=np.zeros((NUM_LAYERS, 4), dtype=np.uint16), num_bytes=0)
