"""What a training is, as data; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

Precision = Literal["float32", "bfloat16", "float16", "float64"]
"""Name of a torch type."""
_FIRST_FIELDS = frozenset({
    "num_steps",
    "batch_size",
    "learning_rate",
    "warmup_fraction",
    "weight_decay",
    "beta1",
    "beta2",
    "max_grad_norm",
})


@dataclass(frozen=True, kw_only=True)
class Training:
    """AdamW (Loshchilov and Hutter 1711.05101) with linear warm-up, and the precision of everything it keeps.

    Two other updates serve as controls: plain gradient descent, and noise that knows no gradient.
    """

    num_steps: int
    """Updates of the weights."""
    batch_size: int
    """Rows of one forward pass: blocks when pre-training, examples in SFT."""
    learning_rate: float
    warmup_fraction: float = 0.05
    weight_decay: float = 0.1
    """On matrices; biases and norms are left alone."""
    beta1: float = 0.9
    beta2: float = 0.99
    max_grad_norm: float | None = 1.0
    """Gradients of a greater norm are scaled down to it; None leaves them as they are."""
    eps: float = 1e-8
    accumulation: int = 1
    """Forward passes of one update; each token that carries loss counts alike, in whichever pass it stands."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """What follows the warm-up: down to zero along a half cosine or a line, or the same to the end."""
    weights: Precision = "float32"
    """Type of the weights that are trained; a model in another type is refused."""
    states: Precision | None = None
    """Type of AdamW's two averages; that of the master copy or, where there is none, of the weights if None."""
    master: Precision | None = None
    """Type of the copy of the weights that is updated, and rounded into the weights after each step; no copy if None."""
    implementation: Literal["fused", "foreach", "single"] = "fused"
    """Which of torch's AdamW. In 16 bits they differ: fused rounds once a step, the others after every operation."""
    optimiser: Literal["adamw", "muon", "sgd", "noise"] = "adamw"
    """``muon``: the momentum of each matrix made orthogonal (Jordan et al. 2024), AdamW for embeddings, head and vectors; ``sgd``: the gradient times the learning rate, without momentum; ``noise``: in its place a standard normal number for each weight,
    so that a step is as large as one of AdamW that moves every weight by the learning rate. Both decay weights as AdamW does."""
    stochastic_rounding: bool = False
    """Round weights in bfloat16 up or down at random, with probabilities that make the mean exact, instead of to the nearest."""
    autocast: Precision | None = None
    """Type in which products of the forward pass are computed, whatever the weights are; that of the weights if None."""

    def recipe(self) -> dict[str, Any]:
        """Return the fields as JSON, without the later ones that stand at their default.

        The first eight fields are always there; a field that was added since is left out unless it is used, so that
        what was trained before it existed keeps its key.

        >>> "accumulation" in Training(num_steps=1, batch_size=1, learning_rate=1.0).recipe()
        False
        """
        unused = {field.name for field in fields(self) if getattr(self, field.name) == field.default} - _FIRST_FIELDS
        return {key: value for key, value in vars(self).items() if key not in unused}
