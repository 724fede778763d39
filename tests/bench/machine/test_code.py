"""Which code a result depends on: what it imports, however deep, and nothing beside it."""

import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from modelassay.machine import code
from modelassay.machine.code import LIBRARIES_BEHIND, SourceGraph, differences

FILES = {
    "bench/assay/__init__.py": "",
    "bench/assay/experiments/__init__.py": "",
    "bench/assay/experiments/one/__init__.py": "",
    "bench/assay/experiments/one/run.py": """
from __future__ import annotations
from typing import TYPE_CHECKING
import assay.meter
from assay.models import deep as d
from .helper import help
if TYPE_CHECKING:
    from assay.suite import Cell
def run():
    from assay.data.corpus import LINES
""",
    "bench/assay/experiments/one/helper.py": "from ..two import shared\nimport numpy\n",
    "bench/assay/experiments/one/analyse.py": "from assay.figures import draw",
    "bench/assay/experiments/two/__init__.py": "",
    "bench/assay/experiments/two/shared.py": "",
    "bench/assay/experiments/two/run.py": "",
    "bench/assay/meter.py": "",
    "bench/assay/figures.py": "",
    "bench/assay/suite.py": "",
    "bench/assay/cli.py": "",
    "bench/assay/models/__init__.py": "",
    "bench/assay/models/deep.py": "import assay_kernels",
    "bench/assay/models/other.py": "",
    "bench/assay/data/__init__.py": "",
    "bench/assay/data/corpus.py": "",
    "bench/assay/data/names.txt": "n",
    "bench/assay/data/notes.md": "n",
    "kernels/assay_kernels/__init__.py": "raise ImportError",
}
ROOT = "assay.experiments.one.run"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small house of its own, first on the path."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "bench"), str(tmp_path / "kernels"), *sys.path])
    code._locations.cache_clear()
    yield tmp_path
    code._locations.cache_clear()


def test_closure_holds_what_is_imported_however_deep_and_nothing_beside(packages: Path) -> None:
    assert list(SourceGraph().closure(ROOT)) == [
        "assay/__init__.py", "assay/data/__init__.py", "assay/data/corpus.py", "assay/data/names.txt",
        "assay/experiments/__init__.py", "assay/experiments/one/__init__.py", "assay/experiments/one/helper.py",
        "assay/experiments/one/run.py", "assay/experiments/two/__init__.py", "assay/experiments/two/shared.py",
        "assay/meter.py", "assay/models/__init__.py", "assay/models/deep.py",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "difference"),
    [
        ("bench/assay/meter.py", "assay/meter.py changed"),
        ("bench/assay/experiments/two/shared.py", "assay/experiments/two/shared.py changed"),
        ("bench/assay/data/names.txt", "assay/data/names.txt changed"),
        ("bench/assay/data/more.json", "assay/data/more.json was added"),
        ("bench/assay/experiments/one/analyse.py", None),
        ("bench/assay/figures.py", None),
        ("bench/assay/suite.py", None),
        ("bench/assay/experiments/two/run.py", None),
        ("bench/assay/cli.py", None),
        ("bench/assay/data/notes.md", None),
    ],
)
def test_a_change_is_noticed_where_it_counts(packages: Path, file: str, difference: str | None) -> None:
    before = {"code": SourceGraph().closure(ROOT)}
    (packages / file).write_text("# changed")
    after = {"code": SourceGraph().closure(ROOT)}
    assert differences(before, after) == ([difference] if difference else [])


def test_no_such_module_is_an_error(packages: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'assay.experiments.three.run'"):
        SourceGraph().closure("assay.experiments.three.run")


@pytest.mark.parametrize("experiment", ["fingerprinting", "spectral", "downloads"])
def test_no_analysis_decides_a_cell_and_the_kernels_do(experiment: str) -> None:
    files = SourceGraph().closure("modelassay.runs.cell", f"modelassay.experiments.{experiment}.run")
    assert not [
        name for name in files if "/analyse" in name or "figures" in name or "/suite/" in name or "/commands/" in name
    ]
    assert "modelassay/recording/meter.py" in files
    assert any(name.startswith("modelassay_kernels/") for name in files)


def test_libraries_are_those_that_are_imported_and_those_behind_them(packages: Path) -> None:
    (packages / "bench/assay/meter.py").write_text("import os, yaml\nfrom transformers.models import llama")
    (packages / "bench/assay/figures.py").write_text("import altair")
    versions = SourceGraph().libraries(ROOT)
    assert versions.keys() == {
        "python", "numpy", "pyyaml", "transformers", "tokenizers", "safetensors", "jinja2", "regex", "assay-kernels",
    }  # fmt: skip
    assert versions["numpy"] == importlib.metadata.version("numpy")
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["assay-kernels"] is None


@pytest.mark.parametrize("experiment", ["fingerprinting", "spectral", "downloads"])
def test_every_library_that_decides_is_compared(experiment: str) -> None:
    versions = SourceGraph().libraries("modelassay.runs.cell", f"modelassay.experiments.{experiment}.run")
    assert {
        "python",
        "torch",
        "numpy",
        "scipy",
        "safetensors",
        "tokenizers",
        "transformers",
        "peft",
        "triton",
    } <= versions.keys()
    assert not {"polars", "huggingface-hub", "altair", "statsmodels", "click", "rich"} & versions.keys()
    then = {"libraries": {**versions, "scipy": "1.0", "safetensors": None, "python": "3.1.4"}}
    assert {line.split()[0] for line in differences(then, {"libraries": versions})} == {
        "scipy",
        "safetensors",
        "python",
    }


def test_a_patch_of_python_decides_nothing() -> None:
    """The image that a suite names and its host seldom have one."""
    host, image = ({"libraries": {"python": patch, "torch": "2.13.0"}} for patch in ("3.11.7", "3.11.16"))
    assert differences(host, image) == []
    assert differences(host, {"libraries": {"python": "3.12.7", "torch": "2.13.0"}}) == [
        "python changed from 3.11 to 3.12"
    ]


@pytest.mark.parametrize(
    ("library", "behind"), [(name, behind) for name, names in LIBRARIES_BEHIND.items() for behind in names]
)
def test_libraries_behind_others_are_what_those_import(library: str, behind: str) -> None:
    root = Path(importlib.util.find_spec(library).origin).parent
    imports = re.compile(rf"^\s*(import|from) {behind}\b", re.MULTILINE)
    assert any(imports.search(path.read_text(errors="replace")) for path in root.rglob("*.py"))


def test_library_differences_are_those_that_decide_numbers() -> None:
    old = {"libraries": {"torch": "2.11.0", "numpy": "2.4.0", "polars": "1.0", "peft": None, "triton": "3.7.1"}}
    new = {"libraries": {"torch": "2.13.0", "numpy": "2.4.0", "polars": "2.0", "peft": "0.21", "triton": None}}
    assert differences(old, new) == [
        "torch changed from 2.11.0 to 2.13.0",
        "triton changed from 3.7.1 to not installed",
        "peft changed from not installed to 0.21",
    ]
    assert differences({}, new) == []


def test_triton_decides_nothing_with_a_cpu_build_of_torch() -> None:
    """So that a run goes on in an image without Triton that began outside it."""
    old = {"libraries": {"torch": "2.13.0+cpu", "triton": "3.7.1"}}
    assert differences(old, {"libraries": {"torch": "2.13.0+cpu", "triton": None}}) == []
    assert differences(old, {"libraries": {"torch": "2.13.0", "triton": None}}) == [
        "torch changed from 2.13.0+cpu to 2.13.0",
    ]
