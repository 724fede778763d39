"""`attn_implementation="modelassay"` for transformers: what it hands to `attention`, and which masks that can express.

transformers builds a mask once per forward pass through the function registered under the implementation's name, and gives
every layer what it returned. Here that is a `SpanMask`, not a matrix. The mask arrives as a function of indices, so all kinds
of masks (causal, sliding, chunked, packed, padded, a model's own) are reduced to spans by evaluating it a few rows at a time
with transformers' own `sdpa_mask`, and one that is not an interval per row is refused. Cost: num_queries * num_keys booleans
computed per forward pass, O(S) of them held.

What reaches a layer is understood, listed in `HARMLESS`, or refused by its name: nothing is swallowed.
"""

# B = batch, S = queries, J = keys, H = query heads, K = key-value heads, D = head dimension

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from modelassay_kernels.attention import attend_in_range
from modelassay_kernels.attention.eager_check import check_module
from modelassay_kernels.attention.span_mask import SpanMask, refuse
from modelassay_kernels.attention.spans import END, FIRST, make_spans, unwrapped

NAME = "modelassay"
BLOCK_ELEMENTS = 1 << 20
"""Mask entries evaluated at a time: 1 MiB of booleans."""

HARMLESS = {
    "cache_position": "a cache has been updated by it before attention is called",
    "deterministic": "which backward kernel flash attention takes; these are always deterministic",
    "is_first_iteration": "whether generation begins here",
    "labels": "what the loss is computed from",
    "logits_to_keep": "how many positions the head is applied to",
    "num_items_in_batch": "what the loss is divided by",
    "output_hidden_states": "what the model returns beside",
    "output_router_logits": "what the model returns beside",
    "past_key_values": "the keys and values arrive with the cache's",
    "position_embeddings": "queries and keys have been rotated by them",
    "position_ids": "queries and keys have been rotated by them, and the mask is made from those that restart",
    "return_dict": "in what the model returns its results",
    "token_type_ids": "embedded, or part of the mask, before attention is called",
    "mm_token_type_ids": "part of the mask before attention is called",
    "use_cache": "whether the model keeps keys and values",
}
"""Arguments that attention may leave alone, and why: whatever their value, eager attention gives the same numbers."""

REFUSED = {
    "s_aux": "attention sinks are not supported",
    "position_bias": "position biases are not supported",
    "output_attentions": "there are no weights to return",
    "cu_seq_lens_q": "packed sequences arrive as cu_seq_lens_q, which only flash attention reads",
    "cu_seq_lens_k": "packed sequences arrive as cu_seq_lens_k, which only flash attention reads",
}
"""What is said of arguments that are known and not supported."""


