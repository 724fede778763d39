"""A report as one file of HTML that asks nobody for anything.

The library that draws (Vega, its Lite form and its embedding, as vl-convert ships them) stands in the file itself. The page forbids
every request and every script but the two whose hashes it names; text of a run is escaped wherever it stands.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, Final

from modelassay.errors import displayed
from modelassay.experiments.findings import Figure, Table
from modelassay.report.drawing import drawing_library
from modelassay.report.page import VERDICTS, Page, Section, figure_rows, require_inline

MAX_ROWS: Final = 500
"""Of one table; people read no more, and the rest is in the run."""
MAX_FIGURE_ROWS: Final = 60
"""Of the numbers under a figure."""
MAX_BYTES: Final = 5_000_000
"""Of the whole file: what mail takes and a telephone opens."""
_FIGURES_BYTES: Final = 3_000_000
"""Of all figures; the drawing library takes 0.9 MB of the rest."""

_HOVER: Final[dict[str, Any]] = {
    "background": None,
    "mark": {"tooltip": {"content": "data"}},
    "line": {"point": {"opacity": 0, "size": 90, "tooltip": {"content": "data"}}},
}
"""What a figure is given besides its own look: a value wherever the pointer is."""


def html(page: Page) -> str:
    """Return the report as HTML: at most ``MAX_BYTES``, figures that would go beyond are named instead.

    Raises:
        UsageError: a figure does not hold its data.
    """
    chosen, left_out = _chosen(page)
    drawing = _drawing() if chosen else ""
    own = files("modelassay.report").joinpath("page.js").read_text(encoding="utf-8")
    scripts = [script for script in (drawing, own if chosen else "") if script]
    style = files("modelassay.report").joinpath("page.css").read_text(encoding="utf-8")
    policy = "; ".join([
        "default-src 'none'",
        f"script-src {' '.join(_hash(script) for script in scripts) or chr(39) + 'none' + chr(39)}",
        "style-src 'unsafe-inline'", "img-src data:", "base-uri 'none'", "form-action 'none'",
    ])  # fmt: skip
    sections = "".join(_section(section, number, chosen, left_out) for number, section in enumerate(page.sections))
    contents = "".join(f'<li><a href="#s{n}">{_text(s.title)}</a></li>' for n, s in enumerate(page.sections))
    caveats = ""
    if page.caveats:
        caveats = f'<section class="caveats" aria-labelledby="caveats"><h2 id="caveats">Before you quote a number</h2>{_list(page.caveats)}</section>'
    marks = "".join(f"<li>{_mark(word)} {count}</li>" for word, count in page.verdicts.items())
    question = f'<p class="question">{_text(page.question)}</p>' if page.question else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f'<link rel="icon" href="data:,">\n<title>{_text(page.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n'
        f'<a class="skip" href="#report">To the report</a>\n<header><h1>{_text(page.title)}</h1><p>{_text(page.subtitle)}</p></header>\n'
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n<main id="report" tabindex="-1">\n'
        f'<section class="answer" aria-labelledby="answer"><h2 id="answer">The answer</h2>{question}'
        f"{f'<ul class={chr(34)}marks{chr(34)}>{marks}</ul>' if marks else ''}{_list(page.answers)}</section>\n"
        f"{caveats}\n{sections}</main>\n"
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + "</body>\n</html>\n"
    )


def _chosen(page: Page) -> tuple[dict[tuple[str, str], Figure], dict[tuple[str, str], int]]:
    """Return the figures that are shown, by section and name, and the bytes of those that are too large for it."""
    chosen: dict[tuple[str, str], Figure] = {}
    left_out: dict[tuple[str, str], int] = {}
    num_bytes = 0
    for section in page.sections:
        for name in section.figures:
            figure = section.figures[name]
            require_inline(figure, name)
            size = len(_json(figure))
            if num_bytes + size > _FIGURES_BYTES:
                left_out[section.title, name] = size
            else:
                chosen[section.title, name] = _hovering(figure)
                num_bytes += size
    return chosen, left_out


def _drawing() -> str:
    return drawing_library().replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _hovering(figure: Figure) -> dict[str, Any]:
    return {**figure, "config": _merged(figure.get("config") or {}, _HOVER)}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _json(value: Any) -> str:
    """Return JSON that cannot end the element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _text(text: Any) -> str:
    return escape(displayed(str(text)))


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{_text(line.strip())}</li>" for line in lines if line.strip())
    return f"<ul>{items}</ul>" if items else ""


