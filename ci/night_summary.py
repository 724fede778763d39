"""Writes NIGHT/summary.md: what the gate and the suites of a night said, for a pull request or a job's page.

python ci/night_summary.py NIGHT HISTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def number(value: float | None) -> str:
    """Return a number to four digits, nothing for None."""
    return "" if value is None else f"{value:.4g}"


def gate_lines(gate: dict[str, Any]) -> list[str]:
    """Return what the gate said: its answer, a table of its cases, cleared alerts and guards."""
    lines = [f"**{gate['verdict']}**", "", *(f"- {sentence}" for sentence in gate["answer"]), ""]
    lines += ["| case | base ms | ms | ratio | interval | verdict |", "|---|---|---|---|---|---|"]
    for cell in gate["cells"]:
        ratio = cell["ratio"] or {"value": None, "low": None, "high": None}
        interval = "" if ratio["low"] is None else f"{number(ratio['low'])} to {number(ratio['high'])}"
        lines.append(f"| {cell['case']} | {number(cell['base_ms'])} | {number(cell['candidate_ms'])} | {number(ratio['value'])} "
                     f"| {interval} | {cell['verdict']}{': ' + cell['why'] if cell['why'] else ''} |")  # fmt: skip
    about = gate["gate"]
    lines += [
        "",
        *(f"- cleared: {row['case']}, {number(row['ratio'])} at look {row['look']}" for row in about["cleared"]),
    ]
    return lines + [f"- guard: {row['text']}" for row in about["guards"]]


def main(night: Path, history: Path) -> None:
    """Write the summary of the folder ``night`` into it, and print it."""
    lines = [f"# Night {night.name}", ""]
    gate = night / "gate.json"
    if gate.exists() and gate.stat().st_size:
        document = json.loads(gate.read_text())
        lines += [*gate_lines(document), ""]
        lines += [f"- advice: {p['case']}: {p['measure']} is {number(p['ratio'])} times what it was before {p['night']}"
                  for p in document.get("history", {}).get("change_points", [])]  # fmt: skip
    else:
        lines += ["The gate said nothing; see its log.", ""]
    lines += [f"- run: `{run.parent.name}`" for run in sorted(night.glob("*/run.json"))]
    lines += [f"- trend: `{path}`" for path in sorted(history.glob("trend-*.png"))]
    (night / "summary.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
