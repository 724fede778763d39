"""``modelassay fingerprint MODEL --index RUN|FOLDER``: which models of an index it was not numbered independently of."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modelassay.commands.view import View
from modelassay.errors import UsageError
from modelassay.experiments.findings import Table
from modelassay.experiments.fingerprinting.sketches import SKETCH, sketch_from
from modelassay.fingerprints.independence.blocks import SampledModel
from modelassay.fingerprints.independence.sketch import sketch_of
from modelassay.fingerprints.index import Entry, Relative, Scan, scan_index, write_index
from modelassay.fingerprints.verdict import shown_p
from modelassay.models.checkpoints import checkpoint_of
from modelassay.models.weights_only import WeightsOnly
from modelassay.recording.log import encode_value
from modelassay.recording.tables import ENDED
from modelassay.runs.directory import Run, find_run, require_run
from modelassay.storage.durable import publish
from modelassay.storage.store import Store
from modelassay.zoo.resolve import family_of, resolve


def scan(model: str, *, index: str, runs: Path, alpha: float, nearest: int, report: Callable[[str], None]) -> View:
    """Read a sketch of ``model``, and show the models of an index that are nearest, with p corrected for all of its width.

    ``index`` is a run of fingerprinting, whose index is made where it is missing or older than the run, or a folder of Parquet files.

    Raises:
        UsageError: a run of another suite, or fewer than one model to show.
        CheckpointError: the model cannot be read.
        RecordError: there is no such index, or it is damaged.
        HostError: the Hub cannot be reached.
    """
    if nearest < 1:
        raise UsageError(f"--nearest: shows at least one model, got {nearest}")
    folder, notes = _index(index, runs, report)
    report(f"{model}: reading some rows of a few matrices")
    files = WeightsOnly(resolve(model, store=Store()).files)
    sketch = sketch_of(SampledModel(checkpoint_of(files)))
    result = scan_index(sketch, folder, nearest=nearest, besides=model)
    related = [relative for relative in result.relatives if relative.log10_p <= math.log10(alpha)]
    if sketch.is_empty:
        notes.append(
            f"nothing of {model} could be read that a sketch is made of; compare it with single models: modelassay fingerprint A B"
        )
    notes += [
        f"{sketch.num_bytes:,} bytes of {files.weights_bytes():,} read",
        "a sketch is blind to copies whose hidden dimensions were renumbered or rotated; a verdict is made of two models: modelassay fingerprint A B",
    ]
    return View(
        data={"model": model, "alpha": alpha, "index": str(folder), "num_models": result.num_models, "num_compared": result.num_compared,
              "read_bytes": sketch.num_bytes, "relatives": [_json(relative, alpha) for relative in result.relatives]},
        summary=[_sentence(model, sketch.width, result, related)],
        tables=[_table(result, alpha)] if result.relatives else [],
        lines=[f"note: {note}" for note in notes],
    )  # fmt: skip


def index_of(run: Run) -> Path:
    """Return the index of what a run has sketched so far, made if it is not there.

    Raises:
        UsageError: a run of another suite.
        OSError: it cannot be written.
    """
    if run.suite.experiment.name != "fingerprinting":
        raise UsageError(f"{run.folder}: a run of {run.suite.name} holds no sketches; give one of fingerprinting")
    target = run.folder / "index" / _key(run.folder / "cells")
    if target.is_dir():
        return target
    aside = target.with_name(f"{target.name}.part-{os.getpid()}")
    try:
        write_index(_entries(run), aside)
        aside.mkdir(parents=True, exist_ok=True)  # of a run without a sketch
        if not target.is_dir():  # another process may have been first
            publish(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for older in target.parent.iterdir():
        if older != target and ".part-" not in older.name:
            shutil.rmtree(older, ignore_errors=True)
    return target


def _index(index: str, runs: Path, report: Callable[[str], None]) -> tuple[Path, list[str]]:
    if find_run(index, runs) is None and Path(index).is_dir():
        return Path(index), []
    run = require_run(index, runs)
    report(f"{run.folder.name}: its index")
    statuses = run.statuses().values()
    missing = sum(status.outcome not in ENDED for status in statuses)
    return index_of(run), [f"{missing} of the run's {len(statuses)} models are not in the index yet"] if missing else []


def _key(cells: Path) -> str:
    """Return a name for what the logs below ``cells`` hold: their names and sizes, which only grow."""
    sizes = [
        f"{cell.name}/{entry.name} {entry.stat().st_size}"
        for cell in os.scandir(cells) if cell.is_dir() for entry in os.scandir(cell.path) if entry.name.startswith("attempt-")
    ]  # fmt: skip
    return hashlib.sha256("\n".join(sorted(sizes)).encode()).hexdigest()[:16]


def _entries(run: Run) -> Iterator[Entry]:
    data = run.data()
    about = {fact["cell"]: fact["value"] for fact in data.facts("sampled")}
    rows = {row["cell"]: row for row in data.cells.iter_rows(named=True)}
    for fact in data.facts(SKETCH):
        sketch, row, described = sketch_from(fact["value"]), rows[fact["cell"]], about.get(fact["cell"])
        if sketch is None or sketch.is_empty or described is None:
            continue
        yield Entry(
            model=row["model"], revision=described["revision"], architecture=described["architecture"], num_layers=described["num_layers"],
            family=family_of(row["model"], row["family"]), sketch=sketch, weights_bytes=described["weights_bytes"],
        )  # fmt: skip


def _sentence(model: str, width: int, result: Scan, related: list[Relative]) -> str:
    among = (
        f"of the {result.num_compared:,} models of {width} hidden dimensions (of {result.num_models:,} in the index)"
    )
    if not result.relatives:
        return f"{model}: {among} none could be compared"
    nearest = result.relatives[0]
    if not related:
        return f"{model}: not distinguishable from independent {among}; the nearest is {nearest.model}, {shown_p(nearest.log10_p)}"
    more = f", and {len(related) - 1} more" if len(related) > 1 else ""
    return (f"{model}: inherited; numbered like {nearest.model}{more} {among}, {shown_p(nearest.log10_p)}, corrected for all of them. Weights, directly or "
            "through steps, or the same initial weights, or one pattern laid into both.")  # fmt: skip


def _table(result: Scan, alpha: float) -> Table:
    rows = [
        (relative.model, relative.architecture, relative.family or "", f"{relative.alike.correlation:.3f}", shown_p(relative.log10_p),
         "inherited" if relative.log10_p <= math.log10(alpha) else "not distinguishable")
        for relative in result.relatives
    ]  # fmt: skip
    columns = ("nearest", "architecture", "family", "order alike", "p over the index", "verdict")
    return Table(title="nearest in the index", columns=columns, rows=rows)


def _json(relative: Relative, alpha: float) -> dict[str, Any]:
    found = asdict(relative)
    return {**found, "log10_p": encode_value(relative.log10_p), "alike": {**found["alike"], "correlation": relative.alike.correlation},
            "verdict": "inherited" if relative.log10_p <= math.log10(alpha) else "not distinguishable from independent"}  # fmt: skip
