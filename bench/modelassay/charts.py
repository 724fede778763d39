"""Figures as data: one look for all of them, and their writing as files.

A figure is a Vega-Lite specification with its data inside. The file of a run, the picture in a report and the numbers that a
test reads are all made of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from modelassay.errors import HostError, UsageError
from modelassay.storage.durable import write_whole

Row = Mapping[str, Any]
Panel = alt.Chart | alt.LayerChart | alt.FacetChart

# Okabe and Ito's palette without its yellow, which is too faint for a line; dashes tell repeats apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
DASHES: tuple[list[int], ...] = ([1, 0], [6, 3], [2, 2], [6, 2, 2, 2])
GREY = "#999999"
COLUMNS = 4
"""Panels beside each other."""
FORMATS = (".png", ".svg", ".pdf")
PNG_SCALE = 2
"""Pixels of a PNG for each unit of the specification: sharp on paper and on a telephone."""

_CONFIG: dict[str, Any] = {
    "background": "white",
    "view": {"stroke": None},
    "axis": {"gridColor": "#ebebeb", "titleFontWeight": "normal", "titleFontSize": 12, "labelFontSize": 11, "labelLimit": 260},
    "title": {"anchor": "start", "fontSize": 13, "fontWeight": "normal", "subtitleFontSize": 11},
    "legend": {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 420, "symbolStrokeWidth": 2},
}  # fmt: skip


def specification(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """Return a chart as a Vega-Lite specification in the project's look; Altair checks that it is a valid one."""
    spec: dict[str, Any] = chart.to_dict()
    return {**spec, "config": _CONFIG}


def rows(records: Iterable[Row], name: str | None = None) -> alt.InlineData:
    """Return data for a chart: one mapping for each point, numbers that are not finite as null; `data_of` finds it by ``name``."""
    values = [{key: _plain(value) for key, value in record.items()} for record in records]
    return alt.InlineData(values=values, name=alt.Undefined if name is None else name)


def data_of(figure: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the data of that name in a specification.

    Raises:
        KeyError: there is none.
    """
    parts: list[Any] = [figure]
    while parts:
        part = parts.pop()
        if isinstance(part, Mapping):
            data = part.get("data")
            if isinstance(data, Mapping) and data.get("name") == name and "values" in data:
                return list(data["values"])
            parts.extend(part.values())
        elif isinstance(part, list):
            parts.extend(part)
    raise KeyError(name)


def _plain(value: Any) -> Any:
    """Return a number as JSON can hold it, to seven digits.

    >>> _plain(1 / 3), _plain(float("nan")), _plain("a")
    (0.3333333, None, 'a')
    """
    if isinstance(value, str | bool) or value is None:
        return value
    if isinstance(value, int):
        return value
    return float(f"{float(value):.7g}") if math.isfinite(value) else None


def colour(
    field: str, names: Sequence[str], *, title: str | None = None, legend: alt.Legend | None = None
) -> alt.Color:
    """Return a colour for each name, the palette again and again; together with `dash` up to 28 are told apart."""
    scale = alt.Scale(domain=list(names), range=[COLOURS[index % len(COLOURS)] for index in range(len(names))])
    return alt.Color(f"{field}:N", scale=scale, title=title, legend=alt.Undefined if legend is None else legend)


def dash(
    field: str, names: Sequence[str], *, title: str | None = None, legend: alt.Legend | None = None
) -> alt.StrokeDash:
    """Return a dash for each name: another one each time that the palette begins anew."""
    dashes = [DASHES[index // len(COLOURS) % len(DASHES)] for index in range(len(names))]
    scale = alt.Scale(domain=list(names), range=dashes)
    return alt.StrokeDash(f"{field}:N", scale=scale, title=title, legend=alt.Undefined if legend is None else legend)


def panels(charts: Sequence[Panel], *, columns: int = COLUMNS) -> alt.ConcatChart:
    """Set charts beside each other in rows of ``columns``."""
    return alt.concat(*charts, columns=columns, spacing=18)


def write_figure(figure: Mapping[str, Any], path: Path) -> None:
    """Draw a figure as PNG, SVG or PDF, by the suffix of ``path``, which appears only when it is whole.

    Raises:
        UsageError: another suffix.
        HostError: the file cannot be written.
    """
    import vl_convert

    spec = json.dumps(figure, allow_nan=False)
    match path.suffix:
        case ".png":
            content: bytes = vl_convert.vegalite_to_png(spec, scale=PNG_SCALE)
        case ".svg":
            content = vl_convert.vegalite_to_svg(spec).encode()
        case ".pdf":
            content = vl_convert.vegalite_to_pdf(spec)
        case _:
            raise UsageError(f"{path}: a figure ends in {', '.join(FORMATS)}, got {path.suffix or 'no ending'}")
    _publish(path, content)


def write_specification(figure: Mapping[str, Any], path: Path) -> None:
    """Write a figure's specification as JSON, which appears only when it is whole.

    Raises:
        HostError: the file cannot be written.
    """
    _publish(path, (json.dumps(figure, allow_nan=False) + "\n").encode())


def _publish(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise HostError(f"{path}: the figure cannot be written: {error.strerror or error}") from error
