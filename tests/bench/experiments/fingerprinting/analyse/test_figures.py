"""Every figure's numbers are those of the evidence, of whole worlds and of the poorest."""

from pathlib import Path

import numpy as np
import pytest

from modelassay.charts import data_of, write_figure
from modelassay.experiments.findings import Figures
from modelassay.experiments.fingerprinting.analyse.figures import evidence_figures
from modelassay.experiments.fingerprinting.analyse.pairs import Evidence
from modelassay.experiments.fingerprinting.analyse.scoring import score_methods
from modelassay.statistics.classification import accuracy
from support.evidence_cases import CHILDREN, MINIS, OTHERS, evidence_of, models, numbers, recorded


@pytest.fixture(scope="module")
def world() -> Evidence:
    members = models([*MINIS[:8], *OTHERS, *CHILDREN])
    return evidence_of(members, recorded(members, "norm-vectors", "aligned", "modeldna"))


@pytest.fixture(scope="module")
def figures(world: Evidence) -> Figures:
    return evidence_figures(world)


def test_there_is_a_figure_for_each_question(figures: Figures) -> None:
    assert set(figures) == {"scores", "roc", "survival", "calibration", "size-and-training"}


def test_each_defined_score_is_one_point(world: Evidence, figures: Figures) -> None:
    for method, score_P in world.scores.items():
        points = data_of(figures["scores"], f"scores: {method}")
        kinds = [
            pair.hardness or "related" for pair, score in zip(world.pairs, score_P, strict=True) if np.isfinite(score)
        ]
        assert [point["kind"] for point in points] == kinds
        np.testing.assert_allclose([point["score"] for point in points], score_P[np.isfinite(score_P)], rtol=1e-6)
        assert all(abs(point["spread"]) <= 0.3 for point in points)


def test_the_area_under_each_roc_is_its_auroc(world: Evidence, figures: Figures) -> None:
    for method in ("corrected", "aligned", "modeldna"):
        points = data_of(figures["roc"], f"roc: {method}")
        fpr, tpr = (np.array([point[key] for point in points]) for key in ("fpr", "tpr"))
        auroc = accuracy(world.scored(method), metrics=["auroc"], draws=9).metrics["auroc"].value
        # Steps on a grid of 0.01: below the area by at most a cell for each rise, and by half of what lies above the last step.
        assert np.trapezoid(tpr, fpr) == pytest.approx(auroc, abs=0.02 + (1 - tpr[-1]))
        assert all(point["low"] <= point["high"] for point in points)
        assert (np.diff(tpr) >= 0).all()


def test_survival_shows_the_shares_of_the_table(world: Evidence, figures: Figures) -> None:
    cells = {(row["made by"], row["method"]): row["text"] for row in data_of(figures["survival"], "survival")}
    (table,) = [table for table in score_methods(world)[1] if table.title.startswith("survival")]
    related = {pair.suspect.made_by for pair in world.pairs if pair.related}
    assert len(cells) == len(related) * len(world.scores)
    for made_by, *counts in table.rows:
        for method, counted in zip(world.scores, counts, strict=True):
            count, _, total = counted.partition(" of ")
            assert cells[made_by, method] == ("–" if counted == "cannot compare" else f"{int(count) / int(total):.0%}")
    assert cells["sft-en", "invariant"] == "–"  # the products were not measured
    assert cells["sft-en", "corrected"] == "100%"


def test_calibration_shows_the_sorted_p_of_unrelated_suspects(world: Evidence, figures: Figures) -> None:
    for method in world.scores:
        p = world.ranks_of_unrelated(method).p
        points = data_of(figures["calibration"], f"calibration: {method}")
        np.testing.assert_allclose([point["p"] for point in points], np.sort(p[np.isfinite(p)]), rtol=1e-6)
        np.testing.assert_allclose(
            [point["expected"] for point in points], (np.arange(len(points)) + 0.5) / max(1, len(points)), rtol=1e-6
        )


def test_size_and_training_show_every_method(world: Evidence, figures: Figures) -> None:
    by_size = data_of(figures["size-and-training"], "by_size")
    assert {row["method"] for row in by_size} == set(world.scores)
    for row in by_size:
        alike = accuracy(
            world.scored(row["method"], lambda pair, size=row["size"]: pair.suspect.size == size), draws=299
        )
        assert row["auroc"] == pytest.approx(alike.metrics["auroc"].value, rel=1e-6)
    trained = data_of(figures["size-and-training"], "by_training")
    assert {row["share"] for row in trained} == {0.25, 1.0}
    assert {row["method"] for row in trained} >= {"corrected", "aligned", "modeldna"}


def test_worlds_without_both_kinds_have_no_figures() -> None:
    assert dict(evidence_figures(evidence_of({}))) == {}
    assert dict(evidence_figures(evidence_of(models(MINIS)))) == {}


@pytest.mark.parametrize(
    "names",
    [
        ("zoo:mini-1", "zoo:mini-2", "zoo:mini-1+sft-en"),
        ("zoo:mini-1", "zoo:base", "zoo:mini-1+cpt-25", "zoo:base+cpt-25"),
        ("zoo:smoke/base", "zoo:smoke/stranger-1", "zoo:smoke/stranger-shape", "zoo:smoke/child-sft"),
    ],
)
def test_the_poorest_worlds_are_drawn_without_a_warning(names: tuple[str, ...], tmp_path: Path) -> None:
    figures = evidence_figures(evidence_of(models(names)))
    assert {"scores", "roc", "survival", "calibration"} <= set(figures)
    for stem, figure in figures.items():
        write_figure(figure, tmp_path / f"{stem}.png")
        assert (tmp_path / f"{stem}.png").stat().st_size > 5_000


def test_folders_of_several_sizes_are_drawn_though_no_size_has_both_kinds(tmp_path: Path) -> None:
    members = {"m/a": numbers("m/a", "a", family="a"), "m/b": numbers("m/b", "b", family="b", width=64)}
    members["m/c"] = numbers("m/c", "c", family="a", parent=members["m/a"], width=32)
    figures = evidence_figures(evidence_of(members))
    assert "size-and-training" in figures
    for stem, figure in figures.items():
        write_figure(figure, tmp_path / f"{stem}.png")
