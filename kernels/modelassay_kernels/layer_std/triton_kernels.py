"""Standard deviation of every tensor of a model, in one launch of one Triton kernel.

A table on the device describes the tensors. Each program takes one *chunk*: up to K consecutive tiles of one tensor, read
once. Complete, aligned tiles are summed lane by lane in fp32 registers around c, the mean of the chunk's first tile:

    s1 = sum(x - c),    s2 = sum((x - c)^2),    mean = c + s1 / n,    M2 = s2 - s1^2 / n

The first tile is one of at most K, so M2 >= s2 / K whatever the data: nothing cancels beyond that factor. What this cannot
serve (ragged ends, unaligned or odd tensors, float64, NaN, infinity, values whose squares leave fp32, constant chunks)
takes the careful path, piece by piece: scaled by a power of two, pivot, mean, then centred squares, in float64 for float64.
Only a chunk that the fast path found unfit is read twice. Each chunk writes (n, mean, deviation) in float64, a deviation
because M2 could overflow; a second launch, one small program per tensor, merges them in fixed order. No atomics: equal
inputs give equal bits.

Dtypes are told apart by a code in the table and one branch per chunk, so a mixed checkpoint is still one launch.
"""

# T = tensors, C = chunks, K = tiles of one chunk
# R, Q = rows and columns of one tile, G = its groups of SCALE_GROUP columns

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from modelassay_kernels.dtypes import INDICES
from modelassay_kernels.layer_std import work_table
from modelassay_kernels.layer_std.scales import Block
from modelassay_kernels.layer_std.work_table import LaunchConfig, WorkTable, build_work_table, work_table_of
from modelassay_kernels.optional_triton import HAS_TRITON, constexpr, is_interpreted, jit, tl

__all__ = [
    "CONFIGS",
    "DTYPES",
    "LaunchConfig",
    "WorkTable",
    "build_work_table",
    "chunk_kernel",
    "default_config",
    "launch",
    "layer_std_from_table",
    "layer_std_triton",
    "merge_kernel",
]

CONFIGS = (
    LaunchConfig(block=2048, num_warps=4),
    LaunchConfig(block=2048, num_warps=4, num_stages=4),
    LaunchConfig(block=4096, num_warps=8, num_stages=3),
)
MERGE_BLOCK = 1024
DTYPES = tuple(INDICES)

NUM_FIELDS = constexpr(len(work_table.FIELDS))
(ADDRESS, CODE, NUMEL, ROWS, COLS, ROW_STRIDE, COL_TILES, FULL_TILES, NUM_TILES, FIRST_CHUNK) = map(
    constexpr, range(10)
)
(SCALE_ADDRESS, SCALE_ROWS, SCALE_COLS, SCALE_STRIDE, SCALAR_ADDRESS) = map(constexpr, range(10, 15))
BF16, FP16, FP32, FP64, E4M3, E5M2 = map(constexpr, INDICES.values())
SCALE_GROUP = constexpr(work_table.SCALE_GROUP)
PIECES = constexpr(work_table.PIECES)
SMALLEST_MEAN_SQUARE = constexpr(2.0**-100)  # above it, squares that fp32 flushes to zero are under 2^-26 of the sum
LARGEST_SUM = constexpr(3.4e38)  # below infinity, above which fp32 has no squares
WORST_CANCELLATION = constexpr(2.0**-8)  # M2 / s2 is above 1 / K by construction


