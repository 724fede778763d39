"""The outcome of the tests of independent numbering."""

from __future__ import annotations

import math
from dataclasses import dataclass

from modelassay.fingerprints.independence.agreement import Agreement
from modelassay.fingerprints.independence.matching import NumberingTest
from modelassay.fingerprints.independence.training import SharedTraining

NUM_TESTS = 4
"""Exact tests that the p-value of a pair is corrected for (Bonferroni), whether or not all could be made."""

CAP = -50.0
"""log10 of the smallest p that is printed: beyond it the assumptions err more than chance does."""


@dataclass(frozen=True, kw_only=True)
class Independence:
    """What the numbering of two models says of their independence."""

    tests: tuple[NumberingTest, ...]
    reasons: tuple[str, ...]
    """Why a test could not be made, one sentence each."""
    agreement: Agreement | None
    """Made only where the exact tests leave the question open; None otherwise, and where it cannot be made."""
    training: SharedTraining | None = None
    """Whether more than the initial weights is shared; None where the norms do not tell."""

    @property
    def strongest(self) -> NumberingTest | None:
        """The test with the smallest p; None without any."""
        return min(self.tests, key=lambda test: test.log10_p, default=None)

    @property
    def log10_p(self) -> float:
        """log10 of the p-value over all `NUM_TESTS` tests; 0 without any. Not capped: `CAP` is for printing."""
        return 0.0 if self.strongest is None else min(0.0, self.strongest.log10_p + math.log10(NUM_TESTS))
