"""Accuracies of tasks: apart from their scoring, which cells reach, and which loads no statistics."""

from __future__ import annotations

from collections.abc import Sequence

from modelassay.evaluation.tasks import Scored
from modelassay.statistics.estimate import Estimate
from modelassay.statistics.proportions import wilson


def accuracies(scored: Sequence[Scored]) -> dict[tuple[str, str], Estimate]:
    """Return each task's share of right items by (task, metric), with Wilson's interval.

    >>> one = Scored(task="arc_easy", number=0, answer=1, log_probabilities=(-3.0, -4.0), lengths=(2, 4))
    >>> [(metric, share.value) for (_, metric), share in accuracies([one]).items()]
    [('acc', 0.0), ('acc_norm', 1.0)]
    """
    right: dict[tuple[str, str], list[bool]] = {}
    for one in scored:
        for metric, correct in one.correct.items():
            right.setdefault((one.task, metric), []).append(correct)
    return {key: wilson(sum(each), len(each)) for key, each in right.items()}
