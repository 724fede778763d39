"""What a verdict is about, in words for people who did not make it: the propositions and the limits."""

from __future__ import annotations

from typing import Final

LIMITS: Final = (
    "No outcome is a proof of independence: a model trained anew on another's outputs, or relabelled in a way that the tests do not see, "
    "shares no numbering.",
    "The tests of numbering cannot tell inherited weights from the same initial weights (one seed, one published initialisation, one pattern "
    "laid into both, such as a mask or an identity); only the norms can, and not always.",
    "They say nothing of data, tokenizers, code or outputs in common: distillation and shared data are not inheritance of weights.",
    "They do not say which model came first, who copied, or whether a licence allowed it.",
    "Hashes say which files were read, not who made them.",
)
"""What the tests of a pair cannot show, whatever they find."""


def propositions(a: str, b: str) -> tuple[tuple[str, str], ...]:
    """Return what is weighed about a pair, each with its label.

    >>> [label for label, _ in propositions("base", "suspect")]
    ['H1', "H1'", 'H2']
    """
    return (
        ("H1", f"{b} was not numbered independently of {a}: weights were inherited, one from the other or both from a third model, "
               "directly or through steps."),
        ("H1'", f"{a} and {b} began from the same initial weights, or had one pattern that numbers units laid into both, and were trained separately. The tests of numbering see this as they see H1."),
        ("H2", f"{b} was numbered independently of {a}: it began from its own initialisation, whatever data it was trained on."),
    )  # fmt: skip
