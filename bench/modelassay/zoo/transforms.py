"""What is done to a model's weights without training: what an owner does to serve it, and a thief to hide it.

Noise, rounding, pruning and merging work on any causal language model; the rest needs an attention it knows (Qwen2, Llama,
Mistral: rotary, no norm on queries or keys). Everything runs in place, in the model's own precision, and is determined by
the generator it is given, which is always the CPU's.
"""

# G = key-value heads (groups), R = query heads of a group, D = elements of a head, H = hidden size, I = inner size of an FFN

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from modelassay.errors import CheckpointError

KNOWN = ("qwen2", "llama", "mistral")
"""Values of config.json's `model_type` whose attention and feed-forward network are taken apart."""


def add_noise(model: PreTrainedModel, generator: Generator, *, relative_std: float) -> PreTrainedModel:
    """Add Gaussian noise to every matrix, its std relative to that of the matrix's elements; vectors stay."""
    for weight in model.parameters():
        if weight.ndim >= 2:
            noise = torch.randn(weight.shape, generator=generator).to(weight.device)
            weight.add_(noise, alpha=relative_std * float(weight.float().std()))
    return model


def round_to_int8(model: PreTrainedModel, generator: Generator) -> PreTrainedModel:
    """Round each linear layer to 8 bits and back: symmetric, one scale per output channel, max |w| / 127.

    Embeddings, norms, biases and a separate output matrix stay, as common quantisers leave them.
    """
    for layer in linear_layers(model):
        weight = layer.weight.double()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny) / 127
        layer.weight.copy_((weight / scale).round() * scale)
    return model


def prune(model: PreTrainedModel, generator: Generator, *, fraction: float) -> PreTrainedModel:
    """Set to zero the ``fraction`` of each linear layer's weights that are smallest in magnitude."""
    for layer in linear_layers(model):
        magnitude = layer.weight.abs().flatten()
        smallest = torch.argsort(magnitude, stable=True)[: round(fraction * magnitude.numel())]
        layer.weight.view(-1)[smallest] = 0
    return model


def merge(model: PreTrainedModel, other: PreTrainedModel) -> PreTrainedModel:
    """Put the mean of two models of one shape into the first.

    Raises:
        CheckpointError: their tensors differ in names or shapes.
    """
    weights, other_weights = dict(model.named_parameters()), dict(other.named_parameters())
    if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in other_weights.items()}:
        raise CheckpointError(
            f"{model.name_or_path} and {other.name_or_path}: tensors of other names or shapes; merge models of one shape"
        )
    for name, weight in weights.items():
        weight.copy_((weight.double() + other_weights[name].to(weight.device).double()) / 2)
    return model


def remove_layers(model: PreTrainedModel, generator: Generator, *, num_layers: int) -> PreTrainedModel:
    """Take ``num_layers`` layers out of the middle.

    Raises:
        CheckpointError: the model has no more than that, or is of an unknown kind.
    """
    require_known(model, "taking layers out")
    config: Any = model.config
    total = config.num_hidden_layers
    if num_layers >= total:
        raise CheckpointError(
            f"{model.name_or_path}: cannot take {num_layers} layers out of {total}; take a deeper model"
        )
    first = (total - num_layers) // 2
    indices = [index for index in range(total) if not first <= index < first + num_layers]
    stack: Any = model.model
    stack.layers = nn.ModuleList(stack.layers[index] for index in indices)
    for index, layer in enumerate(stack.layers):
        layer.self_attn.layer_idx = index
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[index] for index in indices]
    config.num_hidden_layers = len(indices)
    return model


