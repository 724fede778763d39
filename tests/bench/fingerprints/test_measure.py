"""From files to numbers: every layer against the model's own parameters in float64, and what is left out of them."""

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modelassay.fingerprints.curves import BEYOND, PRODUCTS, ROLES, extended, invariant
from modelassay.fingerprints.measure import curves_from, measure_layer, spans_of, summarise_model
from modelassay.models.checkpoints import Stratum, open_checkpoint
from modelassay.models.checkpoints.layers import layer_spans
from modelassay.models.reference import short_names
from modelassay.storage.store import Store
from modelassay.zoo.resolve import family_of, resolve
from support.tiny_models import NUM_LAYERS, expected_blocks, make_model, save

STRATUM = Stratum(num_layers=3, hidden_size=4, num_heads=1, num_kv_heads=1, vocab_size=9, tokenizer_key=None)


def measured(folder: Path, layer: int) -> dict[tuple[str, str], float]:
    checkpoint = open_checkpoint(folder)
    rows = measure_layer(checkpoint, layer, spans_of(checkpoint, layer), layer_spans(checkpoint)[layer])
    assert len(rows) == len({key[:2] for key in rows})
    return {(name, role): value for name, role, value in rows}


@pytest.mark.parametrize("model_type", ["qwen2", "gpt2", "gpt_neox", "llama"])
def test_every_deviation_is_that_of_the_models_own_parameters(model_type: str, tmp_path: Path) -> None:
    model: Any = make_model(model_type)
    folder = save(model, tmp_path)
    blocks = expected_blocks(model)
    spans = layer_spans(open_checkpoint(folder))
    for layer in range(NUM_LAYERS):
        values = measured(folder, layer)
        for role in ROLES:
            assert values["sigma", role] == pytest.approx(float(blocks[role, layer].double().std()), rel=1e-6)
        assert {role for name, role in values if name == "product"} == set(PRODUCTS)
        assert {role for name, role in values if name == "sigma"} == {*ROLES, *spans[layer]}
        modules = dict(model.named_modules())
        for role, ending in (("up", ("up_proj", "c_fc", "h_to_4h")), ("down", ("down_proj", "mlp.c_proj", "4h_to_h"))):
            (name,) = [name for name in modules if f".{layer}." in name and name.endswith(ending)]
            own = float(modules[name].weight.detach().double().std())
            assert values["sigma", role] == pytest.approx(own, rel=1e-6)


def test_matrices_at_hand_count_as_those_in_the_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(make_model("qwen2"), tmp_path))
    for layer, extras in enumerate(layer_spans(checkpoint)):
        spans = spans_of(checkpoint, layer)
        stored = {matrix.role: checkpoint.read(matrix) for matrix in checkpoint.matrices_in(layer)}
        (from_file, at_hand) = (measure_layer(checkpoint, layer, spans, extras, given) for given in (None, stored))
        assert [row[:2] for row in at_hand] == [row[:2] for row in from_file]
        assert [row[2] for row in at_hand] == pytest.approx([row[2] for row in from_file], rel=1e-12)
        doubled = {role: 2 * matrix for role, matrix in stored.items()}
        again = measure_layer(checkpoint, layer, spans, extras, doubled)  # what is at hand is not read
        for (metric, role, value), (_, _, twice) in zip(from_file, again, strict=True):
            if metric == "sigma":
                assert twice == pytest.approx(value * (2 if role in stored else 1), rel=1e-6)


def test_experts_count_by_the_mean_of_their_variances(tmp_path: Path) -> None:
    model: Any = make_model("qwen2_moe")  # whose shared expert could be of another size
    folder = save(model, tmp_path)
    stored = load_file(folder / "model.safetensors")
    for layer in range(NUM_LAYERS):
        values = measured(folder, layer)
        for role in ("gate", "up", "down"):
            experts = [x.double().numpy() for name, x in stored.items()
                       if f".{layer}.mlp." in name and "expert" in name and name.endswith(f"{role}_proj.weight")]  # fmt: skip
            assert len(experts) == 5
            variance = sum(x.size * x.var(ddof=1) for x in experts) / sum(x.size for x in experts)
            assert values["sigma", role] == pytest.approx(math.sqrt(variance), rel=1e-6)


