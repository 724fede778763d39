"""The analysis on curves that are made up, so that the answers are known."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from modelassay.charts import data_of
from modelassay.experiments.findings import Findings
from modelassay.experiments.sft_drift.analyse import analyse
from modelassay.recording.tables import RunData

STEPS = np.arange(0, 42, 2)
PROMPTS, CHANCE = 4, 0.0
BOOKS = ("book-1", "book-2", "book-3", "book-4")


class World:
    """A run of which every curve is known."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.cells: list[dict[str, Any]] = []
        self.metrics: list[dict[str, Any]] = []
        self.facts: list[dict[str, Any]] = []

    def add(self, arm: str, language: str, seed: int, *, rate: float, noise: float = 0.001, once: dict[str, float] | None = None,
            changed: dict[str, Any] | None = None, divergence: float = 1.0) -> None:  # fmt: skip
        cell = f"{arm}-{language}-{seed}"
        row = {"cell": cell, "outcome": "done", "reason": None, "attempts": 1, "wall_s": 2.0, "arm": arm, "language": language, "seed": seed,
               "text": BOOKS[0], "model": "zoo:base", "precision": "float32", "every": 2, "margin": 0.05}  # fmt: skip
        self.cells.append(row | {f"arms.{arm}.{key}": value for key, value in (changed or {}).items()})
        for step in STEPS:
            mean = 2.0 ** (-step * rate)
            for prompt in range(PROMPTS):
                jitter = noise * self.rng.standard_normal() * (step > 0)
                for name, value in (
                    ("overlap", mean + jitter),
                    ("overlap_exact", mean + jitter),
                    ("kl_forward", divergence * (1 - mean)),
                ):
                    self.metrics.append({
                        "cell": cell,
                        "name": name,
                        "value": float(value),
                        "step": int(step),
                        "prompt": prompt,
                    })
            self.metrics.append({
                "cell": cell,
                "name": "held_out_loss",
                "value": 5.0 + mean,
                "step": int(step),
                "prompt": None,
            })
            self.metrics.append({
                "cell": cell,
                "name": "moved",
                "value": float(rate > 0 and step > 0),
                "step": int(step),
                "prompt": None,
            })
        for name, value in {"chance": CHANCE, "mobility": float(rate > 0), **(once or {})}.items():
            self.metrics.append({"cell": cell, "name": name, "value": value, "step": None, "prompt": None})
        text = (changed or {}).get("text", BOOKS[0])
        self.facts += [
            {"cell": cell, "fact": "text", "value": f"{text}-{language}"},
            {"cell": cell, "fact": "ended", "value": "all steps"},
        ]

    def findings(self, published: dict[str, Path] | None = None) -> Findings:
        units = [{"cell": "main-en-0", "stage": stage, "reused": False, "host_ms": ms} for stage, ms in
                 (("step", 100.0), ("answers", 5.0), ("weights", 1.0), ("one-forward", 2.0), ("prompt-by-prompt", 14.0))]  # fmt: skip
        more = {f"published.{language}": str(path) for language, path in (published or {}).items()}
        cells = pl.DataFrame([cell | more for cell in self.cells], infer_schema_length=None)
        return analyse(
            RunData(cells=cells, units=pl.DataFrame(units),
                    metrics=pl.DataFrame(self.metrics, infer_schema_length=None), profile="embedded", fact_rows=self.facts)
        )  # fmt: skip


def value(findings: Findings, name: str, **labels: Any) -> Any:
    matching = [
        f.estimate for f in findings.findings if f.name == name and all(f.labels.get(k) == v for k, v in labels.items())
    ]
    assert len(matching) == 1, (name, labels, len(matching))
    return matching[0]