def upcycle(model: PreTrainedModel, generator: Generator, *, num_experts: int, experts_per_token: int,
            relative_std: float) -> PreTrainedModel:  # fmt: skip
    """Return a mixture of experts made from a dense model: every expert a noisy copy of its FFN, the router random.

    Attention, norms and embeddings are copied. Llama and Mistral become Mixtral, whose expert weights sum to 1. Qwen2
    becomes Qwen2-MoE, which also has a shared expert behind a gate: that is an exact copy behind a gate of zero (so it
    counts half), and the routed down projections are halved, so that the whole adds up to the dense FFN again. But for
    the noise of ``relative_std`` on the experts, the logits are those of the dense model. Komatsuzaki et al. 2212.05055.

    Raises:
        CheckpointError: a kind of model that is not known, or one with biases Mixtral cannot hold.
    """
    require_known(model, "upcycling")
    sparse = _sparse_shell(model, num_experts, experts_per_token)
    source = dict(model.named_parameters())
    for name, weight in sparse.named_parameters():
        if ".mlp." not in name:
            weight.copy_(source[name])
    router_std = float(model.config.initializer_range)
    for dense, layer in zip(model.model.layers, sparse.model.layers, strict=True):
        shared = getattr(layer.mlp, "shared_expert", None)
        if shared is not None:
            shared.load_state_dict(dense.mlp.state_dict())
            layer.mlp.shared_expert_gate.weight.zero_()
        gate, up, down = (getattr(dense.mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
        layer.mlp.gate.weight.copy_(router_std * torch.randn(layer.mlp.gate.weight.shape, generator=generator))
        for expert in range(num_experts):
            gate_up = torch.cat([_noisy(gate, relative_std, generator), _noisy(up, relative_std, generator)])
            layer.mlp.experts.gate_up_proj[expert] = gate_up
            layer.mlp.experts.down_proj[expert] = _noisy(down, relative_std, generator) * (
                1.0 if shared is None else 0.5
            )
    return sparse


def _noisy(weight: Tensor, relative_std: float, generator: Generator) -> Tensor:
    noise = torch.randn(weight.shape, generator=generator).to(weight.device)
    return weight + relative_std * weight.float().std() * noise


def _sparse_shell(model: PreTrainedModel, num_experts: int, experts_per_token: int) -> PreTrainedModel:
    """A mixture of experts of the model's sizes and precision, its weights not yet set."""
    config: Any = model.config
    dropped = {"model_type", "architectures", "transformers_version", "dtype", "torch_dtype"}
    common = {key: value for key, value in config.to_dict().items() if key not in dropped}
    shell: PreTrainedModel
    if config.model_type == "qwen2":
        shell = Qwen2MoeForCausalLM(  # type: ignore[no-untyped-call]
            Qwen2MoeConfig(
                **common, num_experts=num_experts, num_experts_per_tok=experts_per_token, norm_topk_prob=True,
                moe_intermediate_size=config.intermediate_size, shared_expert_intermediate_size=config.intermediate_size,
            )
        )  # fmt: skip
    else:
        biased = [key for key in ("attention_bias", "mlp_bias") if common.pop(key, False)]
        if biased:
            raise CheckpointError(
                f"{model.name_or_path}: config.json: {biased[0]} is true, and Mixtral has no such biases; "
                "upcycle a model without them"
            )
        common.pop("pretraining_tp", None)
        shell = MixtralForCausalLM(  # type: ignore[no-untyped-call]
            MixtralConfig(**common, num_local_experts=num_experts, num_experts_per_tok=experts_per_token)
        )
    shell.name_or_path = model.name_or_path
    return converted(shell, dtype=model.dtype, device=model.device)


def converted(model: PreTrainedModel, **how: Any) -> PreTrainedModel:
    """Return the model in evaluation mode after ``model.to(**how)``, which transformers leaves without a usable type."""
    untyped: Any = model
    ready: PreTrainedModel = untyped.to(**how).eval()
    return ready


def permute_heads(model: PreTrainedModel, generator: Generator) -> PreTrainedModel:
    """Reorder the key-value heads of each layer together with their query heads, and the query heads within each.

    Raises:
        CheckpointError: an unknown kind of model, or one with a single head.
    """
    for attention, groups, per_group, head_dim in _attentions(model, "permuting heads"):
        group_order = _shuffled(groups, generator)
        if groups * per_group == 1:
            raise CheckpointError(f"{model.name_or_path}: one head has no other order; take a model with more")
        query_order = torch.cat([group * per_group + _shuffled(per_group, generator) for group in group_order.tolist()])
        queries, keys = _rows(query_order, head_dim), _rows(group_order, head_dim)
        for projection, rows in ((attention.q_proj, queries), (attention.k_proj, keys), (attention.v_proj, keys)):
            for tensor in tensors_of(projection):
                tensor.copy_(tensor[rows.to(tensor.device)])
        output = attention.o_proj.weight
        output.copy_(output[:, queries.to(output.device)])
    return model


def permute_neurons(model: PreTrainedModel, generator: Generator) -> PreTrainedModel:
    """Reorder the inner units of each feed-forward network.

    Raises:
        CheckpointError: an unknown kind of model.
    """
    require_known(model, "permuting neurons")
    for layer in model.model.layers:
        order = _shuffled(layer.mlp.down_proj.in_features, generator).to(layer.mlp.down_proj.weight.device)
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
            for tensor in tensors_of(projection):
                tensor.copy_(tensor[order])
        layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, order])
    return model


