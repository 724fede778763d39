"""Figures are data first; a file appears whole or not at all."""

import json
from pathlib import Path

import altair as alt
import pytest

from modelassay.charts import COLOURS, colour, dash, data_of, rows, specification, write_figure, write_specification
from modelassay.errors import HostError, UsageError

POINTS = [{"x": 0, "y": 1 / 3, "name": "a"}, {"x": 1, "y": float("nan"), "name": "b"}]


@pytest.fixture(scope="module")
def figure() -> dict[str, object]:
    chart = (
        alt.Chart(rows(POINTS, name="points")).mark_point().encode(x="x:Q", y="y:Q", color=colour("name", ["a", "b"]))
    )
    return specification(alt.concat(chart, chart))


def test_the_data_are_in_the_specification(figure: dict[str, object]) -> None:
    assert data_of(figure, "points") == [{"x": 0, "y": 0.3333333, "name": "a"}, {"x": 1, "y": None, "name": "b"}]
    json.dumps(figure, allow_nan=False)
    with pytest.raises(KeyError, match="others"):
        data_of(figure, "others")


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF")])
def test_the_suffix_chooses_the_format(figure: dict[str, object], tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / "new" / f"figure.{suffix}"
    write_figure(figure, path)
    assert path.read_bytes().startswith(start)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_other_formats_are_named_and_refused(figure: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x\.gif: a figure ends in \.png, \.svg, \.pdf, got \.gif"):
        write_figure(figure, tmp_path / "x.gif")


def test_a_folder_that_is_a_file_is_an_error_of_the_host(figure: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (write_figure, write_specification):
        with pytest.raises(HostError, match=r"x\.png: the figure cannot be written"):
            write(figure, tmp_path / "file" / "x.png")


def test_fifteen_names_are_told_apart() -> None:
    names = [f"method {number}" for number in range(15)]
    shades, dashes = colour("m", names).to_dict()["scale"], dash("m", names).to_dict()["scale"]
    assert shades["domain"] == dashes["domain"] == names
    assert len(set(zip(shades["range"], map(tuple, dashes["range"]), strict=True))) == 15
    assert shades["range"][: len(COLOURS)] == list(COLOURS)
