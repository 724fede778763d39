"""Compares what two runs of one suite recorded, whatever version of modelassay wrote them: the gate of every refactoring.

::

    python tests/compare_runs.py OLD_RUN NEW_RUN [--prints OLD.json NEW.json]

Cells are matched by their label, metrics by name and labels. Exit code 0: every metric of the old run has the same bits in the
new one; a fact counts as the metrics that it was before there were facts. With ``--prints`` the findings in two
outputs of ``modelassay show RUN --json`` are compared as they are printed, to four digits.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Key = tuple[str, str, str]


def lines_of(cell_dir: Path) -> list[dict[str, Any]]:
    """Lines of a cell that count: those that no later attempt resumed before."""
    lines: list[dict[str, Any]] = []
    paths = sorted(cell_dir.glob("attempt-*.jsonl"), key=lambda path: int(path.stem.partition("-")[2]))
    for path in paths:
        for text in path.read_text().splitlines():
            line = json.loads(text)
            if line["kind"] == "attempt":
                lines = [earlier for earlier in lines if earlier["seq"] < line["resumed_at"]]
            else:
                lines.append(line)
    return lines


def cells_of(run: Path) -> Iterator[tuple[str, Path]]:
    """Label and folder of each cell."""
    for cell in json.loads((run / "run.json").read_text())["suite"]["cells"]:
        label = json.dumps(cell["axes"], sort_keys=True) if cell["axes"] else json.dumps(cell["params"].get("model"))
        yield label, run / "cells" / cell["id"]


def metrics_of(run: Path) -> dict[Key, object]:
    """Every metric, and every number in a fact, by cell, name and labels."""
    values: dict[Key, object] = {}
    for label, folder in cells_of(run):
        for line in lines_of(folder):
            if line["kind"] == "metric":
                values[label, line["name"], json.dumps(line["labels"], sort_keys=True)] = line["value"]
            elif line["kind"] == "fact":
                for name, labels, value in as_metrics(line):
                    values[label, name, json.dumps(labels, sort_keys=True)] = value
    return values


def as_metrics(fact: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], object]]:
    """A fact as the metrics that it was before there were facts; others under their own kind."""
    value, labels = fact["value"], fact["labels"]
    match fact["fact"]:
        case "model":
            about = {name: "none" if entry is None else entry for name, entry in value.items()}
            about["tokenizer"] = about.pop("tokenizer_key")
            num_layers = about.pop("num_layers")
            yield "model", about, float(num_layers)
        case "estimate":
            others = {name: entry for name, entry in labels.items() if name != "quantity"}
            for bound in ("value", "low", "high"):
                yield labels["quantity"], {**others, "bound": bound}, value.get(bound, "nan")
        case "ritz":
            for metric, key in (("ritz", "values"), ("residual", "residuals"), ("weight", "weights")):
                for at, number in enumerate(value[key]):
                    yield metric, {"run": labels["run"], "at": at}, number
        case "eigenvalues":
            for at, number in enumerate(value):
                yield "eigenvalue", {"at": at}, number
        case kind:
            yield f"fact {kind}", {"labels": labels, "value": value}, True


def differences(old: dict[Key, object], new: dict[Key, object]) -> list[str]:
    """What the new run lacks, has otherwise, or has besides."""
    lines = []
    for key, value in old.items():
        if key not in new:
            lines.append(f"missing: {' '.join(key)} = {value}")
        elif new[key] != value:
            lines.append(f"changed: {' '.join(key)}: {value} -> {new[key]}")
    lines += [f"added: {' '.join(key)} = {new[key]}" for key in new.keys() - old.keys()]
    return lines


def findings_of(path: Path) -> dict[Key, object]:
    """Findings as they are printed, to four digits."""
    shown = {}
    for finding in json.loads(path.read_text())["findings"] or []:
        numbers = [finding.get(name) for name in ("value", "low", "high")]
        printed = [f"{number:.4g}" if isinstance(number, int | float) else str(number) for number in numbers]
        shown["", finding["name"], json.dumps(finding["labels"], sort_keys=True)] = printed
    return shown


def main(arguments: list[str]) -> int:
    """Print the differences; 0 where there are none."""
    if "--prints" in arguments:
        at = arguments.index("--prints")
        old, new = (findings_of(Path(path)) for path in arguments[at + 1 : at + 3])
    else:
        old, new = (metrics_of(Path(path)) for path in arguments[:2])
    lines = differences(dict(old), dict(new))
    print("\n".join(lines[:60]))
    print(f"{len(old)} and {len(new)} values, {len(lines)} differences")
    return min(len(lines), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
