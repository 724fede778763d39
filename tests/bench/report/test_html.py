"""The report as a browser shows it, and what stands in its text."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import altair as alt
import pytest

from modelassay.charts import rows, specification
from modelassay.errors import UsageError
from modelassay.experiments.findings import Table
from modelassay.report import html as form
from modelassay.report.html import html
from modelassay.report.page import Page, Section, figure_rows, require_inline
from support.chromium import CHROMIUM, browser

HOSTILE = "</script><script>window.taken = 1</script><img src=x onerror='window.taken = 1'>"
AXE = Path(os.environ.get("MODELASSAY_AXE", Path.home() / ".cache" / "modelassay" / "axe.min.js"))

with_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")


def line() -> dict[str, object]:
    points = [{"step": step, "overlap": 0.5 + step / 8, "model": HOSTILE} for step in range(4)]
    chart = alt.Chart(rows(points, name="overlap")).mark_line().encode(x="step:Q", y="overlap:Q", color="model:N")
    return specification(chart.properties(width=500, height=200))


def page() -> Page:
    claim = ("walk/near-zero", "= 0 ± 5", "0.3 [0.1, 0.5]", "reproduced")
    return Page(
        title=f"walk {HOSTILE}",
        subtitle="run walk-1: 1 done",
        question="Where does the walk end?",
        answers=["near zero: reproduced", HOSTILE],
        verdicts={"reproduced": 1, "refuted": 1, "inconclusive": 2, "not testable": 3},
        caveats=["1 seed", HOSTILE],
        sections=[
            Section(title="Claims", tables=[Table(title="claims", columns=("claim", "published", "ours", "verdict"), rows=[claim])],
                    details=["a source"], narrow=True),
            Section(title="Figures", figures={"overlap": line()}),
            Section(title="Text", tables=[Table(title=HOSTILE, columns=(HOSTILE,), rows=[(HOSTILE,)])]),
        ],
    )  # fmt: skip


def test_no_text_of_a_run_becomes_an_element() -> None:
    content = html(page())
    assert content.count("<script") == 3  # the figure's data, the library, what draws
    before = content.partition("<script>")[0]  # of the library, which writes elements itself
    assert "<img" not in before
    assert HOSTILE not in content
    assert before.count("window.taken") >= 6
    assert len(content) < form.MAX_BYTES


def test_the_policy_forbids_every_request() -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html(page()))
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy[1]
    assert "http" not in policy[1]


@pytest.mark.parametrize("spec", [
    {"data": {"url": "http://example.org/a.json"}, "mark": "point"},
    {"layer": [{"mark": "image", "encoding": {"url": {"value": "http://example.org"}}}]},
    {"encoding": {"href": {"field": "address"}}},
    {"usermeta": {"embedOptions": {"loader": {}}}},
])  # fmt: skip
def test_a_figure_that_leads_elsewhere_is_refused(spec: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="figure overlap: holds '(url|href|usermeta)'"):
        require_inline(spec, "overlap")


def test_a_column_may_be_called_url() -> None:
    spec = {"data": {"name": "n", "values": [{"url": "a"}]}, "mark": "point"}
    require_inline(spec, "overlap")
    assert figure_rows(spec) == [("n", [{"url": "a"}])]


def test_figures_beyond_the_size_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "_FIGURES_BYTES", 100)
    content = html(page())
    assert "Figure overlap takes 0.0 MB and is left out" in content
    assert "script-src 'none'" in content
    assert len(content) < 20_000


@with_chromium
def test_in_chromium(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html(page()), encoding="utf-8")
    with browser(tmp_path / "profile") as chromium:
        chromium.open(path)
        chromium.screen(width=1280, height=1600)
        chromium.wait_for("document.documentElement?.dataset.drawn === '1'")
        assert chromium.value("document.querySelectorAll('[data-failed]').length") == 0
        box = chromium.value(
            "(() => { const marks = [...document.querySelectorAll('.chart .mark-symbol path')].map(p => p.getBoundingClientRect());"
            "const last = marks.filter(b => b.width).sort((a, b) => a.x - b.x)[3]; return [last.x + last.width / 2, last.y + last.height / 2] })()"
        )
        chromium.point_at(*box)
        chromium.wait_for("document.querySelector('#vg-tooltip-element.visible') !== null")
        hovered = chromium.value("document.querySelector('#vg-tooltip-element').innerText")
        assert "0.875" in hovered
        assert "overlap" in hovered
        chromium.press("Tab")
        assert chromium.value("document.activeElement.className") == "skip"
        for width, dark in ((1280, False), (390, False), (390, True)):
            chromium.screen(width=width, height=800, dark=dark)
            assert (
                chromium.value("document.documentElement.scrollWidth") <= width
            )  # nothing but tables and figures is scrolled
            if AXE.is_file():
                chromium.value(AXE.read_text(encoding="utf-8") + "; 0")
                faults = chromium.value(
                    "axe.run().then(r => JSON.stringify(r.violations.map(v => [v.impact, v.id, v.nodes[0].html])))"
                )
                assert [fault for fault in json.loads(faults) if fault[0] in ("serious", "critical")] == []
        assert chromium.paper().startswith(b"%PDF")
        assert chromium.value("window.taken") is None
        assert chromium.complaints == []
        assert [url for url in chromium.requests if not url.startswith(("file:", "data:"))] == []


@with_chromium
def test_chromium_is_refused_what_the_page_forbids(tmp_path: Path) -> None:
    """The proof that the test above could fail: a request and a script that are added by hand are seen, and stopped."""
    path = tmp_path / "report.html"
    added = "<img src='http://127.0.0.1:9/a.png'><script>window.taken = 1</script></main>"
    path.write_text(html(page()).replace("</main>", added), encoding="utf-8")
    with browser(tmp_path / "profile") as chromium:
        chromium.open(path)
        chromium.wait_for("document.documentElement?.dataset.drawn === '1'")
        assert chromium.value("window.taken") is None
        assert len(chromium.complaints) >= 2