def layer_std_triton(
    tensors: Sequence[Tensor],
    *,
    scales: Sequence[Tensor | None] | None = None,
    blocks: Sequence[Block | None] | None = None,
    correction: int = 1,
) -> Tensor:
    """Return the standard deviation of all elements of each tensor: float64 [T] on the tensors' CUDA device.

    Reads every element once (sum of numel * itemsize bytes) in one launch, then merges with a second, tiny one. dtypes
    bf16, fp16, fp32, fp64, fp8 e4m3fn and e5m2, mixed freely. Squares are summed in fp32 (fp64 for fp64 input) around a
    mean, merged in fp64: relative error about 1e-7.

    NaN for a tensor that holds NaN or infinity, and where numel <= correction or numel = 0; exactly 0 for equal elements.
    Squares never overflow or underflow: values near 1e30, and float64 near 1e200, have their true deviation.

    Args:
        tensors: on one CUDA device. Contiguous tensors, their transposes, and 2-D views with unit column stride are read
            in place, others are copied.
        scales: one per tensor, or None: a scalar, [rows], [rows, 1], or one per block [ceil(R / block rows),
            ceil(C / block columns)]. The product with a block scale is taken in fp32 (a product beyond fp32 counts as
            infinity), with a scalar in float64.
        blocks: (rows, columns) of a block for each tensor; None where the shapes leave one reading (`scales.split_scale`).
        correction: what is taken off the number of elements in the divisor; 1 is Bessel's.

    Raises:
        TypeError: for an unsupported dtype.
        ValueError: for tensors that are not on one CUDA device, or scales that do not fit their block.
        RuntimeError: where Triton is not installed.
    """
    if not tensors:
        return torch.empty(0, dtype=torch.float64)
    _check_device(tensors[0].device)
    table = work_table_of(tensors, scales, default_config(tensors[0].device), blocks=blocks)
    return layer_std_from_table(table, correction=correction)


def layer_std_from_table(table: WorkTable, *, correction: int = 1) -> Tensor:
    """Like `layer_std_triton` over tensors described before, as they are now: saves the host's work on each call."""
    device = table.rows_TF.device
    _check_device(device)
    partials_C3 = torch.empty(table.tensor_C.numel(), 3, dtype=torch.float64, device=device)
    std_T = torch.empty(table.rows_TF.shape[0], dtype=torch.float64, device=device)
    launch(table, partials_C3, std_T, correction)
    return std_T


def default_config(device: torch.device) -> LaunchConfig:
    """Return the launch configuration for a device. Chosen by reasoning, not measured: no GPU has run this kernel yet.

    Bytes in flight must cover bandwidth times latency: about 25 KB per multiprocessor of an H200, 40 KB of a B200. Three
    fp32 registers per element (value, s1, s2) at 16 elements per thread compile to about 96 registers, so 5 blocks of 128
    threads fit one multiprocessor; each copies 3 tiles of 4 KB (bf16) ahead, 60 KB together. Cards with 99 KB of
    shared memory per block (sm_86, sm_89, sm_120) have a quarter of that bandwidth and load straight into registers.
    """
    if device.type != "cuda":
        return CONFIGS[0]
    major, minor = torch.cuda.get_device_capability(device)
    return CONFIGS[1] if (major, minor) == (8, 0) or major in {9, 10} else CONFIGS[0]


def launch(table: WorkTable, partials_C3: Tensor, std_T: Tensor, correction: int) -> None:
    """Run both kernels into the given buffers, of which every element is written."""
    config, device = table.config, std_T.device
    on_gpu = device.type == "cuda"
    native_fp8 = on_gpu and torch.cuda.get_device_capability(device) >= (8, 9)
    with torch.cuda.device(device) if on_gpu else contextlib.nullcontext():
        if table.tensor_C.numel():
            chunk_kernel[(table.tensor_C.numel(),)](
                table.rows_TF, table.tensor_C, partials_C3,
                R=config.tile_rows, Q=config.tile_cols, K=config.tiles, STAGES=config.num_stages,
                NATIVE_FP8=native_fp8, num_warps=config.num_warps,
            )  # fmt: skip
        merge_kernel[(std_T.numel(),)](
            table.rows_TF, partials_C3, std_T, correction, K=config.tiles, BLOCK=MERGE_BLOCK, num_warps=4
        )


def _check_device(device: torch.device) -> None:
    if not HAS_TRITON:
        raise RuntimeError("layer_std_triton: Triton is not installed; install the `triton` package or call layer_std")
    if device.type != "cuda" and not is_interpreted(chunk_kernel):
        raise ValueError(f"layer_std_triton: tensors are on {device}; move them to a CUDA device or call layer_std")


