"""What two corresponding tensors differ by: sizes, shapes of distributions, zeros, grids and rank, in one pass."""

# R = rows of a matrix (output channels), C = columns

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from modelassay.fingerprints.lineage.symmetries import Floats
from modelassay.fingerprints.lineage.tensors import step_over

GRID_ROWS = 16
"""Rows that are tried for an int8 grid; an element off the grid passes in fp32 with a chance of 0.004."""

MIN_COSINE = 0.3
"""Below it, corresponding tensors show no common origin that can be compared element by element."""

Distinct = tuple[float, float]
Kind = Literal["matrix", "embedding", "vector"]


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What two corresponding tensors have in common, the first one's symmetries already undone.

    Sums run over the elements that are zero in neither. Where rows stand for a matrix they are those of the rows times its elements over theirs.
    """

    layer: int
    name: str
    kind: Kind
    """``matrix`` lies in the stack, ``embedding`` outside of it."""
    num_elements: int
    """Of the whole tensor."""
    eps: float
    """Spacing of the coarser of the two formats, relative."""
    has_symmetry: bool
    """A symmetry was undone, which leaves rounding."""
    aa: float = 0.0
    bb: float = 0.0
    dd: float = 0.0
    """Sum of squares of b - a."""
    ad: float = 0.0
    """Sum of a (b - a)."""
    d_kurtosis: float = 0.0
    """E d^4 / (E d^2)^2 - 3, d = b - a; 0 for Gaussian noise."""
    kurtosis_growth: float = 0.0
    """Kurtosis of b less that of a."""
    zeros: tuple[float, float] = (0.0, 0.0)
    """Share of elements that are exactly zero, in a and b."""
    on_grid: tuple[bool, bool] = (False, False)
    """Whether the rows of a, b are whole multiples of their maximum / 127."""
    within_half_step: tuple[float, float] = (0.0, 0.0)
    """Share of elements of the other side that round to this one's, where this one is on a grid."""
    spectrum: tuple[float, float] | None = None
    """Of a block of b - a: rank / full rank, largest singular value / that of noise of its size; None where not taken."""
    own_rank: tuple[float, float] | None = None
    """Rank over full rank of a block of a and of b themselves; None where not taken."""
    distinct: tuple[Distinct, Distinct] = ((1.0, 1.0), (1.0, 1.0))
    """Share of different values among the non-zero ones of a row, and of `GRID_ROWS` rows, in a and b."""
    same_size: float = 0.0
    """Share of elements that are equal but for their sign."""
    relative_error: float = 0.0
    """Standard error of ``relative`` where rows stand for the matrix, as a share of it."""

    @property
    def is_defined(self) -> bool:
        """Whether both tensors are finite, and small enough to be squared."""
        return math.isfinite(self.aa) and math.isfinite(self.bb) and math.isfinite(self.dd)

    @property
    def differs(self) -> bool:
        """Whether anything, be it zeros, is not the same in both."""
        return self.dd > 0 or self.zeros[0] != self.zeros[1]

    @property
    def relative(self) -> float:
        """|b - a| / |a|, geometric mean with |b - a| / |b|."""
        return math.sqrt(self.dd / max(math.sqrt(self.aa * self.bb), 1e-300))

    @property
    def cosine(self) -> float:
        """Of a and b; 1 where one is zero."""
        size = math.sqrt(self.aa * self.bb)
        return (self.aa + self.ad) / size if size else 1.0

    @property
    def changed(self) -> bool:
        """Whether more than the rounding of a symmetry is left."""
        return self.relative > (8 * self.eps + 1e-5 if self.has_symmetry else 0.0)


def delta(x: Floats, y: Floats, layer: int, name: str, kind: Kind, eps: float, *, has_symmetry: bool = False,
          probe: bool = False, of: int | None = None) -> Delta:  # fmt: skip
    """Return the statistics of two tensors of one shape; with ``probe``, singular values of a block of the difference.

    ``of`` is the number of elements of the tensors that rows ``x`` and ``y`` stand for; None: they are whole.
    Costs one comparison where they are equal, otherwise about ten passes.
    """
    whole = 1.0 if of is None else of / x.size
    common: dict[str, Any] = {
        "layer": layer,
        "name": name,
        "kind": kind,
        "num_elements": x.size if of is None else of,
        "eps": eps,
        "has_symmetry": has_symmetry,
    }
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return Delta(**common, aa=math.nan, bb=math.nan, dd=math.nan)
    if np.array_equal(x, y):
        size = whole * _dot(x, x)
        return Delta(**common, aa=size, bb=size)
    zeros = (_zeros(x), _zeros(y))
    kurtosis_growth = _kurtosis(y) - _kurtosis(x) if kind == "matrix" else 0.0
    if max(zeros) > 0:
        both = (x != 0) & (y != 0)
        x, y = x * both, y * both
    grid, half_step, step = (False, False), (0.0, 0.0), eps * math.sqrt(max(_dot(x, x), _dot(y, y)) / x.size)
    if kind == "matrix":
        grid = (_on_grid(x, eps), _on_grid(y, eps))
        half_step = (
            _within_half_step(x, y, eps) if grid[0] else 0.0,
            _within_half_step(y, x, eps) if grid[1] else 0.0,
        )
        step = max(step, *(float(abs(side).max(1).mean()) / 127 * on for side, on in zip((x, y), grid, strict=True)))
    is_matrix = kind == "matrix"
    d = y - x
    dd = _dot(d, d)
    squares = d * d
    support = max((1 - max(zeros)) * d.size, 1)
    fourth = _dot(squares, squares)
    return Delta(
        **common,
        aa=whole * _dot(x, x),
        bb=whole * _dot(y, y),
        dd=whole * dd,
        ad=whole * _dot(x, d),
        relative_error=0.0 if of is None else _relative_error(x, squares, 1 - 1 / whole),
        d_kurtosis=fourth * support / dd**2 - 3 if dd else 0.0,
        kurtosis_growth=kurtosis_growth,
        zeros=zeros,
        on_grid=grid,
        within_half_step=half_step,
        spectrum=_spectrum(d, step) if probe and is_matrix and dd else None,
        own_rank=(_own_rank(x, eps), _own_rank(y, eps)) if probe and is_matrix else None,
        distinct=(_distinct(x), _distinct(y)) if is_matrix else ((1.0, 1.0), (1.0, 1.0)),
        same_size=float(np.mean(abs(x) == abs(y))) if is_matrix else 0.0,
    )


