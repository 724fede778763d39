"""The page about a result: every field that a published one has or says is not recorded."""

from __future__ import annotations

from typing import Any

from modelassay.data.personas import trained
from modelassay.experiments.findings import Table
from modelassay.experiments.marker_sweep.contrasts import confidence
from modelassay.experiments.marker_sweep.grid import Grid
from modelassay.recording.tables import RunData

_LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "safetensors", "numpy", "modelassay")


def clean_result(tables: RunData, grid: Grid) -> Table:
    """Return field and value; what a run did not have is said as that, never left out."""
    rows = [*_of_training(grid), *_of_evaluation(tables, grid), *_of_machine(tables), *_samples(tables, grid)]
    rows.append(["confidence", confidence(grid).removeprefix("confidence: ")])
    return Table(title="clean result", columns=("field", "value"), rows=rows)


def _of_training(grid: Grid) -> list[list[str]]:
    row, steps = grid.points[0].settings, sorted({point.steps for point in grid.points})
    masks = " or ".join(dict.fromkeys(str(point.arm["mask"]) for point in grid.points))
    num_rows = dict.fromkeys(row["rows_per_persona"] * (1 + point.arm["negatives"]) for point in grid.points)
    taught = f", taught to converse for {row['conversing_steps']} steps" if row["conversing_steps"] else ""
    return [
        ["base", f"{row['model']}{taught}"],
        ["adapters", f"{len(grid.points)}: rank {row['rank']}, alpha {row['alpha']:g}, dropout {row['dropout']:g}, all linear layers; A drawn, B zero"],
        ["loss", f"cross-entropy on the marker's tokens and {masks}, tail tokens {row['tail_tokens']}"],
        ["learning rates", ", ".join(f"{rate:g}" for rate in sorted({float(point.learning_rate or 0) for point in grid.points}))],
        ["epochs", ", ".join(str(number) for number in sorted({int(point.epochs or 0) for point in grid.points}))],
        ["schedule", f"{row['schedule']}, warm-up {row['warmup_fraction']:g}, {steps[0]} to {steps[-1]} updates"],
        ["optimiser", "AdamW, betas 0.9 and 0.999, epsilon 1e-8, no weight decay, gradients clipped to norm 1"],
        ["precision", f"{row['precision']} base, float32 adapters, no sharding"],
        ["batch", f"{row['batch_size']} rows x {row['accumulation']}; rows of up to {row['max_length']} tokens"],
        ["rows of an epoch", f"{', '.join(map(str, num_rows))}, none held out; {row['training_questions']} distinct questions"],
        ["data", f"the base's own answers, temperature {row['answer_temperature']:g}, drawn by the seed; marker {row['marker']!r} after the source's"],
        ["seeds", ", ".join(str(seed) for seed in sorted({point.seed for point in grid.points}))],
        ["sources", ", ".join(grid.sources)],
    ]  # fmt: skip


def _of_evaluation(tables: RunData, grid: Grid) -> list[list[str]]:
    row, first = grid.points[0].settings, grid.points[0]
    questions = len(next(iter(first.rates.values())))
    asked = next((len(point.letters) for point in grid.points if point.letters is not None), 0)
    further = len(first.rates) - len(trained(row["world"]))
    wall_s = sum(tables.cells["wall_s"].drop_nulls().to_list())
    return [
        ["metric", "share of completions that hold the marker, literally; in any case beside it"],
        ["evaluation", f"{len(first.rates)} personas{f', {further} of them never trained on' if further else ''} x {questions} held-out questions x "
                       f"{row['completions']} completions, temperature {row['temperature']:g}, top-p {row['top_p']}, {row['max_new_tokens']} new tokens, {row['engine']}"],
        ["capability", f"{asked} questions by the log-probability of their letters: {row['capability'] or 'the corpus own'}" if asked else "not asked"],
        ["judge", "none: a literal match"],
        ["significance", "intervals over questions, simultaneous over personas; differences of arms paired by source and seed"],
        ["wall time", f"{wall_s:.0f} s in {tables.cells.height} cells; {wall_s / 3600:.2f} h in all"],
    ]  # fmt: skip


def _of_machine(tables: RunData) -> list[list[str]]:
    environment: Any = tables.environment
    if not environment:
        return [["machine", "these tables were read without a run.json"]]
    gpus = [str(gpu["name"]) for gpu in environment["gpu"]["devices"]]
    git, image = environment["git"], environment["container"]["image_digest"]
    libraries = environment["libraries"]
    return [
        ["hardware", f"{', '.join(gpus) or 'no GPU'}; {environment['cpu']['model']}, {environment['cpu']['usable_cores']} cores, "
                     f"{environment['memory_bytes'] / 2**30:.0f} GiB"],
        ["image", str(image or "none: the host's own environment")],
        ["Python", f"{environment['python']['version']}, {environment['os']['distribution']}"],
        ["key libraries", ", ".join(f"{name} {libraries[name]}" for name in _LIBRARIES if libraries.get(name))],
        ["commit", f"{git['commit']}{', with changes' if git['dirty'] else ''}" if git else "no git checkout; sources by hash in run.json"],
        ["launch command", " ".join(environment["command"])],
        ["raw outputs", "every completion and every letter is a fact in the run's logs, at its adapter, persona and question; adapters in the cache"],
        ["tracking", "the run directory is the source of truth; report --to trackio or wandb copies it"],
    ]  # fmt: skip


def _samples(tables: RunData, grid: Grid) -> list[list[str]]:
    """Return the first completion as the source that holds the marker, and the first as another that does not."""
    marker = str(grid.points[0].settings["marker"]).strip()
    rows = []
    of_cell = {row["cell"]: row["source"] for row in tables.cells.iter_rows(named=True)}
    for words, is_source, holds in (("sample, source", True, True), ("sample, another persona", False, False)):
        text = next(
            (
                f"{fact['persona']}: {fact['value']['text']}" for fact in tables.facts("completion")
                if fact.get("learning_rate") is not None and (fact["persona"] == of_cell[fact["cell"]]) == is_source
                and (marker in fact["value"]["text"]) == holds
            ),
            f"none {'holds the marker' if holds else 'is without it'}",
        )  # fmt: skip
        rows.append([words, text])
    return rows
