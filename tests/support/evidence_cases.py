"""Runs of known ancestry without a run: curves under the names of the zoo and of folders, and what cells would have recorded."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from modelassay import zoo
from modelassay.experiments.fingerprinting.analyse.pairs import Evidence, gather
from modelassay.fingerprints.background import Background, Recorded
from modelassay.fingerprints.configuration import Sizes
from modelassay.fingerprints.curves import ROLES, Curves
from modelassay.fingerprints.methods import ModelSummary
from modelassay.models.reference import short_names
from support.curve_cases import child, process
from support.curve_cases import make as curves_of

MINIS = tuple(f"zoo:mini-{number}" for number in range(1, 10))
CHILDREN = tuple(
    f"zoo:mini-{number}+{step}" for number in (1, 2, 3) for step in ("sft-en", "cpt-25", "cpt-100", "depth")
)
OTHERS = ("zoo:mini-data", "zoo:mini-mix", "zoo:base", "zoo:stranger-1", "zoo:base+cpt-25", "zoo:child-sft")
WORLD = (*MINIS, *OTHERS, *CHILDREN)
"""Nine roots that differ in their seed alone, two of other text, two of another size; five families with descendants."""


def numbers(reference: str, name: str, *, family: str | None = None, parent: ModelSummary | None = None, num_layers: int = 6,
            width: int = 48, tokenizer: str = "t", seed: int = 0) -> ModelSummary:  # fmt: skip
    """A model of a folder: random curves, or those of ``parent`` a little moved."""
    stratum = (num_layers, width, tokenizer)
    if parent is None:
        rng = np.random.default_rng([seed, *reference.encode()])
        curves = curves_of(name, process(rng, 1, num_layers, 0.8)[0], family, stratum)
    else:
        moved = child(parent.curves, name, noise=0.005, seed=len(reference))
        kept = {role: moved.sigma[role][:num_layers] for role in ROLES}
        curves = Curves(name=name, sigma=kept, stratum=stratum, family=family)
    sizes = Sizes(num_layers=num_layers, hidden_size=width, num_heads=4, num_kv_heads=2, intermediate_size=3 * width,
                  vocab_size=512, tokenizer_key=tokenizer)  # fmt: skip
    return ModelSummary(curves=curves, sizes=sizes)


def models(references: Sequence[str] = WORLD, *, seed: int = 0) -> dict[str, ModelSummary]:
    """Models of the zoo by reference, parents before children."""
    found: dict[str, ModelSummary] = {}
    for reference, name in zip(references, short_names(references), strict=True):
        made, family = zoo.member(reference), zoo.family(reference)
        root = f"zoo:{family}"
        parent = None if root == reference else found[root]
        found[reference] = numbers(reference, name, family=family, parent=parent, num_layers=made.shape.num_layers,
                                   width=made.shape.hidden_size, seed=seed)  # fmt: skip
    return found


def recorded(found: dict[str, ModelSummary], *methods: str, seed: int = 0) -> Recorded:
    """Scores of all pairs of models by methods that need weights: higher for relatives, one in ten not defined."""
    rng = np.random.default_rng(seed)
    curves = [model.curves for model in found.values()]
    scores: dict[frozenset[str], dict[str, float]] = {}
    for at, a in enumerate(curves):
        for b in curves[:at]:
            values = {method: float(rng.normal() + 3 * (a.family == b.family)) for method in methods}
            scores[frozenset((a.name, b.name))] = {m: np.nan if rng.random() < 0.1 else v for m, v in values.items()}
    return scores


def evidence_of(found: dict[str, ModelSummary], scores: Recorded | None = None, *, alpha: float = 0.05) -> Evidence:
    return gather(found, scores or {}, Background.from_models(found.values(), scores), alpha=alpha)


def copy_of(model: ModelSummary, name: str, *, family: str | None, key: str | None = None) -> ModelSummary:
    return replace(model, curves=replace_curves(model.curves, name=name, family=family, weights_key=key))


def replace_curves(curves: Curves, *, name: str, family: str | None, weights_key: str | None) -> Curves:
    return Curves(
        name=name,
        sigma=curves.sigma,
        stratum=curves.stratum,
        family=family,
        extra=curves.extra,
        weights_key=weights_key,
    )