def rotate_queries_and_keys(model: PreTrainedModel, generator: Generator) -> PreTrainedModel:
    """Turn each rotary pair of dimensions (i, i + D/2) by an angle of its own, the same in a group's queries and keys.

    Rotary embedding turns the same plane by an angle that depends on the position, and rotations of a plane commute: the
    scores stay, and the norm of every pair of rows too, so that a sigma-curve does. Exact but for rounding, which in bf16
    is noise of 0.2 % on each weight.

    Raises:
        CheckpointError: an unknown kind of model, or one that turns only part of a head.
    """
    for attention, groups, per_group, head_dim in _attentions(model, "rotating queries and keys"):
        angle = 2 * math.pi * torch.rand(groups, 1, head_dim // 2, 1, generator=generator, dtype=torch.float64)
        for projection, heads in ((attention.q_proj, per_group), (attention.k_proj, 1)):
            for tensor in tensors_of(projection):
                cos, sin = angle.cos().to(tensor.device), angle.sin().to(tensor.device)
                halves = tensor.double().view(groups, heads, 2, head_dim // 2, -1)
                first, second = halves[:, :, 0], halves[:, :, 1]
                turned = torch.stack([cos * first - sin * second, sin * first + cos * second], dim=2)
                tensor.copy_(turned.reshape(tensor.shape))
    return model


def rescale_queries_and_keys(model: PreTrainedModel, generator: Generator) -> PreTrainedModel:
    """Multiply the queries of each group by 1/4, 1/2, 2 or 4 and divide its keys by the same, biases too.

    Powers of two, so that it is exact in every floating-point format, short of overflow and underflow.

    Raises:
        CheckpointError: an unknown kind of model.
    """
    for attention, groups, per_group, head_dim in _attentions(model, "rescaling queries and keys"):
        scale = _powers_of_two(groups, generator)
        _scale_rows(attention.q_proj, scale.repeat_interleave(per_group * head_dim))
        _scale_rows(attention.k_proj, 1 / scale.repeat_interleave(head_dim))
    return model


def rescale_values_and_output(model: PreTrainedModel, generator: Generator) -> PreTrainedModel:
    """Multiply the values of each key-value head by 1/4, 1/2, 2 or 4 and divide the output's columns by the same.

    Exact as `rescale_queries_and_keys` is.

    Raises:
        CheckpointError: an unknown kind of model.
    """
    for attention, groups, per_group, head_dim in _attentions(model, "rescaling values and output"):
        scale = _powers_of_two(groups, generator)
        _scale_rows(attention.v_proj, scale.repeat_interleave(head_dim))
        output = attention.o_proj.weight
        output.div_(scale.repeat_interleave(per_group * head_dim).to(output))
    return model


def permute_hidden(model: PreTrainedModel, generator: Generator) -> PreTrainedModel:
    """Reorder the dimensions of the residual stream and flip the sign of half of them, the same way throughout.

    RMS norm treats dimensions alike and ignores signs, so everything that reads the stream or writes to it can change its
    order with it. Exact up to the order of sums. What compares weights in their stored order sees noise.

    Raises:
        CheckpointError: an unknown kind of model.
    """
    require_known(model, "permuting the residual stream")
    stack: Any = model.model
    size = int(model.config.hidden_size)
    order = _shuffled(size, generator)
    sign = torch.randint(2, (size,), generator=generator) * 2.0 - 1
    causal_model: Any = model
    reading = {stack.embed_tokens.weight, causal_model.lm_head.weight}  # one where they are tied
    for layer in stack.layers:
        mlp, attention = layer.mlp, layer.self_attn
        reading |= {
            module.weight
            for module in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj)
        }
        for output in (*tensors_of(attention.o_proj), *tensors_of(mlp.down_proj)):
            output.copy_(output[order] * sign.to(output).view(-1, *[1] * (output.ndim - 1)))
    for weight in reading:
        weight.copy_(weight[:, order] * sign.to(weight))
    for norm in (
        stack.norm,
        *(norm for layer in stack.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)),
    ):
        norm.weight.copy_(norm.weight[order])
    return model


