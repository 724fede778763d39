"""The verdict on a pair: what its two checkpoints alone say, in one word and in a sentence that can be read out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from modelassay.fingerprints.identical import SameBits
from modelassay.fingerprints.independence import Independence, NumberingTest
from modelassay.fingerprints.independence.agreement import Agreement
from modelassay.fingerprints.independence.result import CAP, NUM_TESTS
from modelassay.fingerprints.rederived import Rederivation

Word = Literal["identical", "re-derived", "inherited", "not distinguishable from independent", "undecided"]

ALPHA = 1e-6
"""Level at which weights are called inherited: an accusation, so far below the 0.05 of a single experiment."""

PAGE = "docs/methods/what-a-verdict-means.md"
"""Where the words of a verdict are explained, relative to the repository."""

ALTERNATIVES = ("Either weights were inherited, directly or through steps, or both trainings began from the same initial weights, "
                "as two runs of one seed do, or one pattern that numbers units (a mask, an identity, sines) was laid into both")  # fmt: skip
_INHERITED = "Weights were inherited, directly or through steps, and not the initial ones alone"
REVERSED = "Which of the two came first is not told: a model that was widened gives its origin's bits when it is quantised again."
NO_PROOF = "This is no proof of independence: retraining and relabelling that these tests do not see remain possible."


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The conclusion about a pair."""

    word: Word
    sentence: str
    alpha: float
    log10_p: float
    """log10 of the p-value that decided, corrected for the tests and for the candidates; 0 without a test, and -inf where the
    bits decided."""
    num_candidates: int
    """Models that were compared with one suspect, which p is corrected for; 1 where a pair was asked for itself."""


@dataclass(frozen=True, kw_only=True)
class Remaking:
    """What quantising one of a pair again says of the other."""

    source: str
    copy: str
    outcome: Rederivation


def conclude(
    a: str,
    b: str,
    bits: SameBits,
    result: Independence,
    *,
    remaking: Remaking | None = None,
    alpha: float = ALPHA,
    num_candidates: int = 1,
) -> Verdict:
    """Conclude from the bits and the numbering of ``a`` and ``b``.

    ``identical`` where all varied tensors are the same bits; ``re-derived`` where quantising one gives all bits of the other;
    ``inherited`` where a test, corrected for the number of tests and of
    candidates (Bonferroni), rejects independent numbering at ``alpha``; ``not distinguishable from independent`` where none
    does; ``undecided`` where no test could be made, or where tensors are the same bits although no test rejects.
    """
    correction = math.log10(num_candidates)
    exact = min(0.0, result.log10_p + correction)
    agreement = 0.0 if result.agreement is None else min(0.0, result.agreement.log10_p + correction)
    verdict = Verdict(word="undecided", sentence="", alpha=alpha, log10_p=exact, num_candidates=num_candidates)
    shared = f" {len(bits.equal)} of {bits.total} tensors are the same bits." if bits.equal else ""
    over = f", corrected for {num_candidates} candidates," if num_candidates > 1 else ""
    level, strongest, pair = math.log10(alpha), result.strongest, f"{a} and {b}"
    if bits.all_equal:
        return replace(verdict, word="identical", log10_p=-math.inf,
                       sentence=f"{pair}: identical; all {bits.total} tensors are the same bits.")  # fmt: skip
    if remaking is not None and remaking.outcome.is_rederived:
        return replace(
            verdict,
            word="re-derived",
            log10_p=-math.inf,
            sentence=f"{pair}: re-derived; {_remade(remaking)} {REVERSED}",
        )
    shared += f" {_remade(remaking)}" if remaking is not None and remaking.outcome.matched else ""
    if strongest is not None and exact <= level:
        text = (f"{pair}: inherited; {counted(strongest)}, {shown_p(exact)}{over} if {b} had been numbered independently "
                f"of {a}.{shared} {_origin(bits, result)}")  # fmt: skip
        return replace(verdict, word="inherited", sentence=text)
    if result.agreement is not None and agreement <= level:
        text = (f"{pair}: inherited; {agreed(result.agreement)}{over} after the residual stream of one was turned onto the other's: "
                f"renumbered or rotated, but not independent. This tier is calibrated, not exact.{shared} {_origin(bits, result)}")  # fmt: skip
        return replace(verdict, word="inherited", log10_p=agreement, sentence=text)
    if strongest is None:
        why = "; ".join(result.reasons) or "nothing could be compared"
        return replace(verdict, sentence=f"{pair}: undecided; no test could be made ({why}).{shared}")
    tested = f"{counted(strongest)} in the strongest of {len(result.tests)} test{'' if len(result.tests) == 1 else 's'}, {shown_p(exact)}{over.rstrip(',')}"
    if _is_ordered_alike(result, level - correction):
        tested += (". Over all numbers units do match, among neighbours not beyond chance at this level: so do two strangers whose units were "
                   "sorted, or trained in an order")  # fmt: skip
    if bits.equal:
        text = f"{pair}: undecided; {tested}, yet{shared.lower().rstrip('.')}: parts were shared, the rest does not show it."
        return replace(verdict, sentence=text)
    return replace(verdict, word="not distinguishable from independent",
                   sentence=f"{pair}: not distinguishable from independent; {tested}. {NO_PROOF}")  # fmt: skip


def _is_ordered_alike(result: Independence, level: float) -> bool:
    """Return whether one half of a test would have rejected alone."""
    return any(test.all_log10_p + math.log10(NUM_TESTS) <= level < test.log10_p for test in result.tests)


def _remade(remaking: Remaking) -> str:
    outcome = remaking.outcome
    formats = ", ".join(outcome.formats)
    return (f"Stored again as {formats}, {remaking.source} gives {len(outcome.matched)} of {len(outcome.tensors)} tensors of {remaking.copy} "
            "bit for bit.")  # fmt: skip


def _origin(bits: SameBits, result: Independence) -> str:
    """Say which explanations are left: inherited weights, or a shared beginning."""
    training = result.training
    if bits.norms:
        return f"{_INHERITED}: {len(bits.norms)} trained norms, which no seed draws, are the same bits."
    if training is not None and training.is_shared:
        return f"{_INHERITED}: the norms, which no seed draws, differ by {100 * training.ratio:.2g} % of what training did to them."
    return f"{ALTERNATIVES}; these tests do not tell which."


def counted(test: NumberingTest) -> str:
    """Return a test's count in words.

    >>> counted(NumberingTest(name="neurons by rows", statistic="fixed points", count=9, of=64, expected=2, log10_p=-3.0, groups=2,
    ...                       near_count=30, near_of=64, near_expected=16, all_log10_p=-4.0))
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
