"""The learning rate at each step: a function of the step, so that there is nothing to save."""

from __future__ import annotations

import math

from modelassay.training.settings import Training


def fraction(step: int, training: Training) -> float:
    """Return the fraction of the learning rate at a step counted from 0: linear warm-up, then the schedule.

    >>> training = Training(num_steps=100, batch_size=1, learning_rate=1.0, warmup_fraction=0.1)
    >>> [round(fraction(step, training), 3) for step in (0, 4, 9, 10, 55, 99)]
    [0.1, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    num_warmup = max(1, round(training.warmup_fraction * training.num_steps))
    if step < num_warmup:
        return (step + 1) / num_warmup
    if training.schedule == "constant":
        return 1.0
    progress = (step - num_warmup) / (training.num_steps - num_warmup)
    if training.schedule == "linear":
        return 1.0 - progress
    return 0.5 + 0.5 * math.cos(math.pi * (step - num_warmup) / (training.num_steps - num_warmup))