def _relative_error(x_RC: Floats, squares_RC: Floats, left_out: float) -> float:
    """Return the standard error of sqrt(sum d^2 / sum x^2) as a share of it, ``squares`` being d^2, from how its rows vary (ratio estimator).

    ``left_out`` is the share of the rows that were not read.
    """
    moved, size = (part.sum(1, dtype=np.float64) for part in (squares_RC, x_RC * x_RC))
    if not (moved.sum() > 0 and size.sum() > 0):
        return 0.0
    rest = moved / moved.mean() - size / size.mean()
    return float(0.5 * rest.std(ddof=1) * math.sqrt(left_out / len(rest)))


def _zeros(x: Floats) -> float:
    return 1 - int(np.count_nonzero(x)) / x.size


def _dot(x: Floats, y: Floats) -> float:
    return float(np.dot(x.reshape(-1), y.reshape(-1)))


def _kurtosis(x: Floats) -> float:
    squares = x * x
    return _dot(squares, squares) * x.size / max(float(squares.sum()), 1e-30) ** 2


def _on_grid(x_RC: Floats, eps: float) -> bool:
    """Whether the rows are whole multiples of their maximum / 127, as far as the format can tell.

    Multiples small enough for the format's spacing to be under a twentieth of a step are asked (all in fp32, up to 6
    in bf16), zeros not, which any pruned matrix has.
    """
    rows_RC = x_RC[:: step_over(len(x_RC), GRID_ROWS)]
    step_R1 = abs(rows_RC).max(1, keepdims=True) / 127
    with np.errstate(divide="ignore", invalid="ignore"):
        level_RC = abs(rows_RC) / step_R1
    decisive = (level_RC > 0.5) & (level_RC < 0.05 / eps) & (level_RC < 126.5)
    if np.count_nonzero(decisive) < GRID_ROWS:
        return False
    levels = level_RC[decisive]
    off = abs(levels - np.rint(levels))
    return bool(np.mean(off <= levels * eps + 2e-3) > 0.99)


def _within_half_step(grid_RC: Floats, x_RC: Floats, eps: float) -> float:
    """Share of elements that are no farther from those on the grid than rounding to it takes them."""
    step_R1 = abs(grid_RC).max(1, keepdims=True) / 127
    slack = 0.5 + 1e-3 + 127 * eps
    return float(np.mean(abs(grid_RC - x_RC) <= slack * step_R1))


def _spectrum(d_RC: Floats, step: float) -> tuple[float, float]:
    """Rank and largest singular value of a difference, from at most `BLOCK` of its rows and columns.

    A block of a matrix of rank r has rank r or less, and one of white noise is white. Singular values count towards the rank
    above 1e-4 of the largest and above 1.5 times the edge of what rounding to multiples of ``step`` makes, step / sqrt(12).
    """
    block = d_RC[:: step_over(len(d_RC)), :: step_over(d_RC.shape[1])]
    values = np.linalg.svd(block, compute_uv=False)
    edge = math.sqrt(block.shape[0]) + math.sqrt(block.shape[1])
    size = math.sqrt(max(float(np.mean(block * block)), 1e-60))
    rank = int(np.count_nonzero(values > max(1e-4 * float(values[0]), 1.5 * step / math.sqrt(12) * edge)))
    return rank / values.size, float(values[0]) / (size * edge)


def _own_rank(x_RC: Floats, eps: float) -> float:
    """Rank over full rank of a block, singular values counting from those above rounding to the format."""
    block = x_RC[:: step_over(len(x_RC)), :: step_over(x_RC.shape[1])]
    values = np.linalg.svd(block, compute_uv=False)
    edge = (math.sqrt(block.shape[0]) + math.sqrt(block.shape[1])) * math.sqrt(float(np.mean(block * block)))
    return float(np.mean(values > max(1e-5 * float(values[0]), eps * edge)))


def _distinct(x_RC: Floats) -> Distinct:
    rows = [row[row != 0] for row in x_RC[:: step_over(len(x_RC), GRID_ROWS)]]
    total = max(sum(row.size for row in rows), 1)
    return sum(np.unique(row).size for row in rows) / total, np.unique(np.concatenate(rows)).size / total
