"""The roofline: each provider's time as a share of the least that the measured peaks allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from modelassay.charts import rows, specification


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One provider at one size."""

    group: str
    """Shape, type and caches."""
    provider: str
    flops: int
    bytes: int
    seconds: float
    gbps: float | None
    """The ceiling of memory; None where it was not measured."""
    tflops: float | None
    """The ceiling of products; None where they are not most of the work."""

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.bytes

    @property
    def roof(self) -> float:
        """Share of the roof: the least time that both ceilings allow, over the time it took."""
        least = [0.0 if self.gbps is None else self.bytes / self.gbps / 1e9]
        least.append(0.0 if self.tflops is None else self.flops / self.tflops / 1e12)
        return max(least) / self.seconds


def roofline_figure(op: str, dots: Sequence[Dot]) -> dict[str, Any]:
    """Return shares of the roof by size, 1 being the roof, as a Vega-Lite specification."""
    data = rows(
        (
            {"what": dot.group, "provider": dot.provider, "share": dot.roof, "flops per byte": dot.intensity}
            for dot in dots
        ),
        name="shares",
    )
    roof = alt.Chart(rows([{"share": 1.0}], name="roof")).mark_rule(strokeDash=[5, 3]).encode(x="share:Q")
    points = (
        alt
        .Chart(data)
        .mark_point(filled=True, size=70)
        .encode(
            x=alt.X("share:Q", title="share of the roof of measured peaks", scale=alt.Scale(type="log")),
            y=alt.Y("what:N", title=None),
            color=alt.Color("provider:N", title=None),
            tooltip=["what:N", "provider:N", "share:Q", alt.Tooltip(r"flops per byte:Q")],
        )
    )
    return specification(alt.layer(points, roof).properties(width=520, title=op))
