"""Statistics of a table of similarities: quantiles by kind of pair, and how well related pairs stand apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelassay.data.similarities.table import Similarities
from modelassay.errors import UsageError
from modelassay.models.gate import one_line
from modelassay.statistics.classification import FPR_LEVEL, Scored, auroc, tpr_at_fpr

HIGH_SCORE = 0.9  # the level above which arXiv 2507.03014 calls a pair derived

SHOWN = ("median", "quantile_0.95", "quantile_0.99", "max")
_KINDS = {"unrelated": 0, "related": 1}


def scores(table: Similarities, pairs: str) -> NDArray[np.float64]:
    """Return the scores of the pairs of one kind: ``unrelated``, ``related`` or ``all``.

    Raises:
        UsageError: there is no such pair in the table.
    """
    scores_P = table.scores_P if pairs == "all" else table.scores_P[table.related_P == _KINDS[pairs]]
    if not scores_P.size:
        unknown = bool((table.related_P < 0).all())
        what = (
            "which of its models are related is not known; name a file of families, or give it a column 'related'"
            if unknown
            else f"none of its pairs is {pairs}"
        )
        raise UsageError(f"{one_line(table.file)}: {what}")
    return scores_P


def separation(table: Similarities, rate: float = FPR_LEVEL) -> tuple[float, float | None]:
    """Return AUROC and TPR at a false-positive rate of ``rate``, as `modelassay.statistics.classification` defines them.

    The TPR is None where there are fewer than 1 / rate unrelated pairs.

    Raises:
        UsageError: the table has no related or no unrelated pairs.
    """
    related, unrelated = scores(table, "related"), scores(table, "unrelated")
    group_b = np.repeat((0, 1), (related.size, unrelated.size))  # no interval over groups is asked for
    scored = Scored(
        score=np.concatenate((related, unrelated)),
        positive=group_b == 0,
        group_a=np.zeros_like(group_b),
        group_b=group_b,
    )
    return auroc(scored), tpr_at_fpr(scored, rate)


def compute(
    table: Similarities, statistic: str, *, at: float | None = None, pairs: str = "unrelated"
) -> tuple[float, int]:
    """Return a statistic as `SimilarityTable` names it, and the number of pairs it rests on.

    ``share_above`` counts what lies strictly above.

    Raises:
        UsageError: the table has no pairs of the kind it needs.
    """
    if statistic in {"auroc", "tpr_at_fpr"}:
        area, rate = separation(table, FPR_LEVEL if at is None else at)
        value = area if statistic == "auroc" else rate
        if value is None:
            few = int((table.related_P == 0).sum())
            raise UsageError(
                f"{one_line(table.file)}: {few} unrelated pairs cannot show a false-positive rate of {at:g}; it takes {1 / (at or 1):.0f}"
            )
        return value, int((table.related_P >= 0).sum())
    scores_P = scores(table, pairs)
    if statistic == "mean":
        return float(scores_P.mean()), scores_P.size
    level = {"median": 0.5, "max": 1.0}.get(statistic, at)
    assert level is not None
    value = (scores_P > level).mean() if statistic == "share_above" else np.quantile(scores_P, level)
    return float(value), scores_P.size


def summary(table: Similarities) -> dict[str, Any]:
    """Return all that is printed of a table on its own, as JSON."""
    has_relation = table.related_P >= 0
    kinds = [kind for kind in ("related", "unrelated") if (table.related_P == _KINDS[kind]).any()]
    groups = {kind: _group(table, kind) for kind in (kinds or ["all"])}
    area, rate = separation(table) if len(kinds) == 2 else (None, None)
    return {
        "file": str(table.file),
        "sha256": table.sha256,
        "families": None if table.families is None else str(table.families),
        "families_sha256": table.families_sha256,
        "names": len(table.names),
        "pairs": int(table.scores_P.size),
        "without_value": table.num_missing,
        "relation_not_known": int((~has_relation).sum()),
        "groups": groups,
        "auroc": area,
        f"tpr_at_fpr_{FPR_LEVEL:g}": rate,
    }


def _group(table: Similarities, kind: str) -> dict[str, Any]:
    scores_P = scores(table, kind)
    members = table.pairs_P2 if kind == "all" else table.pairs_P2[table.related_P == _KINDS[kind]]
    a, b = members[int(np.argmax(scores_P))]
    quantiles = dict(zip(SHOWN, np.quantile(scores_P, (0.5, 0.95, 0.99, 1.0)).tolist(), strict=True))
    return {"n": int(scores_P.size), **quantiles, "max_pair": [table.names[a], table.names[b]],
            "share_above_0.9": float((scores_P > HIGH_SCORE).mean())}  # fmt: skip


def summary_lines(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is said of each table besides its rows: how well it separates, what it lacks, and what file it is."""
    lines = []
    for summed in summaries:
        if summed["auroc"] is not None:
            tpr = summed[f"tpr_at_fpr_{FPR_LEVEL:g}"]
            shown = "too few unrelated pairs for a TPR" if tpr is None else f"TPR {tpr:.4f}"
            lines.append(f"{summed['file']}: AUROC {summed['auroc']:.4f}, {shown} at {100 * FPR_LEVEL:g} % FPR")
        elif summed["relation_not_known"] == summed["pairs"]:
            lines.append(f"{summed['file']}: which models are related is not known; give --families FILE")
        if summed["without_value"]:
            lines.append(f"{summed['file']}: {summed['without_value']:,} pairs have no value")
        if 0 < summed["relation_not_known"] < summed["pairs"]:
            lines.append(f"{summed['file']}: {summed['relation_not_known']:,} pairs may or may not be related")
        lines.append(f"{summed['file']}: SHA-256 {summed['sha256']}")
    return lines