def fold_norms(model: PreTrainedModel, generator: Generator) -> PreTrainedModel:
    """Move the gains of each layer's two norms into the matrices that read from them and leave ones behind.

    What tools do before they quantise or rotate a model. The last norm stays: its reader may be the embedding too.

    Raises:
        CheckpointError: an unknown kind of model.
    """
    require_known(model, "folding norms")
    stack: Any = model.model
    for layer in stack.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            for reader in readers:
                reader.weight.mul_(norm.weight)
            norm.weight.fill_(1)
    return model


def _powers_of_two(count: int, generator: Generator) -> Tensor:
    return torch.tensor([0.25, 0.5, 2.0, 4.0])[torch.randint(4, (count,), generator=generator)]


def _scale_rows(projection: nn.Linear, scale: Tensor) -> None:
    for tensor in tensors_of(projection):
        tensor.mul_(scale.to(tensor).view(-1, *[1] * (tensor.ndim - 1)))


def tensors_of(projection: nn.Linear) -> list[Tensor]:
    """Return the weight of a linear layer, and its bias where it has one."""
    return [projection.weight] if projection.bias is None else [projection.weight, projection.bias]


def _rows(heads: Tensor, head_dim: int) -> Tensor:
    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()


def _shuffled(count: int, generator: Generator) -> Tensor:
    """Return a random order of ``count`` things that is not the present one where there is another."""
    order = torch.randperm(count, generator=generator)
    while count > 1 and torch.equal(order, torch.arange(count)):
        order = torch.randperm(count, generator=generator)
    return order


def linear_layers(model: PreTrainedModel) -> Iterator[nn.Linear]:
    """Yield the linear layers within the stack: neither embeddings nor what turns the last state into logits."""
    stack: Any = model.base_model
    yield from (module for module in stack.modules() if isinstance(module, nn.Linear))


def _attentions(model: PreTrainedModel, what: str) -> Iterator[tuple[Any, int, int, int]]:
    """Yield (attention, G, R, D) of each layer."""
    require_known(model, what)
    config: Any = model.config
    stack: Any = model.model
    head_dim = int(stack.layers[0].self_attn.head_dim)
    if 2 * stack.rotary_emb.inv_freq.numel() != head_dim:
        raise CheckpointError(
            f"{model.name_or_path}: only part of each head is rotary, which {what} does not support; choose another model"
        )
    groups = int(config.num_key_value_heads)
    for layer in stack.layers:
        yield layer.self_attn, groups, int(config.num_attention_heads) // groups, head_dim


def require_known(model: PreTrainedModel, what: str) -> None:
    """Refuse a kind of model that is not in `KNOWN`; ``what`` is what was to be done to it."""
    kind = model.config.model_type
    if kind not in KNOWN:
        raise CheckpointError(
            f"{model.name_or_path}: config.json: model_type {kind!r}: {what} is defined for {', '.join(KNOWN)}; "
            "take such a model, or another transformation"
        )


_BY_NAME: Mapping[str, Callable[..., PreTrainedModel]] = {
    "noise": add_noise, "int8": round_to_int8, "prune": prune, "depth": remove_layers, "moe": upcycle,
    "heads": permute_heads, "neurons": permute_neurons, "rotate": rotate_queries_and_keys,
    "scale-qk": rescale_queries_and_keys, "scale-vo": rescale_values_and_output, "hidden": permute_hidden,
    "fold": fold_norms,
}  # fmt: skip


def apply(model: PreTrainedModel, name: str, *, seed: int, settings: Mapping[str, Any]) -> PreTrainedModel:
    """Do what ``name`` says (a `MadeBy` of one parent without training) to a model and return it."""
    with torch.no_grad():
        return _BY_NAME[name](model, torch.Generator().manual_seed(seed), **settings)
