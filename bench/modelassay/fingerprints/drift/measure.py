"""How far a model's answers and weights are from a reference, at one moment of its training."""

# P = prompts of one kind, V = rows of the head, D = hidden size

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modelassay.fingerprints.bottom_k.overlap import rank_biased_overlap, share_in_common
from modelassay.fingerprints.curves import paper_exact
from modelassay.fingerprints.drift.reference import Reference, curves_of, last_answers, lowest, sigma_of
from modelassay.fingerprints.drift.snapshot import Snapshot

NOT_FINITE = math.nan


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How the answers to the reference's prompts changed; a value for each prompt, NaN where a logit is not finite."""

    overlap_exact: tuple[float, ...]
    """As published: |A n B| / k of the least likely rows of the head, padding included, prompts tokenised again."""
    overlap: tuple[float, ...]
    """Corrected: of the least likely tokens, on stable prompts."""
    rank_biased: tuple[float, ...]
    """Rank-biased overlap of the corrected lists, the least likely token weighing most."""
    kl_forward: tuple[float, ...]
    """KL(reference || model) of the next token after stable prompts, nats, over tokens alone."""
    kl_backward: tuple[float, ...]
    """KL(model || reference)."""
    hidden_cosine: tuple[float, ...]
    """Cosine of what the head is given, now and then."""
    num_nonfinite_logits: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as lists and numbers."""
        return asdict(self)


def measure_answers(model: Any, reference: Reference) -> Answers:
    """Ask a model the reference's prompts, in one forward pass in the precision in which it is called.

    Rows of the head beyond the shorter of the two heads are in no set of the other, as when a vocabulary was resized.
    """
    logits_NV, hidden_ND = last_answers(model, reference.rows)
    num = reference.num_prompts
    num_bad = int((~logits_NV.isfinite()).sum())
    if num_bad:
        nan = (NOT_FINITE,) * num
        return Answers(overlap_exact=nan, overlap=nan, rank_biased=nan, kl_forward=nan, kl_backward=nan, hidden_cosine=nan,
                       num_nonfinite_logits=num_bad)  # fmt: skip
    valid_V = torch.zeros(logits_NV.shape[1], dtype=torch.bool)
    shared = min(len(valid_V), len(reference.valid_V))
    valid_V[:shared] = reference.valid_V[:shared]
    exact_PK = lowest(logits_NV[:num], reference.exact_PK.shape[1], None).numpy()
    stable_PK = lowest(logits_NV[num:], reference.stable_PK.shape[1], valid_V).numpy()
    before, now = (_log_probabilities(logits_PV, valid_V[:shared], shared)
                   for logits_PV in (reference.logits_PV, logits_NV[num:].cpu()))  # fmt: skip
    return Answers(
        overlap_exact=tuple(map(share_in_common, reference.exact_PK.numpy(), exact_PK)),
        overlap=tuple(map(share_in_common, reference.stable_PK.numpy(), stable_PK)),
        rank_biased=tuple(map(rank_biased_overlap, reference.stable_PK.numpy(), stable_PK)),
        kl_forward=_divergence(before, now),
        kl_backward=_divergence(now, before),
        hidden_cosine=tuple(torch.cosine_similarity(reference.hidden_PD, hidden_ND[num:].float().cpu()).tolist()),
        num_nonfinite_logits=0,
    )


def _log_probabilities(logits_PV: Tensor, valid_V: Tensor, shared: int) -> Tensor:
    return torch.log_softmax(logits_PV[:, :shared][:, valid_V].double(), dim=-1)


def _divergence(p_PV: Tensor, q_PV: Tensor) -> tuple[float, ...]:
    """KL(p || q) of each row; at least 0 but for rounding, which is cut."""
    return tuple(((p_PV.exp() * (p_PV - q_PV)).sum(dim=-1)).clamp(min=0.0).tolist())


def measure_weights(model: nn.Module, reference: Reference, snapshot: Snapshot) -> dict[str, Any]:
    """Return what became of the weights: moved shares, distance by layer, numbers that are not finite, correlation of sigma-curves.

    ``curve_correlation`` is the published score (arXiv 2507.03014) of the model against the reference; None where attention has no
    separate matrices, a curve is not finite, or it is constant.
    """
    change = snapshot.compare(model)
    sigma_RL = sigma_of(model)
    score = None
    if sigma_RL is not None and reference.sigma_RL is not None and sigma_RL.shape == reference.sigma_RL.shape:
        now, before = (curves_of(each, name) for each, name in ((sigma_RL, "now"), (reference.sigma_RL, "before")))
        if now is not None and before is not None and not math.isnan(value := paper_exact(before, now).value):
            score = value
    return {
        "moved": change.moved,
        "moved_norms": change.moved_norms if change.num_norms else None,
        "num_weights": change.num_weights,
        "num_nonfinite_weights": change.num_nonfinite,
        "distance": change.distance,
        "curve_correlation": score,
    }
