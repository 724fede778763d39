"""Draw `bottom_k` against torch.topk over k from a results file: ``python kernels/benchmarks/plot_bottom_k.py RESULTS.json OUT.png``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLOURS = {"modelassay": "#0072b2", "torch.topk": "#d55e00"}


def sweep(results: dict[str, Any]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Return (provider, dtype) -> (k, microseconds per row) in order of k, of the rows of `test_sweep_over_k`.

    Raises:
        ValueError: the file holds no such row.
    """
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in results["benchmarks"]:
        if "test_sweep_over_k" in row["name"] and row.get("median_us") is not None:
            lines.setdefault((row["provider"], row["dtype"]), []).append((row["k"], row["median_us"] / row["rows"]))
    if not lines:
        message = "no row of bottom_k::test_sweep_over_k; run ci/benchmark-kernels"
        raise ValueError(message)
    return {key: sorted(points) for key, points in lines.items()}


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw microseconds per row over k, both axes logarithmic, a panel per dtype."""
    lines = sweep(results)
    dtypes = sorted({dtype for _, dtype in lines})
    figure = Figure(figsize=(4.4 * len(dtypes), 3.6), layout="constrained")
    for axis, dtype in zip(figure.subplots(1, len(dtypes), squeeze=False, sharey=True).flat, dtypes, strict=True):
        for (provider, of), points in lines.items():
            if of == dtype:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=provider, color=COLOURS[provider])
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(f"{dtype}, 151,936 columns, sorted", loc="left", fontsize="medium")
        axis.set_xlabel("k")
        axis.grid(color="0.9", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small")
    figure.supylabel("µs per row")
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
