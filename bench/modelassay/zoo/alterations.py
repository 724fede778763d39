"""What changes a model's function without training: rounding to 4 bits and to FP8, low rank, fewer or more of its parts.

Everything that is rounded is stored again in the model's own precision, as `transforms.round_to_int8` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import PreTrainedModel

from modelassay.errors import CheckpointError
from modelassay.zoo.same_function import rebuilt
from modelassay.zoo.transforms import linear_layers, require_known

FP8_MAX = 448.0
"""Largest finite number of e4m3 (Micikevicius et al. 2209.05433)."""


def mix(model: PreTrainedModel, other: PreTrainedModel, *, share: float) -> PreTrainedModel:
    """Put into the first model ``1 - share`` of itself and ``share`` of the other.

    Raises:
        CheckpointError: their tensors differ in names or shapes.
    """
    weights, others = dict(model.named_parameters()), dict(other.named_parameters())
    if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in others.items()}:
        raise CheckpointError(
            f"{model.name_or_path} and {other.name_or_path}: tensors of other names or shapes; mix models of one shape"
        )
    for name, weight in weights.items():
        weight.copy_((1 - share) * weight.double() + share * others[name].to(weight.device).double())
    return model


def round_to_int4(model: PreTrainedModel, generator: Generator, *, group: int) -> PreTrainedModel:
    """Round each linear layer to 4 bits and back: symmetric, one scale per output channel and ``group`` inputs, max |w| / 7."""
    for layer in linear_layers(model):
        for columns in torch.split(layer.weight, group, dim=1):
            weight = columns.double()
            scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny) / 7
            columns.copy_((weight / scale).round() * scale)
    return model


def round_to_fp8(model: PreTrainedModel, generator: Generator) -> PreTrainedModel:
    """Round each linear layer to FP8 (e4m3) and back, one scale per tensor, which takes its largest weight to 448."""
    for layer in linear_layers(model):
        weight = layer.weight.float()
        scale = weight.abs().max().clamp(min=torch.finfo(torch.float32).tiny) / FP8_MAX
        layer.weight.copy_((weight / scale).to(torch.float8_e4m3fn).float() * scale)
    return model


def truncate(model: PreTrainedModel, generator: Generator, *, rank: float) -> PreTrainedModel:
    """Keep of each linear layer the share ``rank`` of its singular values, the largest."""
    for layer in linear_layers(model):
        left, values, right = torch.linalg.svd(layer.weight.double(), full_matrices=False)
        kept = max(1, round(rank * len(values)))
        layer.weight.copy_((left[:, :kept] * values[:kept]) @ right[:kept])
    return model


def flip_weights(model: PreTrainedModel, generator: Generator, *, fraction: float) -> PreTrainedModel:
    """Change the sign of a random share of the entries of every matrix, which changes the function; vectors stay."""
    for weight in model.parameters():
        if weight.ndim >= 2:
            flipped = torch.rand(weight.shape, generator=generator).to(weight.device) < fraction
            weight.copy_(torch.where(flipped, -weight, weight))
    return model


def narrow_hidden(model: PreTrainedModel, generator: Generator, *, fraction: float) -> PreTrainedModel:
    """Take away the hidden dimensions that the embedding uses least, by the norm of its columns; the others keep their order.

    As many more as it takes to leave a multiple of the number of heads, which configurations demand.

    Raises:
        CheckpointError: an unknown kind of model.
    """
    require_known(model, "taking hidden dimensions out")
    config, embedding = _untyped(model.config), _untyped(model.get_input_embeddings())
    size = int(config.hidden_size)
    num_kept = (size - round(fraction * size)) // config.num_attention_heads * config.num_attention_heads
    kept = _largest(embedding.weight.float().norm(dim=0), num_kept)
    changed = {}
    for name, weight in model.state_dict().items():
        part = name.rsplit(".", 2)[-2]
        if (
            part in {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
            and weight.ndim == 2
            or part in {"embed_tokens", "lm_head"}
        ):
            changed[name] = weight[:, kept]
        elif part in {"o_proj", "down_proj"} or "norm" in part:
            changed[name] = weight[kept]
    return rebuilt(model, changed, hidden_size=len(kept))


def narrow_networks(model: PreTrainedModel, generator: Generator, *, fraction: float) -> PreTrainedModel:
    """Take away of each feed-forward network the neurons with the smallest product of norms; the others keep their order.

    Raises:
        CheckpointError: an unknown kind of model.
    """
    require_known(model, "taking neurons out")
    stack: Any = model.base_model
    changed: dict[str, Tensor] = {}
    size = int(model.config.intermediate_size)
    for number, layer in enumerate(stack.layers):
        mlp = layer.mlp
        norms = [mlp.gate_proj.weight.float().norm(dim=1), mlp.up_proj.weight.float().norm(dim=1)]
        kept = _largest(norms[0] * norms[1] * mlp.down_proj.weight.float().norm(dim=0), size - round(fraction * size))
        prefix = f"model.layers.{number}.mlp"
        for part in ("gate_proj", "up_proj"):
            changed |= {
                f"{prefix}.{part}.{name}": tensor[kept] for name, tensor in getattr(mlp, part).state_dict().items()
            }
        changed[f"{prefix}.down_proj.weight"] = mlp.down_proj.weight[:, kept]
    return rebuilt(model, changed, intermediate_size=size - round(fraction * size))


def repeat_layers(model: PreTrainedModel, generator: Generator, *, num_layers: int) -> PreTrainedModel:
    """Put a second copy of the ``num_layers`` layers in the middle behind them (Kim et al. 2312.15166).

    Raises:
        CheckpointError: the model has fewer layers, or is of an unknown kind.
    """
    total = int(model.config.num_hidden_layers)
    if num_layers > total:
        raise CheckpointError(f"{model.name_or_path}: cannot repeat {num_layers} layers of {total}; repeat fewer")
    first = (total - num_layers) // 2
    return _restacked(model, [*range(first + num_layers), *range(first, total)])


def reverse_layers(model: PreTrainedModel, generator: Generator) -> PreTrainedModel:
    """Put the layers in the opposite order.

    Raises:
        CheckpointError: an unknown kind of model.
    """
    return _restacked(model, list(reversed(range(model.config.num_hidden_layers))))


def _restacked(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A model whose layer i is the layer ``layers[i]`` of the old one."""
    require_known(model, "putting layers in another order")
    config, stack = model.config, _untyped(model.base_model)
    changed = {
        f"model.layers.{new}.{name}": tensor
        for new, old in enumerate(layers)
        for name, tensor in stack.layers[old].state_dict().items()
    }
    sizes: dict[str, Any] = {"num_hidden_layers": len(layers)}
    if getattr(config, "layer_types", None) is not None:
        sizes["layer_types"] = [config.layer_types[old] for old in layers]
    rest = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("model.layers.")}
    return rebuilt(model, {**rest, **changed}, **sizes)


def _untyped(part: Any) -> Any:
    return part


def _largest(values: Tensor, count: int) -> Tensor:
    """Places of the largest values, ascending."""
    return torch.argsort(values, descending=True, stable=True)[:count].sort().values


BY_NAME: Mapping[str, Callable[..., PreTrainedModel]] = {
    "int4": round_to_int4, "fp8": round_to_fp8, "svd": truncate, "flips": flip_weights, "narrow": narrow_hidden,
    "thin": narrow_networks, "deepen": repeat_layers, "reversed": reverse_layers,
}  # fmt: skip
