"""Published curves: their statistics, and what is wrong with a file."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from modelassay.data.curves import OverlapCurve
from modelassay.errors import UsageError

EN = "step,avg_overlap_ratio\n1,0.98\n2,0.9\n4,0.2\n6,0.3\n"
JA = "step,avg_overlap_ratio\n1,0.98\n2,0.6\n4,0.25\n"


def statistic(folder: Path, name: str, **about: Any) -> float:
    reader = OverlapCurve(reader="overlap-curve", file="en.csv", statistic=name, **about)  # type: ignore[arg-type]
    return reader.compute(reader.read(folder)).value


def test_statistics_are_those_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "en.csv").write_text(EN)
    (tmp_path / "ja.csv").write_text(JA)
    assert statistic(tmp_path, "at", at=4) == 0.2
    assert statistic(tmp_path, "min") == 0.2
    assert statistic(tmp_path, "argmin") == 4
    assert statistic(tmp_path, "drop") == pytest.approx(0.68)
    assert statistic(tmp_path, "first_below", at=0.5) == 4
    assert statistic(tmp_path, "gap_max", other="ja.csv") == pytest.approx(0.3)
    assert statistic(tmp_path, "gap_mean", other="ja.csv") == pytest.approx(0.35 / 3)
    assert statistic(tmp_path, "gap_at", other="ja.csv", at=4) == pytest.approx(0.05)
    with pytest.raises(UsageError, match="has no step 5.0; its steps go from 1 to 6"):
        statistic(tmp_path, "at", at=5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"en\.csv:1: needs a column step and one of"),
        ("step,overlap\n1,x\n", r"en\.csv:2: needs two numbers, got '1' and 'x'"),
        ("step,overlap\n1,nan\n", r"en\.csv:2: needs finite numbers"),
        ("step,overlap\n1,0.5\n1,0.6\n", r"en\.csv:3: step 1 comes twice"),
        ("step,overlap\n", r"en\.csv: holds no step"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "en.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        statistic(tmp_path, "min")


@pytest.mark.parametrize(
    "about",
    [{"statistic": "at"}, {"statistic": "min", "at": 3}, {"statistic": "gap_max"}, {"statistic": "min", "other": "b"}],
)
def test_a_statistic_has_what_it_needs(about: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="needs|leave it out"):
        OverlapCurve(reader="overlap-curve", file="a.csv", **about)