@jit()
def _load(
    base: tl.tensor, o_RQ: tl.tensor, valid_RQ: tl.tensor, DTYPE: tl.constexpr, MASKED: tl.constexpr
) -> tl.tensor:
    """Read DTYPE at address base + o. Without MASKED every lane is read, and base must be a multiple of 16."""
    if MASKED:
        x_RQ = tl.load(base.to(tl.pointer_type(DTYPE)) + o_RQ, mask=valid_RQ)
    else:
        x_RQ = tl.load(tl.multiple_of(base.to(tl.pointer_type(DTYPE)), 16) + o_RQ)
    return x_RQ


@jit()
def _widen(x_RQ: tl.tensor) -> tl.tensor:
    """Return fp32 exactly. uint8 stands for the bits of e4m3fn, int8 for those of e5m2: shifted, both are fp16."""
    if x_RQ.dtype == tl.uint8:
        bits = x_RQ.to(tl.int32)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        value = half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0  # the biases differ by 8
        wide_RQ = tl.where((bits & 0x7F) == 0x7F, float("nan"), value)  # the only NaN; there is no infinity
    elif x_RQ.dtype == tl.int8:
        wide_RQ = (x_RQ.to(tl.int16) << 8).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        wide_RQ = x_RQ.to(tl.float32)
    return wide_RQ


