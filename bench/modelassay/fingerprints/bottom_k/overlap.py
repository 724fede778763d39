"""How alike two models rank what they think least likely: overlap of bottom-k sets, and rank-biased overlap.

::

    a, b = child.responses(base.prompts), base.responses(base.prompts)
    overlap_exact(a, b)      # as published: rows of the head by id, padding included
    overlap_corrected(a, b)  # tokens that both models know, padding left out; ties counted
    rank_biased(a, b)        # the same lists by order, the least likely weighing most
"""

# P = prompts, V = rows of the head, K = kept of each row, S = tokens that both models have

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from modelassay.fingerprints.bottom_k.prompts import Kind
from modelassay.fingerprints.bottom_k.responses import Head, Responses
from modelassay.models.vocabulary import MIN_SHARED, Shared, Tokens, shared_tokens
from modelassay.statistics.estimate import Estimate, undefined
from modelassay.statistics.intervals import student_mean
from modelassay_kernels import bottom_k, linear_bottom_k

Floats = NDArray[np.float64]

PUBLISHED_K, PUBLISHED_ROWS = 2000, 151_936
"""k and the rows of Qwen2.5's head, padding included, of which the published k is a share of 1.3 %."""
VALID_SHARE = 0.0132
"""k as a share of the valid vocabulary: 2000 of Qwen2.5's 151,665 tokens."""
SLACK = 32
"""Ids asked for beyond k, to see whether values tie across the boundary; more are asked for while they do."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much two models' bottom-k have in common, over the prompts of one model."""

    mean: Estimate
    """Over the prompts, independent draws of one model's growth, with Student's interval: resampling five values would cover
    too little."""
    per_prompt: tuple[float, ...] = ()
    k: int = 0
    chance: float = np.nan
    """k over the ids there are: what two independent sets overlap on average."""
    tied: float = 0.0
    """Share of the sets' places that only the order of ids decided, because values tie across the boundary."""
    untied: float = np.nan
    """Mean overlap to be expected had those places been drawn at random: ids break ties alike in both models, which inflates."""
    padded: float = 0.0
    """Share of the sets that are rows of padding, no tokens."""
    matched_by: str = "ids"
    """``ids``, or ``token strings`` across tokenizers."""

    @property
    def value(self) -> float:
        """The mean; NaN where it is not defined."""
        return self.mean.value

    @property
    def reason(self) -> str | None:
        """Why there is no mean; None where there is one."""
        return None if self.mean.defined else self.mean.note


def overlap_exact(a: Responses, b: Responses, *, rounded_to: torch.dtype | None = None) -> Overlap:
    """Return the published overlap |A n B| / k of the k least likely rows, the prompts decoded and tokenised again.

    Rows of the head by id, padding included, whatever the tokenizers; ties by the smaller id; k = round(2000 / 151,936 x rows of
    the head of the model that generated the prompts), which is 2000 for Qwen2.5. Logits are fp32 unless ``rounded_to`` a narrower type, as
    the published ones were (fp16).

    Raises:
        ValueError: the responses are to different prompts.
    """
    _same_prompts(a, b)
    k = round(PUBLISHED_K / PUBLISHED_ROWS * a.prompts.num_rows)
    rows = min(a.head.num_rows, b.head.num_rows)
    if not 0 < k <= rows:
        return Overlap(mean=undefined(f"k = {k}, but the heads of {a.model} and {b.model} have {rows} rows or more"))
    sets = [_lowest(each, "exact", k, None, rounded_to) for each in (a, b)]
    valid = [each.vocabulary.valid_V(each.head.num_rows).numpy() for each in (a, b)]
    padded = float(np.mean([1 - mask[lowest.ids_PK].mean() for mask, lowest in zip(valid, sets, strict=True)]))
    return _overlap(a, b, sets, num_ids=max(a.head.num_rows, b.head.num_rows), padded=padded)


def overlap_corrected(a: Responses, b: Responses, *, rounded_to: torch.dtype | None = None) -> Overlap:
    """Return the overlap |A n B| / k of the k least likely of the tokens that both models have, on stable prompts.

    Padding is left out; tokens are matched by id under one tokenizer and by the bytes they stand for under two, which is
    refused where under half of the smaller vocabulary is shared; k = round(0.0132 x shared tokens). Logits are fp32
    (``rounded_to`` shows what narrower ones do), ties across the boundary are counted. Under-trained tokens are ranked last by
    all models of a tokenizer, so a value means nothing without strangers of the same one.

    Raises:
        ValueError: the responses are to different prompts.
    """
    comparison = _shared_sets(a, b, rounded_to)
    if isinstance(comparison, str):
        return Overlap(mean=undefined(comparison))
    sets, shared = comparison
    return _overlap(a, b, sets, num_ids=shared.num, matched_by=shared.by)


