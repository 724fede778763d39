"""What the tests of a pair amount to, in one word and in a sentence that can be read out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from modelassay.fingerprints.identical import SameBits
from modelassay.fingerprints.independence.agreement import Agreement
from modelassay.fingerprints.independence.matching import NumberingTest
from modelassay.fingerprints.independence.result import CAP, Independence

Word = Literal["identical", "inherited", "not distinguishable from independent", "undecided"]

ALPHA = 1e-6
"""Level at which weights are called inherited: an accusation, so far below the 0.05 of a single experiment."""

ALTERNATIVES = ("Either weights were inherited, directly or through steps, or both trainings began from the same initial weights, "
                "as two runs of one seed do.")  # fmt: skip
NO_PROOF = "This is no proof of independence: retraining and relabelling that these tests do not see remain possible."


@dataclass(frozen=True, kw_only=True)
class Statement:
    """The conclusion about a pair."""

    word: Word
    sentence: str
    alpha: float


def state(a: str, b: str, bits: SameBits, result: Independence, *, alpha: float = ALPHA) -> Statement:
    """Conclude from the bits and the numbering of ``a`` and ``b``.

    ``identical`` where all varied tensors are the same bits; ``inherited`` where a test, corrected for their number, rejects
    independent numbering at ``alpha``; ``not distinguishable from independent`` where none does; ``undecided`` where no test
    could be made, or where tensors are the same bits although no test rejects.
    """
    shared = f" {len(bits.equal)} of {bits.total} tensors are the same bits." if bits.equal else ""
    strongest = result.strongest
    if bits.all_equal:
        return Statement(
            word="identical",
            sentence=f"{a} and {b}: identical; all {bits.total} tensors are the same bits.",
            alpha=alpha,
        )
    if strongest is not None and result.log10_p <= math.log10(alpha):
        text = (f"{a} and {b}: inherited; {counted(strongest)}, {shown_p(result.log10_p)} if {b} had been numbered independently "
                f"of {a}.{shared} {ALTERNATIVES}")  # fmt: skip
        return Statement(word="inherited", sentence=text, alpha=alpha)
    if result.agreement is not None and result.agreement.log10_p <= math.log10(alpha):
        text = (f"{a} and {b}: inherited; {agreed(result.agreement)}, after the residual stream of one was turned onto the other's: "
                f"renumbered or rotated, but not independent. This tier is calibrated, not exact.{shared} {ALTERNATIVES}")  # fmt: skip
        return Statement(word="inherited", sentence=text, alpha=alpha)
    if strongest is None:
        why = "; ".join(result.reasons) or "nothing could be compared"
        return Statement(
            word="undecided", sentence=f"{a} and {b}: undecided; no test could be made ({why}).{shared}", alpha=alpha
        )
    tested = f"{counted(strongest)} in the strongest of {len(result.tests)} tests, {shown_p(result.log10_p)}"
    if bits.equal:
        text = f"{a} and {b}: undecided; {tested}, yet{shared.lower().rstrip('.')}: parts were shared, the rest does not show it."
        return Statement(word="undecided", sentence=text, alpha=alpha)
    return Statement(word="not distinguishable from independent", alpha=alpha,
                     sentence=f"{a} and {b}: not distinguishable from independent; {tested}. {NO_PROOF}")  # fmt: skip


def counted(test: NumberingTest) -> str:
    """Return a test's count in words.

    >>> counted(NumberingTest(name="neurons by rows", statistic="fixed points", count=9, of=64, expected=2, log10_p=-3.0, groups=2))
    '9 of 64 neurons by rows were matched to their own number (2 expected)'
    """
    if test.statistic == "fixed points":
        return f"{test.count} of {test.of} {test.name} were matched to their own number ({test.expected:.0f} expected)"
    return (
        f"{test.count} of {test.of} pairs of {test.name} were matched in falling order ({test.expected:.0f} expected)"
    )


def agreed(agreement: Agreement) -> str:
    """Return the counts of the agreement tier in words."""
    return f"two matchings agree on {agreement.count} of {agreement.of} neurons ({agreement.expected:.0f} expected by chance)"


def shown_p(log10_p: float) -> str:
    """Return a p-value as it is printed: never below 1e-50, where the assumptions err more than chance.

    >>> shown_p(-1492.2), shown_p(-7.3), shown_p(-0.3)
    ('p < 1e-50', 'p = 5e-08', 'p = 0.5')
    """
    if log10_p < CAP:
        return f"p < 1e{CAP:.0f}"
    return f"p = {10**log10_p:.1g}" if log10_p < -2 else f"p = {10**log10_p:.2g}"
