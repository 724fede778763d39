"""Where methods say otherwise than the verdict on a pair."""

from __future__ import annotations

from collections.abc import Sequence

from modelassay.fingerprints.background import Rank
from modelassay.fingerprints.placement import MIN_EFFECT, Placement, share_of_way
from modelassay.fingerprints.verdict import Verdict


def disagreements(verdict: Verdict, placement: Placement, behaviour: Sequence[tuple[float, Rank | None]]) -> list[str]:
    """Name where methods say otherwise than the verdict; ``behaviour`` are scores of answers with their ranks among strangers.

    Weights that do not match beside behaviour that does is what distillation looks like. A rank that stands out where no
    numbering is shared is overruled by the tests, and the sentence says so.
    """
    sentences = []
    closer = [place for score, place in behaviour
              if place is not None and place.p == place.min_p and share_of_way(score, place.median) >= MIN_EFFECT]  # fmt: skip
    ranked = [place for _, place in behaviour if place is not None]
    pair = f"{placement.a} and {placement.b}"
    if verdict.word == "not distinguishable from independent":
        if closer:
            sentences.append(f"{pair}: the weights say no and the answers yes, closer than all {closer[0].n} strangers of the tokenizer: "
                             "what distillation, or training on the other's answers, looks like.")  # fmt: skip
        if placement.word == "closer than all strangers":
            sentences.append(f"{pair}: closer than all strangers by {placement.primary}, yet nothing is numbered alike: a rank among few is no "
                             "evidence of common weights, and is overruled here.")  # fmt: skip
    if verdict.word in ("identical", "re-derived", "inherited") and ranked and not closer:
        sentences.append(f"{pair}: the weights say yes and the answers no: what long further training, damage or a disguise of the "
                         "vocabulary looks like.")  # fmt: skip
    if verdict.word == "inherited" and placement.word == "among strangers":
        sentences.append(
            f"{pair}: inherited, though by {placement.primary} no closer than strangers are: that method does not see what was done."
        )
    return sentences