def world(gap: float = 0.0) -> World:
    """Four texts in two languages; Japanese is faster by ``gap`` halvings a step; two controls."""
    made = World()
    for text in BOOKS:
        arm, changed = ("main", None) if text == BOOKS[0] else (text, {"text": text})
        for seed in range(3):
            shift = 0.0005 * (BOOKS.index(text) - 1.5) + 0.0001 * seed
            for language in ("en", "ja"):
                made.add(arm, language, seed, rate=0.05 + shift + gap * (language == "ja"), changed=changed)
    for seed in range(3):
        for language in ("en", "ja"):
            made.add("lr-0", language, seed, rate=0.0, noise=0.0, changed={"learning_rate": 0.0})
            made.add("slow", language, seed, rate=0.04)
    return made


def test_like_languages_are_equivalent_and_unlike_ones_differ() -> None:
    same, apart = world().findings(), world(gap=0.05).findings()
    for scope in ("new texts", "these texts"):
        assert value(same, "language_gap", scope=scope).high < 0.05
        assert value(same, "equivalence_power", scope=scope).value > 0.9
        assert value(apart, "language_gap", scope=scope).low > 0.05
    assert any("alike, within 0.05 at every step (new texts" in caveat for caveat in same.caveats)
    assert any("differ by more than 0.05" in caveat for caveat in apart.caveats)
    # the largest distance of 2^-0.05t and 2^-0.1t is 1/4, at t = 20
    assert value(apart, "language_gap", scope="these texts").value == pytest.approx(0.25, abs=0.01)
    assert value(apart, "gap_max").value == pytest.approx(0.25, abs=0.01)
    assert value(apart, "gap", between="languages").value > 5 * value(apart, "gap", between="texts").value
    assert value(same, "language_gap", scope="new texts").n == 4


def test_two_texts_that_disagree_leave_the_whole_range_of_an_overlap_and_no_more() -> None:
    made = World()
    for text, gap in zip(BOOKS[:2], (0.2, -0.02), strict=True):
        arm, changed = ("main", None) if text == BOOKS[0] else (text, {"text": text})
        for language in ("en", "ja"):
            made.add(arm, language, 0, rate=0.05 + gap * (language == "ja"), changed=changed)
    estimate = value(made.findings(), "language_gap", scope="new texts")
    assert (estimate.low, estimate.high) == (0.0, 1.0)


def test_one_text_is_no_sample_of_texts() -> None:
    made = World()
    for seed in range(3):
        for language in ("en", "ja"):
            made.add("main", language, seed, rate=0.05)
    findings = made.findings()
    assert not value(findings, "language_gap", scope="new texts").defined
    assert value(findings, "language_gap", scope="these texts").high < 0.05


def test_half_lives_contrasts_and_controls() -> None:
    findings = world().findings()
    assert value(findings, "half_life", arm="main", language="en").value == pytest.approx(20, abs=0.8)
    assert value(findings, "half_life", arm="slow", language="ja").value == pytest.approx(25, abs=0.8)
    assert "reached in 0 of 3" in value(findings, "half_life", arm="lr-0", language="en").note
    curve, slow = (np.mean(2.0 ** (-STEPS * rate)) for rate in (0.05 - 0.00065, 0.04))
    assert value(findings, "contrast", arm="slow").value == pytest.approx(slow - curve, abs=0.005)
    assert value(findings, "contrast", arm="lr-0").low > 0
    assert value(findings, "zero_rate_overlap").value == 1.0
    assert value(findings, "zero_rate_moved").value == 0.0
    assert value(findings, "overlap_exact", language="en", step=0).value == 1.0
    assert value(findings, "callback_overhead").value == pytest.approx(0.05)
    assert value(findings, "one_forward_speedup").value == pytest.approx(7.0)
    assert value(findings, "diverged", arm="main").value == 0.0


def test_curves_that_are_one_over_divergence_fall_together_there() -> None:
    made = World()
    for seed in range(3):
        for arm, rate in (("main", 0.05), ("eps-1e-3", 0.02), ("sgd", 0.1)):
            for language in ("en", "ja"):
                made.add(arm, language, seed, rate=rate, noise=0.0)
    findings = made.findings()
    assert value(findings, "spread", over="steps").value > 0.1
    assert value(findings, "spread", over="divergence").value < 0.02
    assert value(findings, "spread", over="loss").value < 0.01
    apart = World()
    for seed in range(3):
        for arm, divergence in (("main", 1.0), ("eps-1e-3", 4.0)):
            for language in ("en", "ja"):
                apart.add(arm, language, seed, rate=0.05, noise=0.0, divergence=divergence)
    assert value(apart.findings(), "spread", over="divergence").value > 0.1


