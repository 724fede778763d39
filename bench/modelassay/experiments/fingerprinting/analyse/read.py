"""What the runs of single models recorded, read back from the tables."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from modelassay.errors import UsageError
from modelassay.fingerprints.background import Recorded
from modelassay.fingerprints.measure import curves_from, sizes_of
from modelassay.fingerprints.methods import ModelSummary
from modelassay.models.checkpoints import Stratum
from modelassay.models.reference import short_names
from modelassay.recording.tables import RunData
from modelassay.zoo.resolve import family_of

STRATUM = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "vocab_size", "tokenizer_key")
"""Of the fact ``model``, what a background is matched by."""


def models_of(tables: RunData) -> dict[str, ModelSummary]:
    """Return what was recorded of every model that was measured whole, by its reference, in the order of the run's cells.

    Raises:
        UsageError: a model was measured twice: it would count as its own relative.
    """
    rows = [row for row in tables.cells.iter_rows(named=True) if row["outcome"] == "done"]
    if not rows:
        return {}
    measured = [row["model"] for row in rows]
    if repeated := [model for model in dict.fromkeys(measured) if measured.count(model) > 1]:
        raise UsageError(f"fingerprinting: {repeated[0]} is in more than one cell; name each model once")
    names = short_names(measured)
    values: dict[str, list[tuple[str, str, int, float]]] = {}
    recorded = tables.metrics.filter(pl.col("name").is_in(["sigma", "product"]))
    for cell, *value in recorded.select("cell", "name", "role", "layer", "value").iter_rows():
        values.setdefault(cell, []).append((value[0], value[1], int(value[2]), float(value[3])))
    about = {fact["cell"]: fact["value"] for fact in tables.facts("model")}
    models = {}
    for name, row in zip(names, rows, strict=True):
        described = about[row["cell"]]
        stratum = Stratum(**{name: described[name] for name in STRATUM})
        curves = curves_from(values[row["cell"]], name=name, stratum=stratum, weights_key=described["weights"],
                             family=family_of(row["model"], row["family"]))  # fmt: skip
        sizes = sizes_of(stratum, described["intermediate_size"])
        models[row["model"]] = ModelSummary(curves=curves, sizes=sizes)
    return models


def recorded_scores(tables: RunData, names: Mapping[str, str]) -> Recorded:
    """Return the scores that cells recorded, by the two models' names; those with models that the run lacks are left out."""
    scores: dict[frozenset[str], dict[str, float]] = {}
    if "other" not in tables.metrics.columns:
        return scores
    of_cell = dict(tables.cells.select("cell", "model").iter_rows())
    for cell, method, other, value in (
        tables.metrics.filter(pl.col("name") == "score").select("cell", "method", "other", "value").iter_rows()
    ):
        if of_cell[cell] in names and other in names:
            scores.setdefault(frozenset((names[of_cell[cell]], names[other])), {})[method] = float(value)
    return scores
