"""`attn_implementation="modelassay"` for transformers: what it hands to `attention`, and which masks that can express.

transformers builds a mask once per forward pass through the function registered under the implementation's name, and gives
every layer what it returned. Here that is spans_B2S, not a matrix. The mask arrives as a function of indices, so all kinds
of masks (causal, sliding, chunked, packed, padded) are reduced to spans by evaluating it a few rows at a time, and one that
is not an interval per row is refused. Cost: num_queries * num_keys booleans computed per forward pass, O(S) of them held.
"""

# B = batch, S = queries, J = keys, H = query heads, K = key-value heads, D = head dimension

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modelassay_kernels.attention import attention_over_spans
from modelassay_kernels.attention.spans import make_spans

NAME = "modelassay"
BLOCK_ELEMENTS = 1 << 20
"""Mask entries evaluated at a time: 1 MiB of booleans."""


def register_attention() -> None:
    """Make ``attn_implementation="modelassay"`` known to transformers; calling it again changes nothing.

    Afterwards ``model.set_attn_implementation("modelassay")``, or the argument of ``from_pretrained``, is all it takes.
    Padding, causal and sliding masks, soft caps and grouped heads come from the model; what `attention` cannot do
    (dropout, attention sinks, position biases, masks that are no interval of keys per query) is a ValueError when met.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, spans_mask)


def spans_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Callable[..., Tensor] | None = None,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **unused: Any,
) -> Tensor:
    """Return the mask transformers asks for as spans: int32 [1 or batch_size, 2, q_length].

    ``mask_function(batch, head, query, key)`` takes absolute indices that broadcast; ``attention_mask`` is true for the
    real tokens of [batch_size, keys from position 0].

    Raises:
        ValueError: some query's keys are no interval, or the function is one that only works index by index.
    """
    from transformers.masking_utils import causal_mask_function

    if use_vmap:
        raise ValueError(
            "attn_implementation='modelassay': this model adds a mask function of its own, which may not be an interval "
            "of keys per query; use attn_implementation='eager'"
        )
    query_S = torch.arange(q_length, device=device) + q_offset
    key_J = torch.arange(kv_length, device=device) + kv_offset
    real_BJ = None
    if attention_mask is not None and not bool(attention_mask.all()):
        real_BJ = _real_keys(attention_mask.to(device=device, dtype=torch.bool), key_J)
    plain: object = causal_mask_function
    if mask_function is None or mask_function is plain:
        if real_BJ is None and not isinstance(q_offset, Tensor) and q_offset + q_length == kv_offset + kv_length:
            return make_spans(q_length, kv_length, causal=True, device=torch.device(device))
        ends_S = (query_S - kv_offset + 1).clamp(0, kv_length)
        keys_B2 = torch.tensor([[0, kv_length]], device=device) if real_BJ is None else _interval(real_BJ)
        first_B1, end_B1 = keys_B2[:, :1], keys_B2[:, 1:]
        end_BS = end_B1.minimum(ends_S)
        return torch.stack([first_B1.expand_as(end_BS), end_BS], dim=1).to(torch.int32)
    index_B = torch.arange(batch_size, device=device).view(-1, 1, 1, 1)
    head = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    rows = max(1, BLOCK_ELEMENTS // max(1, batch_size * kv_length))
    parts = []
    for query_P in torch.split(query_S, rows):
        seen = mask_function(index_B, head, query_P.view(1, 1, -1, 1), key_J.view(1, 1, 1, -1))
        seen_BPJ = seen.expand(-1, -1, query_P.numel(), kv_length)[:, 0]
        parts.append(_interval(seen_BPJ if real_BJ is None else seen_BPJ & real_BJ[:, None]))
    return torch.cat(parts, dim=1).mT.to(torch.int32).contiguous()


def _real_keys(real_BP: Tensor, key_J: Tensor) -> Tensor:
    """Look up each key's position; positions past the mask's end are not there yet."""
    inside_J = key_J < real_BP.shape[1]
    return real_BP[:, key_J.clamp(max=max(real_BP.shape[1] - 1, 0))] & inside_J


def _interval(seen: Tensor) -> Tensor:
    """[first, end) of the true entries along the last dimension; (0, 0) where there are none."""
    count = seen.sum(-1)
    first = seen.to(torch.uint8).argmax(-1)
    last = seen.shape[-1] - 1 - seen.to(torch.uint8).flip(-1).argmax(-1)
    empty = count == 0
    first, end = first.masked_fill(empty, 0), (last + 1).masked_fill(empty, 0)
    if bool((end - first != count).any()):
        raise ValueError(
            "attn_implementation='modelassay': the keys that some query sees are no interval (holes in attention_mask, or a "
            "mask of the model's own); pad on one side only, or use attn_implementation='eager'"
        )
    return torch.stack([first, end], dim=-1)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return a layer's output [B, S, H, D], as transformers calls its attention functions, and no weights.

    Raises:
        ValueError: dropout, a sink, a position bias, or a mask that did not come from `spans_mask`.
    """
    _refuse(dropout > 0, "dropout in attention has no second derivative here", "call model.eval(), or set it to 0")
    _refuse(s_aux is not None, "attention sinks are not supported", "use attn_implementation='eager'")
    _refuse(position_bias is not None, "position biases are not supported", "use attn_implementation='eager'")
    _refuse(bool(kwargs.get("output_attentions")), "there are no weights to return", "drop output_attentions")
    num_queries, num_keys = query.shape[2], key.shape[2]
    if attention_mask is None:
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        _refuse(
            causal and num_queries not in {1, num_keys},
            f"{num_queries} queries, {num_keys} keys and no mask",
            "pass a mask",
        )
        attention_mask = make_spans(num_queries, num_keys, causal=causal, window=sliding_window, device=query.device)
    _refuse(
        attention_mask.ndim != 3 or attention_mask.dtype != torch.int32,
        f"got a mask of shape {tuple(attention_mask.shape)} and {attention_mask.dtype}, made elsewhere",
        "pass attention_mask as [batch, tokens], or use attn_implementation='eager'",
    )
    o_BHSD = attention_over_spans(query, key, value, attention_mask, scale=scaling, softcap=softcap)
    return o_BHSD.transpose(1, 2).contiguous(), None


def _refuse(wrong: bool, what: str, instead: str) -> None:
    if wrong:
        raise ValueError(f"attn_implementation='modelassay': {what}; {instead}")
