"""The figure of a comparison: each case's ratio with its interval, and the band that is called same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

MOST_ROWS: Final = 60
"""Cases drawn; those farthest from 1."""


def ratios_figure(cells: Sequence[Mapping[str, Any]], relative: float) -> dict[str, Any]:
    """Return the Vega-Lite specification of the ratios of ``cells``, rows of a comparison's document.

    Its data is named ``ratios``: case, measure, ratio, low, high, verdict.
    """
    import altair as alt

    from modelassay.charts import COLOURS, GREY, rows, specification

    drawn = sorted((cell for cell in cells if cell["ratio"]), key=lambda cell: -abs(cell["ratio"]["value"] - 1))[
        :MOST_ROWS
    ]
    records = [
        {"case": f"{cell['case']} ({cell['source']})" if len({c["source"] for c in cells}) > 1 else cell["case"],
         "measure": cell["measure"], "verdict": cell["verdict"], "ratio": cell["ratio"]["value"], "low": cell["ratio"]["low"],
         "high": cell["ratio"]["high"]}
        for cell in drawn
    ]  # fmt: skip
    verdicts = ("slower", "faster", "same", "inconclusive")
    scale = alt.Scale(domain=list(verdicts), range=[COLOURS[1], COLOURS[2], COLOURS[0], GREY])
    base = alt.Chart(rows(records, "ratios")).encode(
        y=alt.Y("case:N", title=None, sort=None, axis=alt.Axis(labelLimit=420)),
        color=alt.Color("verdict:N", scale=scale, title=None),
        tooltip=["case:N", "measure:N", "ratio:Q", "low:Q", "high:Q", "verdict:N"],
    )
    ticks = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="candidate over base", scale=alt.Scale(zero=False, type="log")), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=60).encode(x="ratio:Q", shape=alt.Shape("measure:N", title=None))
    band = alt.Chart(rows([{"from": 1 / (1 + relative), "to": 1 + relative}])).mark_rect(color=GREY, opacity=0.2)
    chart = band.encode(x="from:Q", x2="to:Q") + ticks + points
    return specification(chart.properties(width=420))