def register_attention() -> None:
    """Make ``attn_implementation="modelassay"`` known to transformers; calling it again changes nothing.

    Afterwards ``model.set_attn_implementation("modelassay")``, or the argument of ``from_pretrained``, is all it takes.
    Padding, causal, sliding and packed masks, dynamic and static caches, soft caps and grouped heads come from the model; what
    `attention` cannot do (dropout, attention sinks, position biases, sparse attention, masks that are no interval of keys per
    query, any argument that it does not know) is a ValueError when met.

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
    attention_mask: Tensor | SpanMask | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: Any,
) -> SpanMask:
    """Return the mask transformers asks for as spans.

    ``mask_function(batch, head, query, key)`` takes absolute indices that broadcast, or with ``use_vmap`` one by one;
    ``attention_mask`` is true for the real tokens of [batch_size, keys from position 0], or a mask that was made before and
    is returned as it is (`generate` makes masks for static caches ahead).

    Raises:
        ValueError: some query's keys are no interval, or an attention_mask of another shape.
    """
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

    if isinstance(attention_mask, SpanMask):
        return attention_mask
    if attention_mask is not None:
        _check_padding(attention_mask, batch_size)
        attention_mask = attention_mask.to(device=device, dtype=torch.bool)
    kind: object = causal_mask_function if mask_function is None else mask_function
    if kind not in {causal_mask_function, bidirectional_mask_function}:
        rows = max(1, BLOCK_ELEMENTS // max(1, batch_size * kv_length))
        parts = [
            _interval(
                sdpa_mask(
                    batch_size, min(rows, q_length - start), kv_length, q_offset + start, kv_offset, mask_function,
                    attention_mask, allow_is_causal_skip=False, use_vmap=use_vmap, device=device,
                )[:, 0]
            )
            for start in range(0, q_length, rows)
        ]  # fmt: skip
        return SpanMask(torch.cat(parts, dim=1).mT.to(torch.int32).contiguous(), batch_size, kv_length)
    end_S = torch.full((q_length,), kv_length, device=device)
    if kind is causal_mask_function:
        end_S = (torch.arange(1, q_length + 1, device=device) + q_offset - kv_offset).clamp(0, kv_length)
    keys_B2 = torch.tensor([[0, kv_length]], device=device)
    if attention_mask is not None:
        keys_B2 = _interval(_real_keys(attention_mask, torch.arange(kv_length, device=device) + kv_offset))
        keys_B2 = keys_B2[:1] if bool(unwrapped(keys_B2 == keys_B2[:1]).all()) else keys_B2
    end_BS = keys_B2[:, 1:].minimum(end_S)
    spans_B2S = torch.stack([keys_B2[:, :1].minimum(end_BS), end_BS], dim=1).to(torch.int32)
    sees = attention_mask is None and not isinstance(q_offset, Tensor) and q_offset >= kv_offset
    return SpanMask(spans_B2S, batch_size, kv_length, has_blind=False if sees else None)  # None waits for a GPU


def _check_padding(attention_mask: Tensor, batch_size: int) -> None:
    if attention_mask.ndim != 2 or attention_mask.shape[0] != batch_size:
        refuse(
            f"got an attention_mask of shape {tuple(attention_mask.shape)} and {attention_mask.dtype} for a batch of "
            f"{batch_size}",
            "pass attention_mask as [batch, tokens], true for real tokens, or use attn_implementation='eager'",
        )


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
    if bool(unwrapped(end - first != count).any()):
        refuse(
            "the keys that some query sees are no interval (holes in attention_mask, or a mask of the model's own)",
            "pad on one side only, or use attn_implementation='eager'",
        )
    return torch.stack([first, end], dim=-1)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: SpanMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return a layer's output [B, S, H, D], as transformers calls its attention functions, and no weights.

    A mask says everything about what is seen, as in eager attention, which ignores ``is_causal`` and ``sliding_window``;
    without one they may not hide a key, but ``is_causal`` of the call itself is followed. A query that sees no key, such as
    padding on the left, gets the mean of all values, as in eager attention: layers that mix positions otherwise
    (RecurrentGemma's) let it reach real tokens. Its derivatives are those of the mean: none by queries and keys.

    Raises:
        ValueError: dropout, an argument that is not understood, a mask that did not come from `spans_mask` or is for other
            lengths, or a module whose eager attention gives other numbers.
    """
    if dropout > 0:
        refuse("dropout in attention has no second derivative here", "call model.eval(), or set it to 0")
    _check_options(options)
    heads = (query.shape[1], key.shape[1], query.shape[3], value.shape[3])
    check_module(module, heads, scaling, softcap, query.device, masked=attention_mask is not None)
    if attention_mask is None:
        spans = _unmasked_spans(module, query, key, is_causal, sliding_window)
    else:
        spans = _spans_of(attention_mask, query, key)
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    width = max(query.shape[3], value.shape[3])
    q, k, v = (functional.pad(x, (0, width - x.shape[3])) if x.shape[3] < width else x for x in (query, key, value))
    o_BHSD = attend_in_range(q, k, v, spans, scale=scale, softcap=softcap)[..., : value.shape[3]]
    if attention_mask is not None and attention_mask.has_blind:
        mean_BH1D = value.mean(2, keepdim=True).repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        blind_B1S1 = (spans[:, FIRST] >= spans[:, END])[:, None, :, None]
        o_BHSD = torch.where(blind_B1S1, mean_BH1D, o_BHSD)
    return o_BHSD.transpose(1, 2).contiguous(), None


def _check_options(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value is None or name in HARMLESS or (name == "output_attentions" and value is False):
            continue
        refuse(REFUSED.get(name, f"the model passes its attention an argument {name!r} that is not understood here"))


def _unmasked_spans(
    module: torch.nn.Module, query: Tensor, key: Tensor, is_causal: bool | None, sliding_window: int | None
) -> Tensor:
    """Spans where the model made no mask: eager attention then sees every key, so whatever hides one needs to be asked for."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    name = type(module).__name__
    causal = is_causal
    if causal is None:
        causal = False
        if num_queries > 1 and getattr(module, "is_causal", True):
            refuse(
                f"{name} passes no mask, and eager attention would see later keys where others would not",
                "pass attention_mask, of ones if nothing is padded",
            )
    if causal and num_queries not in {1, num_keys}:
        refuse(f"got {num_queries} queries, {num_keys} keys and no mask", "pass a mask")
    if sliding_window is not None and sliding_window < num_keys:
        refuse(f"{name} passes a window of {sliding_window} for {num_keys} keys and no mask", "pass attention_mask")
    return make_spans(num_queries, num_keys, causal=causal, device=query.device)


def _spans_of(attention_mask: SpanMask, query: Tensor, key: Tensor) -> Tensor:
    if not isinstance(attention_mask, SpanMask):
        described = (
            f"{tuple(attention_mask.shape)} and {attention_mask.dtype}" if isinstance(attention_mask, Tensor) else ""
        )
        refuse(
            f"got a mask of shape {described}, made elsewhere"
            if described
            else f"got a mask of {type(attention_mask)}",
            "pass attention_mask as [batch, tokens], or use attn_implementation='eager'",
        )
    expected = (query.shape[0], 1, query.shape[2], key.shape[2])
    if attention_mask.shape[0] not in {1, query.shape[0]} or tuple(attention_mask.shape)[2:] != expected[2:]:
        refuse(f"got a mask for {tuple(attention_mask.shape)}, where queries and keys are {expected}")
    return attention_mask.spans
