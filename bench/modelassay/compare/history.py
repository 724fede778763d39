"""Nights gone by: comparisons and runs appended to Parquet, and where a series changed.

Hive layout, one file a night, so that DuckDB and Polars prune by folder and no file is ever written twice::

    HISTORY/suite=gate/device=amd-epyc-2-cores/date=2026-11-29/<utc>.parquet

Change points are advisory: they find slow creep that no single night can show, and never decide an exit code.
"""

from __future__ import annotations

import datetime
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from modelassay.compare.frame import Source
from modelassay.compare.stored import median_ms, share_draws
from modelassay.errors import HostError

if TYPE_CHECKING:
    import polars as pl

FEWEST_NIGHTS: Final = 8
"""On either side of a change point there are at least half as many; with fewer nights nothing is looked for."""
PENALTY: Final = 3.0
"""Of a change point, times the noise's variance and log n: a linear penalty as in Killick et al. 2012, raised since nights repeat."""
COLUMNS: Final = ("utc", "case", "value", "low", "high", "measure", "verdict", "night")
FLOATS: Final = ("value", "low", "high")


@dataclass(frozen=True, kw_only=True)
class ChangePoint:
    """Where the level of a series changed."""

    suite: str
    device: str
    case: str
    measure: str
    night: str
    """The first of the new level."""
    ratio: float
    """New level over old."""


def slug(text: str | None) -> str:
    """Return text as the name of a folder.

    >>> slug("AMD EPYC, 2 cores")
    'amd-epyc-2-cores'
    """
    return re.sub(r"[^a-z0-9]+", "-", (text or "unknown").lower()).strip("-") or "unknown"


def rows_of_gate(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a gate's times: of the candidate, which is the next base; a case that is wrong has none."""
    return [
        {"case": cell["case"], "value": cell["candidate_ms"], "low": None, "high": None, "measure": "ms", "verdict": cell["verdict"]}
        for cell in document["cells"]
        if cell["candidate_ms"] is not None
    ]  # fmt: skip


def rows_of_source(source: Source) -> list[dict[str, Any]]:
    """Return a run's or a file's medians, and shares of the measured peak where there are peaks."""
    rows: list[dict[str, Any]] = []
    for case, timing in source.timings.items():
        share = share_draws(timing)
        plain = {"case": case, "low": None, "high": None, "verdict": ""}
        rows.append(plain | {"value": median_ms(timing), "measure": "ms"})
        if share is not None:
            rows.append(plain | {"value": float(np.exp(share[0])), "measure": "share of peak"})
    return rows


def append(
    history: Path, rows: Sequence[Mapping[str, Any]], *, suite: str, device: str | None, utc: datetime.datetime
) -> Path | None:
    """Append the rows of one night, and return the new file; None without rows. It appears only when it is whole.

    Raises:
        HostError: the folder cannot be written.
    """
    import polars as pl

    if not rows:
        return None
    folder = history / f"suite={slug(suite)}" / f"device={slug(device)}" / f"date={utc:%Y-%m-%d}"
    stamp = utc.strftime("%Y%m%dT%H%M%SZ")
    path = folder / f"{stamp}-{secrets.token_hex(3)}.parquet"
    schema = {name: pl.Float64 if name in FLOATS else pl.String for name in COLUMNS}
    frame = pl.DataFrame(
        [{**row, "utc": utc.isoformat(), "night": f"{utc:%Y-%m-%d %H:%M}"} for row in rows], schema=schema
    )
    part = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(part)
        part.rename(path)
    except OSError as error:
        raise HostError(f"{path}: the history cannot be written: {error.strerror or error}") from error
    return path


def read(history: Path) -> tuple[pl.DataFrame, list[str]]:
    """Return all nights, oldest first, and a sentence on each file that is none.

    The columns are those of a file, with suite, device and date from its folders. A file that cannot be read costs its night and no other.
    """
    import polars as pl

    folders = dict.fromkeys(("suite", "device", "date"), pl.String)
    paths = sorted(history.glob("suite=*/device=*/date=*/*.parquet"))
    frames, left_out = [], []
    for path in paths:
        try:
            frame = pl.read_parquet(path, hive_partitioning=True, hive_schema=folders).select(*COLUMNS, *folders)
            frames.append(frame.cast({name: pl.Float64 if name in FLOATS else pl.String for name in frame.columns}))
        except (pl.exceptions.PolarsError, OSError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            left_out.append(f"{path}: no night of this history ({reason}); left out; take it out and look at it")
    if not frames:
        return pl.DataFrame(schema=dict.fromkeys((*COLUMNS, *folders), pl.String)), left_out
    return pl.concat(frames).sort("utc", "case"), left_out


def series(frame: pl.DataFrame) -> dict[tuple[str, str, str, str], list[tuple[str, float]]]:
    """Return night and value of every series, by suite, device, case and measure."""
    found: dict[tuple[str, str, str, str], list[tuple[str, float]]] = {}
    for row in frame.iter_rows(named=True):
        if row["value"] is not None and 0 < float(row["value"]) < math.inf:
            key = (row["suite"], row["device"], row["case"], row["measure"])
            found.setdefault(key, []).append((row["night"], float(row["value"])))
    return found


def change_points(frame: pl.DataFrame) -> list[ChangePoint]:
    """Return where the level of a series changed: PELT on the logarithm with a normal cost (Killick et al. 2012, by ruptures).

    The noise is the median absolute difference of neighbours, so that a change of level does not hide itself.
    """
    points = []
    for (suite, device, case, measure), nights in series(frame).items():
        logs = np.log([value for _, value in nights])
        if logs.size < FEWEST_NIGHTS:
            continue
        import ruptures  # here: the first nights need none of it

        noise = max(float(np.median(np.abs(np.diff(logs)))) / 0.9539, 1e-4)  # of a normal law's differences
        model = ruptures.Pelt(model="l2", min_size=FEWEST_NIGHTS // 2, jump=1).fit((logs / noise)[:, None])
        edges = [0, *model.predict(pen=PENALTY * np.log(logs.size))]
        for before, at, after in zip(edges, edges[1:], edges[2:], strict=False):
            ratio = float(np.exp(np.median(logs[at:after]) - np.median(logs[before:at])))
            points.append(
                ChangePoint(suite=suite, device=device, case=case, measure=measure, night=nights[at][0], ratio=ratio)
            )
    return points


def trend_figure(frame: pl.DataFrame, *, suite: str) -> dict[str, Any]:
    """Return the Vega-Lite specification of a suite's series, each over its own first night; its data is named ``trend``."""
    import altair as alt

    from modelassay.charts import rows, specification

    records = [
        {"night": night, "case": case, "device": device, "relative": value / nights[0][1], "value": value, "measure": measure}
        for (of, device, case, measure), nights in series(frame).items() if of == suite
        for night, value in nights
    ]  # fmt: skip
    chart = alt.Chart(rows(records, "trend")).mark_line(point=True).encode(
        x=alt.X("night:O", title=None),
        y=alt.Y("relative:Q", title="over the first night", scale=alt.Scale(zero=False)),
        color=alt.Color("case:N", title=None, legend=alt.Legend(labelLimit=320)),
        strokeDash=alt.StrokeDash("device:N", title=None),
        detail="measure:N",
        tooltip=["night:O", "case:N", "measure:N", "value:Q", "relative:Q"],
    )  # fmt: skip
    return specification(chart.properties(width=520, height=280))
