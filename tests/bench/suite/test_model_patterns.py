"""`zoo:mini-*` in a suite: the models it means, in the catalogue's order, each once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from modelassay.errors import SuiteError
from modelassay.suite import Suite, load_suite
from modelassay.zoo import EMBEDDED, MEMBERS

HEAD = "suite: fingerprinting\nquestion: q\nprofiles:\n  smoke: {against: [zoo:smoke/base, zoo:smoke/stranger-*]}\n"


def load(folder: Path, matrix: str, *overrides: str) -> Suite:
    path = folder / "suite.yaml"
    path.write_text(f"{HEAD}matrix:\n  {matrix}\n")
    return load_suite(str(path), overrides=overrides)


def models(suite: Suite) -> list[object]:
    return [cell.axes["model"] for cell in suite.cells]


def test_a_pattern_stays_within_its_scale_and_its_step(tmp_path: Path) -> None:
    expected = [f"zoo:{name}" for name in MEMBERS if name.startswith("smoke/") and "+" not in name]
    assert len(expected) == 7
    assert models(load(tmp_path, "model: [zoo:smoke/*]")) == expected
    everything = models(load(tmp_path, "model: [zoo:**]\n  max_cells: 400"))
    assert everything == [f"zoo:{name}" for name in EMBEDDED]


def test_a_pattern_leaves_out_what_the_list_names(tmp_path: Path) -> None:
    suite = load(tmp_path, "model: [zoo:smoke/stranger-*, zoo:smoke/base, zoo:smoke/*, zoo:smoke/child-noise]")
    strangers = [f"zoo:smoke/stranger-{kind}" for kind in ("1", "shape", "data", "mix")]
    assert models(suite) == [*strangers, "zoo:smoke/base", "zoo:smoke/child-sft", "zoo:smoke/child-noise"]
    params = suite.cells[0].params.model_dump()
    assert params["against"] == ("zoo:smoke/base", *strangers)


def test_patterns_exclude_and_override(tmp_path: Path) -> None:
    suite = load(tmp_path, "model: [zoo:smoke/*]\n  exclude: [{model: zoo:smoke/stranger-*}]")
    assert models(suite) == ["zoo:smoke/base", "zoo:smoke/child-sft", "zoo:smoke/child-noise"]
    suite = load(tmp_path, "model: [zoo:smoke/base]", "matrix.model=[zoo:large-*]", "against=[zoo:smoke/child-*]")
    assert models(suite) == [f"zoo:large-{number}" for number in range(1, 5)]
    assert suite.cells[0].params.model_dump()["against"] == ("zoo:smoke/child-sft", "zoo:smoke/child-noise")


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ("model: [zoo:base, zoo:bass*]", "6:21: matrix.model[1]: 'zoo:bass*' matches no model of the zoo"),
        (
            "model: [zoo:base]\n  exclude: [{model: zoo:mini-*}]",
            "7:13: matrix.exclude[0]: matches no combination; check its values against the axes",
        ),
    ],
)
def test_patterns_that_mean_nothing(matrix: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        load(tmp_path, matrix)
    assert str(caught.value) == f"{tmp_path}/suite.yaml:{message}"


def test_the_shipped_cells_are_those_of_the_list_by_hand() -> None:
    """The digest is of the models in their order as the suite gave them when it named all 243 itself; 71 came after."""
    models = [str(cell.axes["model"]) for cell in load_suite("fingerprinting", profile="embedded").cells]
    assert len(models) == 314
    older = [
        name for name in models if not name.startswith("zoo:mini-4+") and "llama" not in name and "-mini-4" not in name
    ]
    assert len(older) == 243
    assert hashlib.blake2b(" ".join(older).encode(), digest_size=8).hexdigest() == "f08d6b3a0cf7e7e1"