def rank_biased(a: Responses, b: Responses, *, rounded_to: torch.dtype | None = None) -> Overlap:
    """Return the rank-biased overlap of the lists that `overlap_corrected` takes as sets, the least likely token first.

    See `rank_biased_overlap`; `persistence` gives p.

    Raises:
        ValueError: the responses are to different prompts.
    """
    comparison = _shared_sets(a, b, rounded_to)
    if isinstance(comparison, str):
        return Overlap(mean=undefined(comparison))
    sets, shared = comparison
    return _overlap(a, b, sets, num_ids=shared.num, matched_by=shared.by, measure=rank_biased_overlap)


def rank_biased_overlap(a_K: ArrayLike, b_K: ArrayLike, p: float | None = None) -> float:
    """Return the rank-biased overlap of two lists of k ids, extrapolated beyond them; 1 for equal lists, 0 for disjoint ones.

    RBO = (1 - p) sum_d p^(d - 1) A_d with the agreement A_d = |first d of a n first d of b| / d, over infinite lists; of what lies
    beyond k the agreement A_k is assumed: RBO_ext = A_k p^k + (1 - p)/p sum_{d <= k} A_d p^d. Webber, Moffat and Zobel 2010,
    equations 4 and 32. Costs O(k).

    ``p`` is `persistence` of k if None.

    >>> rank_biased_overlap([1, 2, 3], [1, 2, 3], 0.9), rank_biased_overlap([1, 2], [3, 4], 0.9)
    (1.0, 0.0)
    >>> round(rank_biased_overlap([1, 2], [2, 1], 0.5), 12)           # A = 0, 1: 1 * 0.25 + 1 * 0.25
    0.5
    """
    left, right = np.asarray(a_K).tolist(), np.asarray(b_K).tolist()
    k = len(left)
    p = persistence(k) if p is None else p
    rank_of = {token: rank for rank, token in enumerate(right)}
    common_from_K = np.zeros(k)  # how many ids become common at each depth: where the later of their two ranks is
    for rank, token in enumerate(left):
        if token in rank_of:
            common_from_K[max(rank, rank_of[token])] += 1
    depth_K = np.arange(1, k + 1)
    agreement_K = np.cumsum(common_from_K) / depth_K
    powers_K = p**depth_K
    return float(agreement_K[-1] * powers_K[-1] + (1 - p) / p * (agreement_K @ powers_K))


def persistence(k: int) -> float:
    """Return p of rank-biased overlap for lists of k: 1 - 2/k, so that the mean depth looked at, 1 / (1 - p), is k / 2.

    The first k ranks then carry 96 % of the weight at any k from 10 up (equation 21 of Webber et al.): little is
    extrapolated, and the order of all k counts. Their p = 0.9 would look at the first ten or so of 2000.

    >>> persistence(26), persistence(2000)
    (0.9230769230769231, 0.999)
    """
    return 1 - 2 / max(k, 4)


@dataclass(frozen=True, kw_only=True, eq=False)
class Lowest:
    """The k lowest of some prompts' logits, and what ties with the last of them."""

    ids_PK: NDArray[np.int64]
    """Lowest logit first, ties by the smaller id."""
    tied: tuple[NDArray[np.int64], ...]
    """Of each prompt, all ids whose logit equals the k-th; empty where none beyond the k does."""
    num_sure_P: NDArray[np.int64]
    """How many of the k lie below the tie; k where there is none."""


def _lowest(responses: Responses, kind: Kind, k: int, tokens: Tokens | None, rounded_to: torch.dtype | None) -> Lowest:
    """Return what the responses rank last, of all rows if ``tokens`` is None; found once for each question."""
    key = kind, k, tokens, rounded_to
    if key not in responses.cache:
        responses.cache[key] = _find_lowest(responses, kind, k, tokens, rounded_to)
    lowest: Lowest = responses.cache[key]
    return lowest


def _find_lowest(
    responses: Responses, kind: Kind, k: int, tokens: Tokens | None, rounded_to: torch.dtype | None
) -> Lowest:
    hidden_PD, head = responses.hidden[kind], responses.head
    mask_V = None if tokens is None else tokens.mask_V
    available = head.num_rows if mask_V is None else int(mask_V.sum())
    num = min(k + SLACK, available)
    while True:
        values, ids = _smallest(hidden_PD, head, num, mask_V, rounded_to)
        values_PN = values.double().numpy()
        ids_PN = (ids if tokens is None else tokens.place_V[ids]).numpy()
        at_boundary_PN = values_PN == values_PN[:, k - 1 : k]
        if num == available or not at_boundary_PN[:, -1].any():
            break
        num = min(2 * num, available)
    crosses_P = at_boundary_PN[:, k:].any(axis=1)
    return Lowest(
        ids_PK=ids_PN[:, :k], num_sure_P=np.where(crosses_P, at_boundary_PN.argmax(axis=1), k),
        tied=tuple(ids[equal] if crosses else ids[:0] for ids, equal, crosses in zip(ids_PN, at_boundary_PN, crosses_P, strict=True)),
    )  # fmt: skip


