"""Texts by the hidden states of one model that stays the same: how sentences hang together, and the room that texts take up.

What is measured are texts, not the model that wrote them; which model reads them is part of the measure's name.
"""

# N = texts, D = hidden dimensions, L = layers with the embedding, B = texts of a batch, S = tokens

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelassay.data import corpus

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 64
LONGEST = 256
"""Tokens of a text that are read."""
DELTA = 1e-3
"""Added to the eigenvalues of a Gram matrix; that of 2601.03385."""
_SENTENCE = re.compile("[^.!?\u3002\uff01\uff1f]+[.!?\u3002\uff01\uff1f]+")


def mean_states(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Return for each text the mean over its tokens of the model's last hidden states, of norm 1, [N, D] in float64.

    Texts of like length are read together. A text without a token is a row of zeros.
    """
    import torch

    ids = [tokenizer.encode(text, add_special_tokens=False)[:LONGEST] for text in texts]
    states_ND = torch.zeros(len(texts), model.config.get_text_config().hidden_size, dtype=torch.float64)
    order = sorted((at for at, each in enumerate(ids) if each), key=lambda at: len(ids[at]))
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        mask_BS = torch.zeros(len(places), max(len(ids[at]) for at in places), dtype=torch.int64)
        ids_BS = torch.zeros_like(mask_BS)
        for row, at in enumerate(places):
            ids_BS[row, : len(ids[at])] = torch.tensor(ids[at])
            mask_BS[row, : len(ids[at])] = 1
        with torch.no_grad():
            output = model(
                input_ids=ids_BS.to(model.device), attention_mask=mask_BS.to(model.device),
                output_hidden_states=True, use_cache=False,
            )  # fmt: skip
        weights_BS1 = mask_BS[..., None].double()
        states_BSD = output.hidden_states[-1].double().cpu()
        states_ND[places] = torch.nn.functional.normalize((states_BSD * weights_BS1).sum(1), dim=-1)
    return states_ND


def sentences_of(text: str, language: str | None) -> list[str]:
    """Return the finished sentences of a text: by the project's grammar where ``language`` is its, else what ends in a mark.

    >>> sentences_of("It rains. Why? No end", None)
    ['It rains.', 'Why?']
    """
    if language is not None:
        return corpus.sentences(text, language)
    return [match.strip() for match in _SENTENCE.findall(text)]


def coherence(states_ND: Tensor, documents_N: Sequence[int]) -> tuple[float, float]:
    """Return the mean cosine of sentences that follow each other in a document, and that of sentences of different documents.

    Hidden states of one model point much the same way, so the first says something beside the second only. Either is NaN where there is
    no such pair.

    Args:
        states_ND: of norm 1, the sentences in their order.
        documents_N: number of the document of each.

    >>> import torch
    >>> coherence(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), [0, 0, 1])
    (1.0, 0.0)
    """
    follows = [at for at in range(1, len(documents_N)) if documents_N[at] == documents_N[at - 1]]
    before = [at - 1 for at in follows]
    adjacent = float((states_ND[before] * states_ND[follows]).sum(-1).mean()) if follows else math.nan
    sums: dict[int, Any] = {}
    for state_D, document in zip(states_ND, documents_N, strict=True):
        sums[document] = sums.get(document, 0.0) + state_D
    counts = [documents_N.count(document) for document in sums]
    pairs = len(documents_N) ** 2 - sum(count**2 for count in counts)
    if not pairs:
        return adjacent, math.nan
    within = sum(float(each.square().sum()) for each in sums.values())
    return adjacent, (float(states_ND.sum(0).square().sum()) - within) / pairs


def sigma(states_ND: Tensor, *, total: int | None = None, delta: float = DELTA) -> tuple[float, float]:
    """Return SIGMA's two log volumes of N texts' states of norm 1: the sensitive one, and the conservative one for ``total`` texts.

    With G = A^T A + delta I, A the N rows: log det G - D log N; and, each of the texts that were not read having at most norm 1,
    log det(G + beta I) - D log(beta + delta) with beta = total - N. The collapse is a fall of either. 2601.03385, algorithm 1, which takes a
    sentence encoder; here the caller's model reads. The second is NaN where all were read. Both are where N <= D, where the paper does not define them.

    >>> import torch
    >>> rows = torch.eye(2, dtype=torch.float64).repeat(2, 1)        # G = 2 I
    >>> [round(each, 3) for each in sigma(rows, total=5, delta=0.0)] # 2 log 2 - 2 log 4; 2 log 3 - 2 log 1
    [-1.386, 2.197]
    """
    import torch

    count, size = states_ND.shape
    if count <= size:
        return math.nan, math.nan
    gram_DD = states_ND.T @ states_ND
    one_DD = torch.eye(size, dtype=gram_DD.dtype)
    sensitive = float(torch.logdet(gram_DD + delta * one_DD)) - size * math.log(count)
    beta = (total or count) - count
    if not beta:
        return sensitive, math.nan
    volume = float(torch.logdet(gram_DD + (beta + delta) * one_DD))
    return sensitive, volume - size * math.log(beta + delta)


def activation_statistics(model: Any, rows_NT: Tensor, *, batch_size: int = BATCH) -> list[dict[str, float]]:
    """Return for the embedding and each layer what its hidden states on rows of one length are like, over all positions.

    ``rms``: root mean square of a coordinate. ``kurtosis``: fourth moment over the squared second, about each coordinate's mean, over all
    coordinates: 3 for Gaussian ones, large where a few carry all. ``largest``: greatest magnitude over ``rms`` (massive activations,
    Sun et al. 2402.17762). ``anisotropy``: mean cosine of two positions' states (Ethayarajh 1909.00512).
    """
    import torch

    sums: list[list[Any]] = []
    for part in torch.split(rows_NT, batch_size):
        with torch.no_grad():
            states = model(input_ids=part.to(model.device), output_hidden_states=True, use_cache=False).hidden_states
        for layer, state in enumerate(states):
            x_QD = state.flatten(0, 1).double()
            own = [
                *((x_QD**power).sum(0) for power in (1, 2, 3, 4)),
                torch.nn.functional.normalize(x_QD, dim=-1).sum(0),
            ]
            largest = x_QD.abs().max()
            if layer == len(sums):
                sums.append([*own, largest])
            else:
                before = sums[layer]
                sums[layer] = [*(a + b for a, b in zip(before, own, strict=False)), torch.maximum(before[-1], largest)]
    return [_statistics(layer, rows_NT.numel()) for layer in sums]


def _statistics(sums: Sequence[Any], positions: int) -> dict[str, float]:
    """From the sums of the first four powers by coordinate, that of unit vectors, and the greatest magnitude."""
    m1_D, m2_D, m3_D, m4_D = (each / positions for each in sums[:4])
    rms = math.sqrt(float(m2_D.mean()))
    second = float((m2_D - m1_D**2).mean())
    fourth = float((m4_D - 4 * m1_D * m3_D + 6 * m1_D**2 * m2_D - 3 * m1_D**4).mean())
    together = float(sums[4].square().sum())
    return {
        "rms": rms,
        "kurtosis": fourth / second**2 if second > 0 else math.nan,
        "largest": float(sums[5]) / rms if rms else math.nan,
        "anisotropy": (together - positions) / (positions * (positions - 1)) if positions > 1 else math.nan,
    }