def change(folder: Path, name: str, value: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = torch.full_like(tensors[name], value) if np.isscalar(value) else value(tensors[name])
    save_file(tensors, folder / "model.safetensors")


def nan_at_the_end(x: torch.Tensor) -> torch.Tensor:
    x.view(-1)[-1] = math.nan
    return x


def test_a_bias_of_zeros_and_folded_norms_have_no_curve_and_the_rest_stays(tmp_path: Path) -> None:
    folder = save(make_model("qwen2", num_hidden_layers=5), tmp_path / "m")
    curves = summarise_model(resolve(str(folder), store=Store(tmp_path)), name="m").curves
    assert set(curves.extra) == {*BEYOND, *PRODUCTS}
    for layer in range(5):
        change(folder, f"model.layers.{layer}.self_attn.k_proj.bias", 0.0)
        change(folder, f"model.layers.{layer}.input_layernorm.weight", 1.0)
    change(folder, "model.layers.3.mlp.up_proj.weight", nan_at_the_end)
    part = summarise_model(resolve(str(folder), store=Store(tmp_path)), name="m").curves
    assert set(curves.extra) - set(part.extra) == {"k-bias", "norm-1", "up"}
    for role in part.extra:
        np.testing.assert_array_equal(part.extra[role], curves.extra[role])
    assert extended(curves, part).value == pytest.approx(1, abs=1e-9)
    assert invariant(curves, part).value == pytest.approx(1, abs=1e-9)


def test_a_pruned_value_matrix_is_told_with_its_tensor(tmp_path: Path) -> None:
    folder = save(make_model("qwen2"), tmp_path / "m")
    change(folder, "model.layers.1.self_attn.v_proj.weight", 0.0)
    curves = summarise_model(resolve(str(folder), store=Store(tmp_path)), name="m").curves
    assert curves.faults == {"v": "layer 1: v is constant (model.layers.1.self_attn.v_proj.weight)"}
    assert list(curves.sigma) == ["q", "k", "o"]
    assert {"qk-norm", "gate"} <= set(curves.extra)
    values = measured(folder, 1)
    assert values["sigma", "v"] == 0.0
    assert ("product", "qk-norm") in values
    assert ("product", "vo-norm") not in values
    change(folder, "model.layers.0.self_attn.o_proj.weight", nan_at_the_end)
    faults = summarise_model(resolve(str(folder), store=Store(tmp_path)), name="m").curves.faults
    assert faults["o"].startswith("layer 0: o holds NaN or infinite weights")


@pytest.mark.parametrize(("num_layers", "heads", "groups"), [(1, 4, 2), (2, 1, 1), (3, 6, 1)])
def test_shallow_models_and_one_head_are_measured_though_nothing_can_be_said(
    num_layers: int, heads: int, groups: int, tmp_path: Path
) -> None:
    model = make_model("qwen2", num_hidden_layers=num_layers, num_attention_heads=heads, num_key_value_heads=groups)
    curves = summarise_model(resolve(str(save(model, tmp_path)), store=Store(tmp_path)), name="m").curves
    assert set(curves.extra) == {*BEYOND, *PRODUCTS}
    score = extended(curves, curves)
    assert math.isnan(score.value)
    assert f"{num_layers} layers" in str(score.reason)


def test_roles_that_a_layer_lacks_have_no_curve_and_the_order_of_lines_does_not_matter() -> None:
    values = [("sigma", role, layer, 1.0 + layer) for role in ROLES for layer in range(3)]
    values += [("sigma", "up", layer, 5.0 - layer) for layer in range(3)] + [
        ("sigma", "down", 0, 1.0),
        ("sigma", "down", 2, 1.0),
    ]
    curves = curves_from(values[::-1], name="m", stratum=STRATUM, family="f", weights_key="k")
    assert {role: curve.tolist() for role, curve in curves.extra.items()} == {"up": [5.0, 4.0, 3.0]}
    assert curves.sigma["q"].tolist() == [1.0, 2.0, 3.0]
    assert (curves.weights_key, curves.family) == ("k", "f")
    assert list(curves_from(values[1:], name="m", stratum=STRATUM, family=None).sigma) == ["k", "v", "o"]


def test_names_and_families_of_every_kind_of_reference() -> None:
    references = ["zoo:smoke/base", "zoo:smoke/base+depth", "hf:org/model@abc", "models/mine/", "zoo:mini-1"]
    assert short_names(references) == ["base", "base+depth", "model", "mine", "mini-1"]
    assert short_names([*references, "other/mini-1"]) == [*references, "other/mini-1"]
    assert family_of("zoo:smoke/base+depth", None) == "smoke/base"
    assert family_of("zoo:smoke/base+depth", "declared") == "declared"
    assert family_of("models/mine", None) is None


class Watch:
    """Stands for a meter that times nothing."""

    def microbatch(self, stage: str, **labels: Any) -> AbstractContextManager[None]:
        return nullcontext()


def test_layers_read_by_threads_give_the_same_numbers_and_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(make_model("qwen2", num_hidden_layers=7), tmp_path / "model")
    change(folder, "model.layers.2.self_attn.k_proj.weight", 0.5)
    change(folder, "model.layers.5.self_attn.k_proj.weight", math.nan)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(summarise_model(resolve(str(folder), store=Store(tmp_path)), name="m"))
    one, many = (summary.curves for summary in found)
    assert one.weights_key == many.weights_key
    assert one.faults == many.faults
    assert list(one.faults) == ["k"]
    assert "layer 2" in one.faults["k"]
    for role, curve in one.sigma.items():
        np.testing.assert_array_equal(curve, many.sigma[role])
    assert found[0].sizes == found[1].sizes
