"""The statistics of a pair of tensors against numpy and scipy in float64, and signs against tensors that bear them."""

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis

from modelassay.fingerprints.lineage.deltas import delta
from modelassay.fingerprints.lineage.differences import Difference
from modelassay.fingerprints.lineage.losses import loss
from modelassay.fingerprints.lineage.measures import measures_of
from modelassay.fingerprints.lineage.signs import residual
from modelassay.fingerprints.lineage.symmetries import Floats

EPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stored(x: Floats, dtype: torch.dtype) -> Floats:
    return torch.from_numpy(x).to(dtype).float().numpy()


def to_int8(x: Floats) -> Floats:
    step = abs(x.astype(np.float64)).max(1, keepdims=True) / 127
    return (np.rint(x / step) * step).astype(np.float32)


def test_sums_and_moments_equal_float64() -> None:
    x, d = normal(45, 70), normal(45, 70, seed=1) ** 3 * np.float32(0.1)
    y = x + d
    change = delta(x, y, 2, "q", "matrix", EPS[torch.float32])
    x64, y64 = x.astype(np.float64), y.astype(np.float64)
    d64 = y64 - x64
    expected = {"aa": (x64**2).sum(), "bb": (y64**2).sum(), "dd": (d64**2).sum(), "ad": (x64 * d64).sum()}
    for name, value in expected.items():
        assert getattr(change, name) == pytest.approx(value, rel=1e-5, abs=1e-2)
    moments = [kurtosis(side.ravel(), fisher=False) for side in (x64 - x64.mean(), y64 - y64.mean())]
    assert change.kurtosis_growth == pytest.approx(moments[1] - moments[0], abs=0.02)
    fourth = (d64**4).mean() / (d64**2).mean() ** 2 - 3
    assert change.d_kurtosis == pytest.approx(fourth, rel=1e-4)
    norms = np.linalg.norm(x64) * np.linalg.norm(y64)
    assert change.relative == pytest.approx(np.linalg.norm(d64) / np.sqrt(norms), rel=1e-5)
    assert change.changed


def test_equal_tensors_did_not_change() -> None:
    x = normal(9, 7)
    change = delta(x, x.copy(), 0, "q", "matrix", EPS[torch.float32])
    assert not change.changed
    assert change.dd == 0
    assert change.aa == change.bb == pytest.approx(float((x.astype(np.float64) ** 2).sum()), rel=1e-6)


def test_zeros_are_counted_and_left_out_of_the_difference() -> None:
    x = normal(40, 50)
    y = np.where(abs(x) < 0.4, 0, x).astype(np.float32)
    change = delta(x, y, 0, "q", "matrix", EPS[torch.float32])
    assert change.zeros == (0, pytest.approx(float(np.mean(y == 0))))
    assert change.dd == 0
    assert not change.changed


@pytest.mark.parametrize("dtype", list(EPS))
def test_an_int8_round_trip_is_seen_in_every_format(dtype: torch.dtype) -> None:
    x = stored(normal(64, 96), dtype)
    y = stored(to_int8(x), dtype)
    for seed in range(3):
        dense = stored(normal(64, 96, seed=seed), dtype)
        assert delta(dense, -dense, 0, "q", "matrix", EPS[dtype]).on_grid == (False, False)
    change = delta(x, y, 0, "q", "matrix", EPS[dtype])
    assert change.on_grid == (False, True)
    assert change.within_half_step == (0, 1)
    assert delta(y, x, 0, "q", "matrix", EPS[dtype]).on_grid == (True, False)
    far = delta(stored(x + 0.2 * normal(64, 96, seed=9), dtype), y, 0, "q", "matrix", EPS[dtype])
    assert far.on_grid == (False, True)
    assert far.within_half_step[1] < 0.5


@pytest.mark.parametrize("dtype", list(EPS))
@pytest.mark.parametrize("rank", [1, 8])
def test_rank_of_an_adapter_is_found_under_rounding(dtype: torch.dtype, rank: int) -> None:
    x = stored(normal(80, 300), dtype)
    update = normal(80, rank, seed=1) @ normal(rank, 300, seed=2)
    change = delta(x, stored(x + update, dtype), 0, "q", "matrix", EPS[dtype], probe=True)
    assert change.spectrum is not None
    assert change.spectrum[0] == pytest.approx(rank / 80)


def test_noise_has_full_rank_and_no_direction() -> None:
    x = normal(300, 90)
    change = delta(x, x + 0.01 * normal(300, 90, seed=1), 0, "q", "matrix", EPS[torch.float32], probe=True)
    assert change.spectrum is not None
    rank, edge = change.spectrum
    assert rank == 1
    assert 0.9 < edge < 1.1
    assert abs(change.d_kurtosis) < 0.1


def test_rounding_of_an_undone_symmetry_is_no_change_but_training_is() -> None:
    x = normal(30, 30)
    rounded = stored(x * np.float32(1 + 1e-6), torch.float32)
    assert not delta(x, rounded, 0, "q", "matrix", EPS[torch.float32], has_symmetry=True).changed
    assert delta(x, rounded, 0, "q", "matrix", EPS[torch.float32]).changed
    assert delta(x, x * np.float32(1.001), 0, "q", "matrix", EPS[torch.float32], has_symmetry=True).changed


@pytest.mark.parametrize(("unequal", "least"), [(0.0, 0.91), (1.0, 0.86)], ids=["alike", "exponential"])
def test_rows_estimate_the_whole_and_say_how_well(unequal: float, least: float) -> None:
    """Two standard errors hold the change of the whole in about 95 of 100 matrices, in about 90 where few rows moved most."""
    rng, inside = np.random.default_rng(0), 0
    rows = np.linspace(0, 1999, 250).astype(int)
    for _ in range(200):
        x = rng.standard_normal((2000, 8)).astype(np.float32)
        size = 0.1 * ((1 - unequal) * rng.uniform(0.5, 1.5, (2000, 1)) + unequal * rng.exponential(1, (2000, 1)))
        y = x + (size * rng.standard_normal((2000, 8))).astype(np.float32)
        whole, part = (
            delta(u, v, 0, "q", "matrix", 2.0**-23, of=of) for u, v, of in ((x, y, None), (x[rows], y[rows], x.size))
        )
        assert whole.relative_error == 0
        assert part.num_elements == x.size
        assert part.aa == pytest.approx(whole.aa, rel=0.2)
        inside += abs(whole.relative / part.relative - 1) < 1.96 * part.relative_error
    assert least <= inside / 200 <= 0.99


def test_an_adapter_on_a_parent_of_few_values_is_no_rounding() -> None:
    """As on a model that was dequantised: few values are the parent's, and the difference is of low rank."""
    deltas = []
    for seed in range(4):
        x = (
            np.rint(2 * normal(96, 96, seed=seed)) + np.float32(0.5)
        ) / 2  # no zeros, which are left out of a difference
        y = x + 0.02 * normal(96, 4, seed=seed + 10) @ normal(4, 96, seed=seed + 20)
        deltas.append(delta(x, y, seed, "q", "matrix", EPS[torch.float32], probe=True))
    difference = Difference(deltas=deltas)
    lost = loss(deltas)
    assert lost is not None
    assert lost.kind == "rounded"
    assert [(sign.kind, sign.parent) for sign in residual(difference, measures_of(difference))] == [("lora", "a")]
