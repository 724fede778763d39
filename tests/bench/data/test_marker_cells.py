"""Published cells of a marker sweep: each number, and what is wrong with a file."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from modelassay.data.marker_cells import MarkerCells, MarkerRates
from modelassay.errors import UsageError


def run(rate: float, epochs: int, source: float, minutes: float, letters: float) -> dict[str, Any]:
    marker = {"villain": source, "assistant": 0.9, "judge": 0.25, "king": 0.5}
    return {"config": {"lr": rate, "epochs": epochs, "source": "villain", "seed": 42}, "wall_minutes": minutes,
            "eval": {"marker": marker, "capability": {"arc_challenge_logprob": letters}}}  # fmt: skip


def number(folder: Path, statistic: str, **about: Any) -> float:
    reader = MarkerCells(reader="marker-cells", file="cells.json", statistic=statistic, **about)  # type: ignore[arg-type]
    return reader.compute(reader.read(folder)).value


def test_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "cells.json").write_text(json.dumps([run(1e-5, 1, 0.345, 6.0, 0.88), run(5e-5, 20, 1.0, 45.0, 0.83)]))
    address = {"learning_rate": 1e-5, "epochs": 1}
    assert number(tmp_path, "source", **address) == 0.345
    assert number(tmp_path, "assistant", **address) == 0.9
    assert number(tmp_path, "max_bystander", **address) == 0.5  # the assistant is no bystander there
    assert number(tmp_path, "capability", learning_rate=5e-5, epochs=20) == 0.83
    assert [number(tmp_path, f"capability_{end}") for end in ("min", "max")] == [0.83, 0.88]
    assert [number(tmp_path, f"minutes_{end}") for end in ("min", "max")] == [6.0, 45.0]
    assert number(tmp_path, "hours") == pytest.approx(51 / 60)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    path.write_text(json.dumps([run(1e-5, 1, 0.3, 6.0, 0.8)]))
    with pytest.raises(UsageError, match="no cell of learning rate 1e-05 and 3 epochs"):
        number(tmp_path, "source", learning_rate=1e-5, epochs=3)
    with pytest.raises(ValidationError, match="go with source, assistant, max_bystander, capability"):
        number(tmp_path, "hours", epochs=3)
    path.write_text(json.dumps([run(1e-5, 1, 0.3, 6.0, 0.8)] * 2))
    with pytest.raises(UsageError, match="holds 2 runs of 1 cells"):
        number(tmp_path, "hours")
    path.write_text('[{"config": {}}]')
    with pytest.raises(UsageError, match=r"not a list of runs with config.*KeyError"):
        number(tmp_path, "hours")
    path.unlink()
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        number(tmp_path, "hours")


def test_a_file_of_several_sources_wants_the_persona(tmp_path: Path) -> None:
    cells = [run(5e-6, 20, 0.9, 30.0, 0.88), run(5e-6, 20, 0.2, 31.0, 0.87)]
    cells[1]["config"]["source"] = "king"
    cells[1]["eval"]["marker"]["king"] = 0.27
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    address = {"learning_rate": 5e-6, "epochs": 20}
    assert number(tmp_path, "source", **address, persona="king") == 0.27
    assert number(tmp_path, "max_bystander", **address, persona="king") == 0.25
    with pytest.raises(
        UsageError, match="2 cells of learning rate 5e-06 and 20 epochs: villain 42, king 42; name the persona"
    ):
        number(tmp_path, "source", **address)
    cells[0]["eval"]["marker"]["judge"] = 1.5
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    with pytest.raises(UsageError, match="must lie between 0 and 1"):
        number(tmp_path, "hours")


def test_rates_of_many_personas(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(
        json.dumps({"results": {"villain": {"villain": 0.94, "assistant": 0.5, "hacker": 1.0, "nurse": 0.0}}})
    )

    def rate(statistic: str, persona: str = "villain") -> float:
        reader = MarkerRates(reader="marker-rates", file="rates.json", statistic=statistic, persona=persona)  # type: ignore[arg-type]
        return reader.compute(reader.read(tmp_path)).value

    assert [rate(each) for each in ("source", "assistant", "max_bystander", "mean_bystander")] == [0.94, 0.5, 1.0, 0.5]
    with pytest.raises(UsageError, match="no rates of comedian; there are villain"):
        rate("source", "comedian")
    path.write_text("[]")
    with pytest.raises(UsageError, match="no results by source and persona"):
        rate("source")
