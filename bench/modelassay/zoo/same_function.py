"""The same function in weights of other shapes or in another basis: rotations, another vocabulary, untied embeddings, more heads.

Unlike `transforms`, what is done here may change config.json and the tokenizer. Logits stay the same up to rounding and, where
the vocabulary was renumbered or has grown, up to the numbers of its rows.
"""

# V = rows of the embedding, D = hidden dimensions

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from transformers import PreTrainedModel

from modelassay.errors import CheckpointError
from modelassay.zoo.transforms import converted, fold_norms, require_known, tensors_of


def rotate_stream(model: PreTrainedModel, generator: Generator, *, block: int | None) -> PreTrainedModel:
    """Write the residual stream in another orthonormal basis, norms folded and embeddings untied.

    RMS norm without gains commutes with rotations. Ashkboos et al. 2404.00456 (QuaRot), 2401.15024 (SliceGPT).

    Args:
        model: a Qwen2, Llama or Mistral.
        generator: draws the rotation, uniform over the orthogonal group.
        block: dimensions that are turned among themselves; all of them if None.

    Raises:
        CheckpointError: an unknown kind of model.
    """
    require_known(model, "rotating the residual stream")
    model = untie(model, generator)
    fold_norms(model, generator)
    stack, causal_model = _stack(model), _untyped(model)
    causal_model.lm_head.weight.mul_(stack.norm.weight)
    stack.norm.weight.fill_(1)
    size = int(stack.embed_tokens.weight.shape[1])
    blocks = [_orthogonal(min(block or size, size - at), generator) for at in range(0, size, block or size)]
    turn_DD: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    for weight in (stack.embed_tokens.weight, *_reading(model)):
        weight.copy_(weight.double() @ turn_DD.to(weight.device))
    for weight in _writing(model):
        weight.copy_(turn_DD.T.to(weight.device) @ weight.double())
    return model


def flip_dimensions(model: PreTrainedModel, generator: Generator, *, fraction: float) -> PreTrainedModel:
    """Change the sign of a share of the hidden dimensions in everything that reads or writes them.

    RMS norm ignores signs, so nothing else changes, in tied models too. Signs of single weights are another thing, which does
    change the function: `alterations.flip_weights`.

    Raises:
        CheckpointError: an unknown kind of model.
    """
    require_known(model, "flipping hidden dimensions")
    size = int(model.config.hidden_size)
    sign_D = torch.ones(size)
    sign_D[torch.randperm(size, generator=generator)[: round(fraction * size)]] = -1
    reading = {id(weight): weight for weight in (_stack(model).embed_tokens.weight, *_reading(model))}  # one where tied
    for weight in reading.values():
        weight.mul_(sign_D.to(weight))
    for weight in _writing(model):
        weight.mul_(sign_D.to(weight).view(-1, *[1] * (weight.ndim - 1)))
    return model


def untie(model: PreTrainedModel, generator: Generator) -> PreTrainedModel:
    """Give the output matrix a copy of the embedding of its own; nothing where it has one."""
    causal_model = _untyped(model)
    if causal_model.lm_head.weight is causal_model.model.embed_tokens.weight:
        causal_model.lm_head.weight = nn.Parameter(causal_model.model.embed_tokens.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return model


def repeat_key_value_heads(model: PreTrainedModel, generator: Generator) -> PreTrainedModel:
    """Give each query head a copy of its key and value heads of its own: grouped-query attention becomes multi-head attention.

    Raises:
        CheckpointError: an unknown kind of model, or one that has as many key-value heads as query heads already.
    """
    require_known(model, "repeating key and value heads")
    config: Any = model.config
    groups, per_group = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
    if per_group == 1:
        raise CheckpointError(
            f"{model.name_or_path}: config.json: num_key_value_heads is {groups}, as many as query heads; take a model with fewer"
        )
    changed = {}
    for name, weight in model.state_dict().items():
        if ".k_proj." in name or ".v_proj." in name:
            heads = weight.view(groups, -1, *weight.shape[1:])
            changed[name] = heads.repeat_interleave(per_group, dim=0).reshape(-1, *weight.shape[1:])
    return rebuilt(model, changed, num_key_value_heads=config.num_attention_heads)


def renumber_rows(model: PreTrainedModel, row_of_V: Tensor) -> PreTrainedModel:
    """Return the model with row ``row_of_V[i]`` of the old embedding, and of the output matrix, as row i of the new.

    The ids of special tokens in its configurations are not touched: `vocabulary` does both.
    """
    names = ("model.embed_tokens.weight", "lm_head.weight")
    changed = {name: weight[row_of_V] for name, weight in model.state_dict().items() if name in names}
    return rebuilt(model, changed, vocab_size=len(row_of_V))


def pad_rows(model: PreTrainedModel, generator: Generator, *, num_rows: int) -> PreTrainedModel:
    """Add rows that no token has, drawn with the mean and spread of each dimension, as resizing an embedding does.

    The logits of the old rows stay; the new ones have logits of their own.
    """
    names = ("model.embed_tokens.weight", "lm_head.weight")
    changed, size = {}, 0
    drawn = None
    for name, weight in model.state_dict().items():
        if name in names:
            drawn = torch.randn(num_rows, weight.shape[1], generator=generator) if drawn is None else drawn
            spread = drawn.to(weight) * weight.float().std(0).to(weight) + weight.float().mean(0).to(weight)
            changed[name] = torch.cat([weight, spread])
            size = len(changed[name])
    return rebuilt(model, changed, vocab_size=size)


def rebuilt(model: PreTrainedModel, changed: Mapping[str, Tensor], **sizes: Any) -> PreTrainedModel:
    """Return a model of the same class with other sizes in its configuration and some tensors replaced."""
    config: Any = type(model.config).from_dict({**model.config.to_dict(), **sizes})
    config.head_dim = int(_stack(model).layers[0].self_attn.head_dim)
    config.name_or_path = model.name_or_path
    new: PreTrainedModel = type(model)(config)
    weights = {name: weight for name, weight in {**model.state_dict(), **changed}.items() if name in new.state_dict()}
    converted(new, dtype=model.dtype, device=model.device).load_state_dict(weights)
    new.generation_config = model.generation_config
    return new


def _orthogonal(size: int, generator: Generator) -> Tensor:
    """Float64 [size, size], uniform over the orthogonal group: QR with the signs of R's diagonal (Mezzadri 2007)."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    turn: Tensor = q * r.diagonal().sign()
    return turn


def _reading(model: PreTrainedModel) -> Iterator[Tensor]:
    """Weights whose columns are hidden dimensions, the embedding apart."""
    for layer in _stack(model).layers:
        attention, mlp = layer.self_attn, layer.mlp
        for module in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            yield module.weight
    yield _untyped(model).lm_head.weight


def _writing(model: PreTrainedModel) -> Iterator[Tensor]:
    """Weights and biases whose rows are hidden dimensions."""
    for layer in _stack(model).layers:
        yield from (*tensors_of(layer.self_attn.o_proj), *tensors_of(layer.mlp.down_proj))


def _stack(model: PreTrainedModel) -> Any:
    return _untyped(model).model


def _untyped(model: PreTrainedModel) -> Any:
    return model


BY_NAME: Mapping[str, Callable[..., PreTrainedModel]] = {
    "stream": rotate_stream, "signs": flip_dimensions, "untied": untie, "mha": repeat_key_value_heads, "padded": pad_rows,
}  # fmt: skip