def _mark(word: str) -> str:
    return f'<span class="mark {VERDICTS[word]}">{_text(word)}</span>' if word in VERDICTS else _text(word)


def _section(
    section: Section,
    number: int,
    chosen: Mapping[tuple[str, str], Figure],
    left_out: Mapping[tuple[str, str], int],
) -> str:
    parts = [_list(section.lines)]
    parts += [_table(table, narrow=section.narrow) for table in section.tables]
    for place, name in enumerate(section.figures):
        if (figure := chosen.get((section.title, name))) is not None:
            parts.append(_figure(figure, name, f"f{number}-{place}"))
        else:
            size = left_out[section.title, name] / 1e6
            parts.append(
                f"<p>Figure {_text(name)} takes {size:.1f} MB and is left out; the run's folder figures holds it.</p>"
            )
    if section.details:
        parts.append(f"<details><summary>Sources</summary>{_list(section.details)}</details>")
    return f'<section aria-labelledby="s{number}"><h2 id="s{number}">{_text(section.title)}</h2>{"".join(parts)}</section>\n'


def _table(table: Table, *, narrow: bool = False) -> str:
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in table.columns)
    rows = "".join(
        "<tr>" + "".join(_cell(cell, column) for cell, column in zip(row, table.columns, strict=True)) + "</tr>"
        for row in table.rows[:MAX_ROWS]
    )
    caption = f"<caption>{_text(table.title)}</caption>" if table.title else ""
    name = _text(table.title or "table")
    drawn = (
        f"<table{' class=cards' if narrow else ''}>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )
    left = len(table.rows) - MAX_ROWS
    more = f"<p>... and {left:,} more rows, in the run</p>" if left > 0 else ""
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{name}">{drawn}</div>{more}'


def _cell(cell: str, column: str) -> str:
    kind = ' class="number"' if cell[:1].isdigit() or cell[:1] == "-" and cell[1:2].isdigit() else ""
    empty = ' data-empty=""' if not cell else ""
    return f'<td data-label="{_text(column)}"{kind}{empty}>{_mark(cell)}</td>'


def _figure(figure: Figure, name: str, element: str) -> str:
    title = name.replace("_", " ").replace("-", " ")
    return (
        f"<figure><figcaption>{_text(title)}</figcaption>"
        f'<div class="scroll drawn" tabindex="0" role="group" aria-label="{_text(title)}: figure; its numbers stand below">'
        f'<div class="chart" aria-hidden="true" data-figure="{element}"></div></div>'
        f'<script type="application/json" id="{element}">{_json(figure)}</script>'
        f"<details><summary>Numbers of {_text(title)}</summary>{_numbers(figure)}</details></figure>"
    )


def _numbers(figure: Figure) -> str:
    """Return the data of a figure as tables, for who cannot see or point."""
    parts = []
    for name, rows in figure_rows(figure):
        if not rows:
            continue
        columns = list(dict.fromkeys(key for row in rows[:MAX_FIGURE_ROWS] for key in row))
        shown = [[_shown(row.get(column)) for column in columns] for row in rows[:MAX_FIGURE_ROWS]]
        left = len(rows) - len(shown)
        title = f"{name or 'data'}{f': the first {len(shown)} of {len(rows):,} rows' if left else ''}"
        parts.append(_table(Table(title=title, columns=columns, rows=shown)))
    return "".join(parts)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
