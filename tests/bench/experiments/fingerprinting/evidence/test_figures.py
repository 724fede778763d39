"""Every figure is drawn, of whole worlds and of the poorest."""

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from evidence_cases import CHILDREN, MINIS, OTHERS, evidence_of, models, numbers, recorded
from modelassay.experiments.fingerprinting.evidence import Evidence
from modelassay.experiments.fingerprinting.evidence.figures import evidence_figures
from modelassay.experiments.fingerprinting.evidence.scoring import score_methods


@pytest.fixture(scope="module")
def world() -> Evidence:
    found = models([*MINIS[:8], *OTHERS, *CHILDREN])
    return evidence_of(found, recorded(found, "norm-vectors", "aligned", "modeldna"))


def texts(path: Path) -> list[str]:
    """What matplotlib wrote: it keeps each text as a comment beside its outlines."""
    return re.findall(r"<!-- (.*?) -->", path.read_text())


@pytest.mark.parametrize("stem", ["scores", "roc", "survival", "calibration", "size-and-training"])
def test_every_figure_is_drawn(world: Evidence, stem: str, tmp_path: Path) -> None:
    figures = evidence_figures(world)
    assert set(figures) == {"scores", "roc", "survival", "calibration", "size-and-training"}
    path = tmp_path / f"{stem}.png"
    figures[stem](path)
    assert path.read_bytes().startswith(b"\x89PNG")
    pixels = imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 300
    inked = (pixels < 0.9).any(-1)
    assert inked.mean() > 0.005
    assert len(np.unique((pixels[inked] * 8).astype(int), axis=0)) > 5
    for half in np.array_split(inked, 2, axis=1):
        assert half.any()


def test_panels_name_every_method(world: Evidence, tmp_path: Path) -> None:
    figures = evidence_figures(world)
    for stem in ("scores", "size-and-training"):
        figures[stem](tmp_path / f"{stem}.svg")
        shown = texts(tmp_path / f"{stem}.svg")
        for method in world.scores:
            assert any(text.split(",")[0] == method for text in shown), f"{method} in {stem}"


def test_survival_shows_the_shares_of_the_table(world: Evidence, tmp_path: Path) -> None:
    evidence_figures(world)["survival"](tmp_path / "survival.svg")
    shown = texts(tmp_path / "survival.svg")
    (table,) = [table for table in score_methods(world)[1] if table.title.startswith("survival")]
    cells = [text for text in shown if text.endswith("%") or text == "–"]
    made = list(dict.fromkeys(pair.suspect.made_by for pair in world.pairs if pair.related))
    assert len(cells) == len(made) * len(world.scores)
    rows = {name: cells[at * len(world.scores) : (at + 1) * len(world.scores)] for at, name in enumerate(made)}
    for made_by, *counts in table.rows:
        for cell, counted in zip(rows[made_by], counts, strict=True):
            count, _, total = counted.partition(" of ")
            assert cell == ("–" if counted == "cannot compare" else f"{int(count) / int(total):.0%}")
    assert rows["sft-en"][list(world.scores).index("invariant")] == "–"  # the products were not measured
    assert rows["sft-en"][list(world.scores).index("corrected")] == "100%"


def test_worlds_without_both_kinds_have_no_figures() -> None:
    assert evidence_figures(evidence_of({})) == {}
    assert evidence_figures(evidence_of(models(MINIS))) == {}


@pytest.mark.parametrize(
    "names",
    [
        ("zoo:mini-1", "zoo:mini-2", "zoo:mini-1+sft-en"),
        ("zoo:mini-1", "zoo:base", "zoo:mini-1+cpt-25", "zoo:base+cpt-25"),
        ("zoo:smoke/base", "zoo:smoke/stranger-1", "zoo:smoke/stranger-shape", "zoo:smoke/child-sft"),
    ],
)
def test_the_poorest_worlds_are_drawn_without_a_warning(names: tuple[str, ...], tmp_path: Path) -> None:
    world = evidence_of(models(names))
    figures = evidence_figures(world)
    assert {"scores", "roc", "survival", "calibration"} <= set(figures)
    for stem, draw in figures.items():
        draw(tmp_path / f"{stem}.png")
        assert (tmp_path / f"{stem}.png").stat().st_size > 5_000


def test_folders_of_several_sizes_are_drawn_though_no_size_has_both_kinds(tmp_path: Path) -> None:
    found = {"m/a": numbers("m/a", "a", family="a"), "m/b": numbers("m/b", "b", family="b", width=64)}
    found["m/c"] = numbers("m/c", "c", family="a", parent=found["m/a"], width=32)
    figures = evidence_figures(evidence_of(found))
    assert "size-and-training" in figures
    for stem, draw in figures.items():
        draw(tmp_path / f"{stem}.png")
        assert (tmp_path / f"{stem}.png").stat().st_size > 5_000
