"""What is drawn is what was measured."""

from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from curve_cases import background_of, child, walk
from modelassay.experiments.fingerprinting.curves import Curves
from modelassay.experiments.fingerprinting.figures import _draw_scores, save_figure
from modelassay.experiments.fingerprinting.judge import Verdict, judge


@pytest.fixture(scope="module")
def table() -> tuple[list[Curves], list[Verdict]]:
    roots = [walk(f"root{i}", 12, 100 + i, family=f"root{i}") for i in range(8)]
    models = [roots[0], child(roots[0], "sft"), roots[1], walk("deep", 28, 1)]
    background = background_of(roots)
    return models, [judge(a, b, background) for a, b in combinations(models, 2)]


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_suffix_chooses_the_format(
    table: tuple[list[Curves], list[Verdict]], tmp_path: Path, suffix: str, start: bytes
) -> None:
    path = tmp_path / f"figure.{suffix}"
    save_figure(*table, path)
    content = path.read_bytes()
    assert content.startswith(start)
    if suffix == "svg":  # matplotlib keeps each text as a comment beside its outlines
        for text in (b"<!-- root0 -->", b"<!-- deep -->", b"<!-- query -->"):
            assert text in content


def test_corrected_stands_above_the_diagonal_and_paper_exact_below(table: tuple[list[Curves], list[Verdict]]) -> None:
    models, verdicts = table
    axis = Figure().subplots()
    _draw_scores(axis, [model.name for model in models], verdicts)
    cells = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axis.texts}
    assert len(cells) == 12
    assert cells[0, 1] == f"{verdicts[0].corrected.value:.2f}*"
    assert cells[1, 0] == f"{verdicts[0].paper_exact.value:.2f}"
    assert cells[0, 3].endswith("°")