def _smallest(
    hidden_PD: Tensor, head: Head, num: int, valid_V: Tensor | None, rounded_to: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    if rounded_to is None:
        return linear_bottom_k(hidden_PD, head.weight_VD, num, valid=valid_V, bias=head.bias_V)
    logits_PV = hidden_PD @ head.weight_VD.float().T
    if head.bias_V is not None:
        logits_PV = logits_PV + head.bias_V
    return bottom_k(logits_PV.to(rounded_to), num, valid=valid_V)


def _same_prompts(a: Responses, b: Responses) -> None:
    if a.prompts.key != b.prompts.key:
        message = f"overlap: {a.model} answered {a.prompts.source}'s prompts, {b.model} those of {b.prompts.source}"
        raise ValueError(message)


def _shared_sets(a: Responses, b: Responses, rounded_to: torch.dtype | None) -> tuple[list[Lowest], Shared] | str:
    """Return both models' lowest tokens, numbered alike, and what they share; or why there are none."""
    _same_prompts(a, b)
    shared = shared_tokens(a.vocabulary, b.vocabulary, a.head.num_rows, b.head.num_rows)
    if shared.share < MIN_SHARED:
        return (f"{a.model} and {b.model} share {shared.share:.0%} of the smaller vocabulary by {shared.by}; under "
                f"{MIN_SHARED:.0%} their rarest tokens cannot be compared")  # fmt: skip
    k = round(VALID_SHARE * shared.num)
    if k < 2:
        return f"{a.model} and {b.model}: {shared.num} shared tokens leave k = {k}, too few to compare"
    return [_lowest(each, "stable", k, tokens, rounded_to) for each, tokens in ((a, shared.a), (b, shared.b))], shared


def share_in_common(a_K: ArrayLike, b_K: ArrayLike) -> float:
    """Return |A n B| / k of two lists of k ids.

    >>> share_in_common([4, 7, 1, 2], [7, 9, 4, 3])
    0.5
    """
    left, right = np.asarray(a_K).tolist(), np.asarray(b_K).tolist()
    return len({*left}.intersection(right)) / len(left)


def _overlap(a: Responses, b: Responses, sets: Sequence[Lowest], *, num_ids: int, matched_by: str = "ids", padded: float = 0.0,
             measure: Callable[[ArrayLike, ArrayLike], float] = share_in_common) -> Overlap:  # fmt: skip
    if broken := [each.model for each in (a, b) if not all(hidden.isfinite().all() for hidden in each.hidden.values())]:
        return Overlap(mean=undefined(f"{broken[0]}: its hidden states are not finite; look at its weights"))
    one, two = sets
    k = one.ids_PK.shape[1]
    values_P = np.array([measure(x, y) for x, y in zip(one.ids_PK, two.ids_PK, strict=True)])
    return Overlap(
        mean=student_mean(values_P, bounds=(0, 1)), per_prompt=tuple(values_P.tolist()), k=k, chance=k / num_ids,
        tied=float(np.mean([1 - lowest.num_sure_P / k for lowest in sets])), padded=padded, matched_by=matched_by,
        untied=float(np.mean([_expected(one, two, prompt) for prompt in range(len(values_P))])),
    )  # fmt: skip


def _expected(one: Lowest, two: Lowest, prompt: int) -> float:
    """Return the expected |A n B| / k of one prompt if each model drew the places of its tie at random, on its own."""
    if not one.tied[prompt].size and not two.tied[prompt].size:
        return share_in_common(one.ids_PK[prompt], two.ids_PK[prompt])
    (ids_a, chance_a), (ids_b, chance_b) = (_chances(lowest, prompt) for lowest in (one, two))
    _, at_a, at_b = np.intersect1d(ids_a, ids_b, assume_unique=True, return_indices=True)
    return float(chance_a[at_a] @ chance_b[at_b] / one.ids_PK.shape[1])


def _chances(lowest: Lowest, prompt: int) -> tuple[NDArray[np.int64], Floats]:
    """Return the ids that can be in a set, and how likely each is: 1 below the tie, the places left over the tied ones in it."""
    sure, tied = lowest.ids_PK[prompt, : lowest.num_sure_P[prompt]], lowest.tied[prompt]
    places = lowest.ids_PK.shape[1] - sure.size
    shares = np.full(tied.size, places / tied.size if tied.size else 0.0)
    return np.concatenate((sure, tied)), np.concatenate((np.ones(sure.size), shares))
