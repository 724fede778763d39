"""What is drawn is what was measured."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from modelassay.charts import data_of
from modelassay.fingerprints.curves import ROLES, Curves
from modelassay.fingerprints.figures import comparison_figure
from modelassay.fingerprints.placement import Placement, place_among
from support.curve_cases import background_of, child, walk

Table = tuple[list[Curves], list[Placement]]


@pytest.fixture(scope="module")
def table() -> Table:
    roots = [walk(f"root{i}", 12, 100 + i, family=f"root{i}") for i in range(8)]
    models = [roots[0], child(roots[0], "sft"), roots[1], walk("deep", 28, 1)]
    background = background_of(roots)
    return models, [place_among(a, b, background) for a, b in combinations(models, 2)]


@pytest.fixture(scope="module")
def figure(table: Table) -> dict[str, Any]:
    return comparison_figure(*table)


@pytest.mark.parametrize("role", ROLES)
def test_curves_are_z_scores_over_depth(table: Table, figure: dict[str, Any], role: str) -> None:
    rows = data_of(figure, f"curves_{role}")
    assert list(dict.fromkeys(row["model"] for row in rows)) == [model.name for model in table[0]]
    for model in table[0]:
        points = [row for row in rows if row["model"] == model.name]
        sigma = np.array(model.sigma[role])
        np.testing.assert_allclose([point["z"] for point in points], (sigma - sigma.mean()) / sigma.std(), atol=1e-6)
        centres = [100 * (layer + 0.5) / model.num_layers for layer in range(model.num_layers)]
        np.testing.assert_allclose([point["depth"] for point in points], centres, rtol=1e-6)


def test_corrected_stands_above_the_diagonal_and_paper_exact_below(table: Table, figure: dict[str, Any]) -> None:
    models, placements = table
    place = {model.name: index for index, model in enumerate(models)}
    cells = {(place[row["row"]], place[row["column"]]): row for row in data_of(figure, "scores")}
    finite = [score for v in placements for score in (v.corrected.value, v.paper_exact.value) if np.isfinite(score)]
    assert len(cells) == len(finite) == 12
    assert cells[0, 1]["text"] == f"{placements[0].corrected.value:.2f}*"
    assert cells[1, 0]["text"] == f"{placements[0].paper_exact.value:.2f}"
    assert cells[0, 3]["mark"] == "°"
    for (row, column), cell in cells.items():
        assert cell["method"] == ("corrected" if row < column else "paper-exact")


def test_axes_name_their_units(figure: dict[str, Any]) -> None:
    text = str(figure)
    for title in (
        "depth (% of layers)",
        "σ of the weights, z-score over layers",
        "of the four roles",
        "query",
        "output",
    ):
        assert title in text