@jit()
def _times(x_RQ: tl.tensor, scale_RG: tl.tensor, less: tl.tensor) -> tl.tensor:
    """X * scale - less; each scale holds for SCALE_GROUP columns."""
    x_RGS = tl.reshape(x_RQ, [x_RQ.shape[0], x_RQ.shape[1] // SCALE_GROUP, SCALE_GROUP])
    return tl.reshape(x_RGS * scale_RG[:, :, None] - less, [x_RQ.shape[0], x_RQ.shape[1]])


@jit()
def _block_scales(address: tl.tensor, stride: tl.tensor, row_R: tl.tensor, col_G: tl.tensor) -> tl.tensor:
    """The block scales at rows and columns of the table of scales; ones where the tensor has none."""
    at_RG = row_R[:, None].to(tl.int64) * stride + col_G[None, :]
    return tl.load(address.to(tl.pointer_type(tl.float32)) + at_RG, mask=(at_RG >= 0) & (address != 0), other=1.0)


@jit()
def _log2(power: tl.tensor) -> tl.tensor:
    """Of a power of two, exactly."""
    return (power.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@jit()
def _fast_chunk(row: tl.tensor, first: tl.tensor, num: tl.tensor, R: tl.constexpr, Q: tl.constexpr, STAGES: tl.constexpr,
                DTYPE: tl.constexpr, BYTES: tl.constexpr) -> tl.tensor:  # fmt: skip
    """Return mean, deviation and whether fp32 could hold their sums, of `num` complete, aligned tiles. Only fp8 has block scales.

    A block has a power of two of rows and columns, or all: twenty instructions of a division by it are one.
    """
    WORD: tl.constexpr = 16 // BYTES
    address, col_tiles = tl.load(row + ADDRESS), tl.load(row + COL_TILES)
    stride = tl.load(row + ROW_STRIDE) // WORD * WORD  # no change: it lets the compiler see 16-byte words
    o_RQ = tl.arange(0, R)[:, None] * stride + tl.arange(0, Q)[None, :]
    r0, q0, end = first // col_tiles * R, first % col_tiles * Q, col_tiles * Q
    x_RQ = _widen(_load(address + (r0 * stride + q0) * BYTES, o_RQ, None, DTYPE, False))
    if BYTES == 1:
        scale_address, scale_stride = tl.load(row + SCALE_ADDRESS), tl.load(row + SCALE_STRIDE)
        row_shift, col_shift = _log2(tl.load(row + SCALE_ROWS)), _log2(tl.load(row + SCALE_COLS))
        r_R, q_G = tl.arange(0, R), tl.arange(0, Q // SCALE_GROUP) * SCALE_GROUP
        row_R, col_G = (r0.to(tl.int32) + r_R) >> row_shift, (q0.to(tl.int32) + q_G) >> col_shift
        x_RQ = _times(x_RQ, _block_scales(scale_address, scale_stride, row_R, col_G), 0.0)
    centre = tl.sum(x_RQ) * (1.0 / (R * Q))
    s1_RQ = x_RQ - centre
    s2_RQ = s1_RQ * s1_RQ
    for _ in tl.range(1, num, num_stages=STAGES):
        q0 += Q
        r0 = tl.where(q0 == end, r0 + R, r0)
        q0 = tl.where(q0 == end, 0, q0)
        x_RQ = _widen(_load(address + (r0 * stride + q0) * BYTES, o_RQ, None, DTYPE, False))
        if BYTES == 1:
            row_R, col_G = (r0.to(tl.int32) + r_R) >> row_shift, (q0.to(tl.int32) + q_G) >> col_shift
            x_RQ = _times(x_RQ, _block_scales(scale_address, scale_stride, row_R, col_G), centre)
        else:
            x_RQ -= centre
        s1_RQ += x_RQ
        s2_RQ += x_RQ * x_RQ
    n = (num * (R * Q)).to(tl.float64)
    s1 = tl.sum(s1_RQ).to(tl.float64)
    s2 = tl.sum(s2_RQ).to(tl.float64)
    m2 = s2 - s1 * s1 / n
    fits = (m2 > s2 * WORST_CANCELLATION) & (s2 > n * SMALLEST_MEAN_SQUARE) & (s2 < LARGEST_SUM)
    return centre.to(tl.float64) + s1 / n, tl.sqrt(tl.where(fits, m2, 0.0) / n), fits


@jit()
def _careful_piece(row: tl.tensor, r_R: tl.tensor, q_Q: tl.tensor, code: tl.tensor, NATIVE_FP8: tl.constexpr,
                   FLOAT64: tl.constexpr) -> tl.tensor:  # fmt: skip
    """Return n, mean and deviation of any rows and columns, of any finite values; at least one element must be valid."""
    address, cols, row_stride = tl.load(row + ADDRESS), tl.load(row + COLS), tl.load(row + ROW_STRIDE)
    o_RQ = r_R[:, None] * row_stride + q_Q[None, :]
    # The last condition ends a contiguous tensor, whose last row is ragged.
    inside_RQ = (r_R < tl.load(row + ROWS))[:, None] & (q_Q < cols)[None, :]
    valid_RQ = inside_RQ & (r_R[:, None] * cols + q_Q[None, :] < tl.load(row + NUMEL))
    count = tl.sum(valid_RQ.to(tl.int32))
    if FLOAT64:
        x_RQ = _load(address, o_RQ, valid_RQ, tl.float64, True)
    elif code == BF16:
        x_RQ = _widen(_load(address, o_RQ, valid_RQ, tl.bfloat16, True))
    elif code == FP16:
        x_RQ = _widen(_load(address, o_RQ, valid_RQ, tl.float16, True))
    elif code == FP32:
        x_RQ = _load(address, o_RQ, valid_RQ, tl.float32, True)
    elif code == E4M3:
        x_RQ = _widen(_load(address, o_RQ, valid_RQ, tl.float8e4nv if NATIVE_FP8 else tl.uint8, True))
    else:
        x_RQ = _widen(_load(address, o_RQ, valid_RQ, tl.float8e5 if NATIVE_FP8 else tl.int8, True))
    scale_address = tl.load(row + SCALE_ADDRESS)
    if scale_address != 0:
        s_R = r_R // tl.load(row + SCALE_ROWS) * tl.load(row + SCALE_STRIDE)
        s_RQ = s_R[:, None] + (q_Q // tl.load(row + SCALE_COLS))[None, :]
        x_RQ *= _load(scale_address, s_RQ, valid_RQ, tl.float32, True)
    # 2^-e of the largest magnitude, by its bits; the bounds keep it normal for subnormal and for the largest values
    largest = tl.max(tl.where(valid_RQ, tl.abs(x_RQ), 0.0))
    if FLOAT64:
        exponent = (largest.to(tl.int64, bitcast=True) >> 52) & 0x7FF
        down = ((2046 - tl.minimum(tl.maximum(exponent, 1), 2045)) << 52).to(tl.float64, bitcast=True)
    else:
        exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 0xFF
        down = ((254 - tl.minimum(tl.maximum(exponent, 1), 253)) << 23).to(tl.float32, bitcast=True)
    up = 1.0 / down.to(tl.float64)
    x_RQ *= down
    pivot = tl.max(tl.where(valid_RQ, x_RQ, float("-inf")))  # an element: a constant piece deviates by exactly zero
    x_RQ = tl.where(valid_RQ, x_RQ - pivot, 0.0)
    shift = tl.sum(x_RQ) / count.to(x_RQ.dtype)
    x_RQ = tl.where(valid_RQ, x_RQ - shift, 0.0)
    m2 = tl.sum(x_RQ * x_RQ).to(tl.float64)
    n = count.to(tl.float64)
    return n, (pivot.to(tl.float64) + shift.to(tl.float64)) * up, tl.sqrt(m2 / n) * up


@jit()
def _merged(n: tl.tensor, mean: tl.tensor, dev: tl.tensor, other_n: tl.tensor, other_mean: tl.tensor,
            other_dev: tl.tensor) -> tl.tensor:  # fmt: skip
    """Return n, mean and deviation of two parts together, in units of the largest term so that no square overflows."""
    n += other_n
    share = other_n / n
    delta = other_mean - mean
    unit = tl.maximum(tl.maximum(dev, other_dev), tl.abs(delta))
    unit = tl.where(unit > 0, unit, 1.0)
    dev, other_dev, far = dev / unit, other_dev / unit, delta / unit
    square = (1.0 - share) * (dev * dev + share * far * far) + share * other_dev * other_dev
    return n, mean + delta * share, tl.sqrt(square) * unit


@jit()
def chunk_kernel(table_ptr: tl.tensor, tensor_ptr: tl.tensor, partial_ptr: tl.tensor, R: tl.constexpr, Q: tl.constexpr,
                 K: tl.constexpr, STAGES: tl.constexpr, NATIVE_FP8: tl.constexpr) -> None:  # fmt: skip
    """partial[chunk] = (n, mean, deviation) of one chunk of one tensor, float64; one program per chunk."""
    chunk = tl.program_id(0).to(tl.int64)
    row = table_ptr + tl.load(tensor_ptr + chunk).to(tl.int64) * NUM_FIELDS
    code = tl.load(row + CODE)
    first = (chunk - tl.load(row + FIRST_CHUNK)) * K
    num = tl.minimum(tl.load(row + NUM_TILES) - first, K)
    done = tl.minimum(tl.maximum(tl.load(row + FULL_TILES) - first, 0), K)
    mean = tl.full([], 0.0, tl.float64)
    dev = tl.full([], 0.0, tl.float64)
    if done > 0:
        if code == BF16:
            mean, dev, fits = _fast_chunk(row, first, done, R, Q, STAGES, tl.bfloat16, 2)
        elif code == FP16:
            mean, dev, fits = _fast_chunk(row, first, done, R, Q, STAGES, tl.float16, 2)
        elif code == FP32:
            mean, dev, fits = _fast_chunk(row, first, done, R, Q, STAGES, tl.float32, 4)
        elif code == E4M3:
            mean, dev, fits = _fast_chunk(row, first, done, R, Q, STAGES, tl.float8e4nv if NATIVE_FP8 else tl.uint8, 1)
        else:
            mean, dev, fits = _fast_chunk(row, first, done, R, Q, STAGES, tl.float8e5 if NATIVE_FP8 else tl.int8, 1)
        done = tl.where(fits, done, 0)
        mean = tl.where(fits, mean, 0.0)
        dev = tl.where(fits, dev, 0.0)
    n = (done * (R * Q)).to(tl.float64)
    PIECE: tl.constexpr = R // PIECES
    col_tiles = tl.load(row + COL_TILES)
    for tile in range(first + done, first + num):
        r0, q_Q = tile // col_tiles * R, tile % col_tiles * Q + tl.arange(0, Q)
        for piece in range(tl.cdiv(tl.minimum(tl.load(row + ROWS) - r0, R), PIECE)):
            r_R = r0 + piece * PIECE + tl.arange(0, PIECE)
            if code == FP64:
                other_n, other_mean, other_dev = _careful_piece(row, r_R, q_Q, code, NATIVE_FP8, True)
            else:
                other_n, other_mean, other_dev = _careful_piece(row, r_R, q_Q, code, NATIVE_FP8, False)
            n, mean, dev = _merged(n, mean, dev, other_n, other_mean, other_dev)
    tl.store(partial_ptr + chunk * 3, n)
    tl.store(partial_ptr + chunk * 3 + 1, mean)
    tl.store(partial_ptr + chunk * 3 + 2, dev)


@jit(do_not_specialize=("correction",))
def merge_kernel(table_ptr: tl.tensor, partial_ptr: tl.tensor, std_ptr: tl.tensor, correction: tl.tensor, K: tl.constexpr,
                 BLOCK: tl.constexpr) -> None:  # fmt: skip
    """std[tensor] from its chunks' (n, mean, deviation), float64, times its scalar scale; one program per tensor."""
    tensor = tl.program_id(0).to(tl.int64)
    row = table_ptr + tensor * NUM_FIELDS
    num_chunks = tl.cdiv(tl.load(row + NUM_TILES), K)
    numel = tl.load(row + NUMEL)
    partial = partial_ptr + tl.load(row + FIRST_CHUNK) * 3
    pivot = tl.load(partial + 1, mask=num_chunks > 0, other=0.0)  # constant tensors differ from it by exactly zero
    sum_B = tl.zeros([BLOCK], tl.float64)
    unit_B = tl.zeros([BLOCK], tl.float64)
    for start in range(0, num_chunks, BLOCK):
        c_B = start + tl.arange(0, BLOCK)
        delta_B = tl.load(partial + c_B * 3 + 1, mask=c_B < num_chunks, other=pivot) - pivot
        dev_B = tl.load(partial + c_B * 3 + 2, mask=c_B < num_chunks, other=0.0)
        n_B = tl.load(partial + c_B * 3, mask=c_B < num_chunks, other=0.0)
        sum_B += n_B / tl.maximum(numel, 1).to(tl.float64) * delta_B
        unit_B = tl.maximum(unit_B, tl.maximum(tl.abs(delta_B), dev_B))
    shift = tl.sum(sum_B)
    unit = tl.max(unit_B)
    unit = tl.where(unit > 0, unit, 1.0)
    m2_B = tl.zeros([BLOCK], tl.float64)
    for start in range(0, num_chunks, BLOCK):
        c_B = start + tl.arange(0, BLOCK)
        delta_B = (tl.load(partial + c_B * 3 + 1, mask=c_B < num_chunks, other=pivot) - pivot - shift) / unit
        dev_B = tl.load(partial + c_B * 3 + 2, mask=c_B < num_chunks, other=0.0) / unit
        n_B = tl.load(partial + c_B * 3, mask=c_B < num_chunks, other=0.0)
        m2_B += n_B * (dev_B * dev_B + delta_B * delta_B)
    std = tl.sqrt(tl.sum(m2_B) / tl.maximum(numel - correction, 1).to(tl.float64)) * unit
    scalar_address = tl.load(row + SCALAR_ADDRESS)
    if scalar_address != 0:
        scale = tl.load(scalar_address.to(tl.pointer_type(tl.float32))).to(tl.float64)
        std = std * tl.abs(scale) + scale * 0.0  # NaN for an infinite scale too
    tl.store(std_ptr + tensor, tl.where((numel > correction) & (numel > 0), std, float("nan")))
