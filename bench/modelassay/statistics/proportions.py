"""Shares of counted things."""

from __future__ import annotations

import math

from scipy.special import betaincinv, ndtri

from modelassay.statistics.estimate import LEVEL, Estimate


def wilson(count: int, total: int, *, level: float = LEVEL) -> Estimate:
    """Return count / total with its score interval, which neither end nor few trials make degenerate.

    Wilson 1927; Brown, Cai and DasGupta 2001 recommend it for 40 trials and fewer. It assumes independent trials: pairs
    of models that share an ancestor are not, and for them it is too narrow.

    >>> share = wilson(0, 20)
    >>> share.value, share.low, round(share.high, 4), share.note
    (0.0, 0.0, 0.1611, '0 of 20')

    Raises:
        ValueError: no trials, or a count that is not one of 0 ... total.
    """
    if not 0 <= count <= total or total < 1:
        message = f"wilson: needs 0 <= count <= total and total >= 1, got {count} of {total}"
        raise ValueError(message)
    share, z = count / total, float(ndtri((1 + level) / 2))
    centre = (count + z * z / 2) / (total + z * z)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return Estimate(value=share, low=max(0.0, min(centre - half, share)), high=min(1.0, max(centre + half, share)), level=level, method="Wilson",
                    n=total, note=f"{count} of {total}")  # fmt: skip


def clopper_pearson(count: int, total: int, *, level: float = LEVEL) -> Estimate:
    """Return count / total with its exact interval: all rates under which a count so far out has a chance of (1 - level) / 2.

    Clopper and Pearson 1934. It covers at least ``level`` whatever the rate, so it is the one to print beside 0 of n and n of n.
    It assumes independent trials, as `wilson` does.

    >>> share = clopper_pearson(8, 8)
    >>> share.value, round(share.low, 4), share.high, share.note  # 0.025^(1/8)
    (1.0, 0.6306, 1.0, '8 of 8')

    Raises:
        ValueError: no trials, or a count that is not one of 0 ... total.
    """
    if not 0 <= count <= total or total < 1:
        message = f"clopper_pearson: needs 0 <= count <= total and total >= 1, got {count} of {total}"
        raise ValueError(message)
    tail = (1 - level) / 2
    low = float(betaincinv(count, total - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, total - count, 1 - tail)) if count < total else 1.0
    return Estimate(value=count / total, low=low, high=high, level=level, method="Clopper-Pearson", n=total,
                    note=f"{count} of {total}")  # fmt: skip


def count_of(share: Estimate) -> int:
    """Return how many of its ``n`` trials a share counts.

    >>> count_of(wilson(7, 20))
    7
    """
    return round(share.value * (share.n or 0))
