"""The figure over k is drawn from a results file's rows and from nothing else."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "kernels" / "benchmarks" / "plot_bottom_k.py"
SPEC = importlib.util.spec_from_file_location("plot_bottom_k", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
plot = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plot)


def row(provider: str, dtype: str, k: int, median_us: float | None) -> dict[str, object]:
    name = f"bottom_k::test_sweep_over_k[{dtype}-{k}-{provider}]"
    return {"name": name, "provider": provider, "dtype": dtype, "k": k, "rows": 64, "median_us": median_us}


def test_rows_are_sorted_and_failed_ones_left_out(tmp_path: Path) -> None:
    rows = [
        row("modelassay", "F32", 100, 640.0),
        row("modelassay", "F32", 10, 64.0),
        row("torch.topk", "F32", 10, None),
    ]
    results = {"benchmarks": [*rows, {"name": "layer_std::test_baseline[x]", "median_us": 1.0}]}
    assert plot.sweep(results) == {("modelassay", "F32"): [(10, 1.0), (100, 10.0)]}
    plot.draw(results, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_without_the_sweep_is_an_error() -> None:
    with pytest.raises(ValueError, match="ci/benchmark-kernels"):
        plot.sweep({"benchmarks": []})
