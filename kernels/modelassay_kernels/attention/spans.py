"""Which keys a query sees: one interval per query, [first, end), in an int32 tensor spans_B2S.

Causality, sliding windows, padding on either side, packed sequences and caches all are such intervals, so masks cost
O(S) memory, every kernel has one rule for them, and what lies outside the intervals of a whole tile is skipped. A batch
of size one in the spans serves every sequence of the inputs' batch. A query with an empty interval sees nothing: its
output is zero and no gradient comes from it.
"""

# B = batch, S = queries, J = keys, P = a range of keys

from __future__ import annotations

import torch
from torch import Tensor

from modelassay_kernels.products import capturing
from modelassay_kernels.remembered import Remembered

FIRST, END = 0, 1
"""The rows of spans_B2S."""


def make_spans(
    num_queries: int,
    num_keys: int,
    *,
    causal: bool,
    window: int | None = None,
    lengths_B: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Return the spans of ordinary attention: int32 [1 or B, 2, num_queries].

    The queries are the last ``num_queries`` positions of the keys, so query s stands at s + num_keys - num_queries.
    Causal: keys up to its own position, of which the last ``window``. Not causal: all keys, or those less than
    ``window`` positions away on either side. Of sequence b only the first ``lengths_B[b]`` keys are there.

    >>> make_spans(4, 4, causal=True, window=2).tolist()
    [[[0, 0, 1, 2], [1, 2, 3, 4]]]
    """
    position_S = torch.arange(num_queries, dtype=torch.int32, device=device) + (num_keys - num_queries)
    end_S = position_S + 1 if causal else torch.full_like(position_S, num_keys)
    first_S = torch.zeros_like(position_S)
    if window is not None:
        first_S = position_S - (window - 1)
        end_S = end_S.minimum(position_S + window)
    spans_12S = torch.stack([first_S, end_S])[None].clamp(0, num_keys)
    return spans_12S if lengths_B is None else spans_12S.minimum(lengths_B.to(torch.int32)[:, None, None])


_checked = Remembered[bool]()
"""Spans that are in range, by the number of keys."""


def checked_spans(spans_B2S: Tensor, num_keys: int) -> Tensor:
    """Return spans for which 0 <= first <= end <= num_keys is known; cut to the keys where a CUDA graph is captured.

    Reads the spans: on a GPU that waits for what is queued, so it is done once for each tensor that did not change since.

    Raises:
        ValueError: a span is not within the keys, with its place and its ends.
    """
    if capturing(spans_B2S.device):
        return spans_B2S.clamp(0, num_keys)
    if spans_B2S.is_meta or _checked.get(spans_B2S, num_keys):
        return spans_B2S
    first_BS, end_BS = spans_B2S[:, FIRST], spans_B2S[:, END]
    wrong_BS = unwrapped((first_BS < 0) | (first_BS > end_BS) | (end_BS > num_keys))
    if bool(wrong_BS.any()):
        at = tuple(int(i) for i in wrong_BS.nonzero()[0])
        ends = [int(unwrapped(x)[at]) for x in (first_BS, end_BS)]
        raise ValueError(
            f"attention: the span of sequence {at[-2]}, query {at[-1]} is [{ends[0]}, {ends[1]}); expected "
            f"0 <= first <= end <= {num_keys}, the number of keys, and [0, 0) for a query that sees nothing"
        )
    _checked.put(spans_B2S, num_keys, True)
    return spans_B2S


def check_lengths(lengths_B: Tensor, num_keys: int) -> None:
    """Raise unless 0 <= length <= num_keys for every sequence; on a GPU this waits for what is queued, but in a graph it is not done.

    Raises:
        ValueError: a length is not, with its place.
    """
    if lengths_B.is_meta or capturing(lengths_B.device):  # make_spans takes the lesser of a length and the keys
        return
    wrong_B = unwrapped((lengths_B < 0) | (lengths_B > num_keys))
    if bool(wrong_B.any()):
        at = tuple(int(i) for i in wrong_B.nonzero()[0])
        raise ValueError(
            f"attention: lengths[{at[-1]}] is {int(unwrapped(lengths_B)[at])}; expected 0 to {num_keys}, the number of keys"
        )


def unwrapped(x: Tensor) -> Tensor:
    """Return the numbers that `torch.func` has wrapped, by which a decision can be taken, with vmap's dimensions anywhere."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def visible(spans_B2S: Tensor, first_key: int, end_key: int) -> Tensor:
    """Whether each query sees each of the keys [first_key, end_key): bool [B, S, end_key - first_key]."""
    key_P = torch.arange(first_key, end_key, dtype=torch.int32, device=spans_B2S.device)
    return (key_P >= spans_B2S[:, FIRST, :, None]) & (key_P < spans_B2S[:, END, :, None])


def num_visible(spans_B2S: Tensor) -> Tensor:
    """Sum of the intervals' lengths: the number of scores that are not masked, for one head."""
    return (spans_B2S[:, END] - spans_B2S[:, FIRST]).clamp(min=0).sum()
