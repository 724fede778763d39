"""The tiles of attention's kernels: of rows and keys, by compute capability, element size and head dimension."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The tile of one kernel."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int
    split: bool = False
    """Whether each of the kernel's results has a launch of its own."""


def _tiling(rows: int, keys: int, num_warps: int, num_stages: int, *, split: bool = False) -> Tiling:
    return Tiling(rows=rows, keys=keys, num_warps=num_warps, num_stages=num_stages, split=split)


HEAD_BLOCKS = (16, 32, 64, 128, 256)
"""Head dimensions are padded with zeros to the next of these."""

Table = dict[str, dict[int, tuple[Tiling, ...]]]
"""By kernel and bytes of an element, one tile per padded head dimension."""

_BIG, _HALF, _MID, _LITTLE = _tiling(64, 64, 4, 2), _tiling(64, 32, 4, 1), _tiling(32, 32, 8, 1), _tiling(16, 16, 4, 1)
_FLAT, _HIGH, _HIGH_SPLIT = _tiling(64, 32, 4, 2), _tiling(32, 64, 4, 2), _tiling(32, 64, 4, 1, split=True)
_BACKWARD_FP32 = (_MID, _MID, _MID, _LITTLE)
SMALL: Table = {
    "forward_kernel": {
        2: (_BIG, _BIG, _BIG, _BIG, _tiling(64, 32, 8, 1)),
        4: (_MID, _MID, _MID, _tiling(32, 32, 4, 1)),
    },
    "tangent_kernel": {2: (_FLAT, _FLAT, _FLAT, _HALF, _MID), 4: (_MID, _MID, _LITTLE, _LITTLE)},
    "backward_q_kernel": {2: (_BIG, _BIG, _BIG, _HALF, _MID), 4: _BACKWARD_FP32},
    "backward_kv_kernel": {2: (_HIGH, _HIGH, _HIGH, _tiling(32, 64, 4, 1), _MID), 4: _BACKWARD_FP32},
    "backward_tangent_q_kernel": {2: (_HALF, _HALF, _HALF, _tiling(32, 32, 4, 1), _LITTLE), 4: (_LITTLE,) * 4},
    "backward_tangent_kv_kernel": {
        2: (_HIGH_SPLIT, _HIGH_SPLIT, _HIGH_SPLIT, _tiling(16, 32, 2, 1), _LITTLE),
        4: (_LITTLE, _LITTLE, _LITTLE, _tiling(16, 16, 4, 1, split=True)),
    },
}
"""For cards of 99 KiB of shared memory a program (sm_86, sm_89, sm_120), and sm_80. A warp has whole rows of products where registers
allow it (4 warps of 16 rows), so that probabilities become factors without leaving them. In fp32, where a factor is three, the second
order of D = 128 spills in its loop: so it does with 2 and 8 warps, with 32 rows or keys, and far more where what all passes share is
read again in each."""

_WIDE, _TALL, _DEEP = _tiling(128, 64, 8, 2), _tiling(64, 128, 8, 2), _tiling(128, 64, 8, 3)
_KEYS, _KEYS_SPLIT = _tiling(32, 64, 4, 2), _tiling(32, 64, 4, 2, split=True)
_ROWS, _ROWS_WIDE = _tiling(64, 64, 4, 2), _tiling(128, 32, 8, 2)
HOPPER: Table = {
    "forward_kernel": {
        2: (*(_tiling(128, 128, 8, 3),) * 3, _DEEP, _tiling(64, 32, 8, 1)),
        4: SMALL["forward_kernel"][4],
    },
    "tangent_kernel": {2: (_WIDE, _WIDE, _WIDE, _WIDE, _MID), 4: SMALL["tangent_kernel"][4]},
    "backward_q_kernel": {2: (_WIDE, _WIDE, _WIDE, _WIDE, _MID), 4: _BACKWARD_FP32},
    "backward_kv_kernel": {2: (_TALL, _TALL, _TALL, _KEYS, _MID), 4: _BACKWARD_FP32},
    "backward_tangent_q_kernel": {
        2: (_ROWS, _ROWS, _ROWS, _ROWS_WIDE, _LITTLE),
        4: SMALL["backward_tangent_q_kernel"][4],
    },
    "backward_tangent_kv_kernel": {
        2: (_KEYS, _KEYS, _KEYS, _KEYS_SPLIT, _LITTLE),
        4: SMALL["backward_tangent_kv_kernel"][4],
    },
}
"""For sm_90, of 227 KiB: at least 64 rows or keys are what HGMMA multiplies, and loads are ahead of the products.
Of those tried, the tiles whose loop spills nothing and issues the fewest instructions for a flop; not tuned by time."""

_KEYS_OF_128, _KEYS_OF_128_SPLIT = _tiling(32, 128, 4, 1), _tiling(32, 128, 8, 1, split=True)
BLACKWELL: Table = {
    **HOPPER,
    "forward_kernel": {
        2: (*(_tiling(128, 128, 8, 3),) * 3, _tiling(128, 128, 8, 2), _tiling(64, 32, 8, 1)),
        4: HOPPER["forward_kernel"][4],
    },
    "backward_q_kernel": {2: (*(_tiling(128, 128, 8, 2),) * 3, _WIDE, _MID), 4: _BACKWARD_FP32},
    "backward_kv_kernel": {2: (*(_tiling(32, 128, 4, 2),) * 3, _TALL, _MID), 4: _BACKWARD_FP32},
    "backward_tangent_kv_kernel": {
        2: (_KEYS, _KEYS, _KEYS_OF_128, _KEYS_OF_128_SPLIT, _LITTLE),
        4: HOPPER["backward_tangent_kv_kernel"][4],
    },
}
"""For sm_100, of 227 KiB too: sums lie in the tensor cores' own memory, and what reads them back costs less over more keys. The loop of
D = 64's second order spills 15 words; without, by 8 warps, its bound is 0.39 instead of 0.49."""


def table(capability: tuple[int, int]) -> Table:
    """Return the tiles of a card."""
    return {9: HOPPER, 10: BLACKWELL}.get(capability[0], SMALL)


def tiling(kernel: str, itemsize: int, head_dim: int, capability: tuple[int, int]) -> tuple[Tiling, int]:
    """Return a kernel's tile (of an unknown one, the forward's) and the padded head dimension."""
    index = next(i for i, block in enumerate(HEAD_BLOCKS) if head_dim <= block)
    tiles = table(capability)
    return tiles.get(kernel, tiles["forward_kernel"])[itemsize][index], HEAD_BLOCKS[index]