def test_drift_ranked_by_mobility() -> None:
    made = World()
    for seed in range(3):
        for language in ("en", "ja"):
            made.add("main", language, seed, rate=0.05)
            for arm, share in (("bfloat16", 0.2), ("llama-bfloat16", 0.5), ("large-bfloat16", 0.1)):
                changed = {"precision": "bfloat16", "model": f"zoo:{arm}"}
                made.add(arm, language, seed, rate=0.1 * share, noise=0.0, once={"mobility": share}, changed=changed)
    findings = made.findings()
    assert value(findings, "mobility_rank").value == pytest.approx(1.0)
    assert value(findings, "drift_by", what="model").value > 10 * value(findings, "drift_by", what="language").value


def test_figures_hold_the_curves() -> None:
    findings = world().findings()
    points = data_of(findings.figures["overlap"], "overlap: main")
    assert len(points) == 6 * len(STEPS)
    band = data_of(findings.figures["language-gap"], "gap: new texts")
    assert all(point["low"] <= point["difference"] <= point["high"] for point in band)
    for name in findings.figures:
        assert findings.figures[name]["config"]
    assert len(data_of(findings.figures["mobility"], "mobility")) == len(world().cells)


def test_a_run_whose_cells_all_failed_has_no_gap() -> None:
    empty = World()
    empty.add("main", "en", 0, rate=0.1)
    empty.facts = []
    findings = empty.findings()
    assert not value(findings, "language_gap", scope="new texts").defined


def test_published_curves_are_read_again_and_drawn_beside(tmp_path: Path) -> None:
    steps = np.arange(2, 402, 2)
    for language, rate in (("en", 0.05), ("ja", 0.06)):
        curve = 0.9 * 2.0 ** (-(steps - 2) * rate)
        lines = [f"{step},{value!r}" for step, value in zip(steps.tolist(), curve.tolist(), strict=True)]
        (tmp_path / f"{language}.csv").write_text("step,avg_overlap_ratio\n" + "\n".join(lines))
    files = {"en": tmp_path / "en.csv", "ja": tmp_path / "ja.csv"}
    findings = world().findings(published=files)
    assert value(findings, "published_half_life", language="en").value == pytest.approx(22, abs=0.1)
    assert value(findings, "published_min_step", language="ja").value == 400
    assert value(findings, "published_min", language="ja").value == pytest.approx(0.9 * 2.0 ** (-398 * 0.06))
    assert value(findings, "published_drop", language="en").value == pytest.approx(0.9, abs=1e-5)
    gap = 0.9 * np.abs(2.0 ** (-(steps - 2) * 0.05) - 2.0 ** (-(steps - 2) * 0.06))
    assert value(findings, "published_gap_max").value == pytest.approx(gap.max())
    assert value(findings, "published_gap_mean").value == pytest.approx(gap.mean())
    assert "shown to be below" in value(findings, "published_slope", language="en").note
    ours = np.mean([2.0 ** (-STEPS[1:] * (0.05 - 0.00075 + 0.0001 * seed)) for seed in range(3)], axis=0)
    distance = np.abs(0.9 * 2.0 ** (-(STEPS[1:] - 2) * 0.05) - ours).max()
    assert value(findings, "published_distance", language="en").value == pytest.approx(distance, abs=0.003)
    assert len(data_of(findings.figures["overlap"], "published")) == 2 * len(steps)
    table = next(table for table in findings.tables if table.title.startswith("published curves"))
    assert [row[3] for row in table.rows if row[:2] == ["drop", "en"]] != [""]
    files["ja"].unlink()
    assert any(
        "a published curve is not drawn" in caveat and "ja.csv" in caveat
        for caveat in world().findings(published=files).caveats
    )
