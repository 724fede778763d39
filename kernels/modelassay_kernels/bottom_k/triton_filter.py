"""The filter of bottom_k: a row is read once, and one bit says of each element whether it passes the row's limit.

A filter must do little for each element: with 2 bytes an element, an H200 reads one every 1.7 instructions of a warp. So no
key is made, no place counted and nothing but bits is written; what passes is gathered from the row when all are known.
"""

# V = vocabulary, B = elements of one tile, G = bytes of a tile's bits, W = words of bits of one tile

from __future__ import annotations

from modelassay_kernels.bottom_k.triton_keys import (
    BEFORE_NUMBERS,
    LAST,
    LAST_NUMBER,
    interval,
    keys,
    load_row,
    passes,
)
from modelassay_kernels.optional_triton import constexpr, jit, tl

RUN = constexpr(32)  # neighbours of a sample: one or two 64-byte sectors
HALVINGS = constexpr(20)  # of 2^32 keys: leaves the limit within 2^-11 of its number


@jit()
def _sampled_limit(row_ptr: tl.tensor, valid_ptr: tl.tensor, num_cols: tl.tensor, col_stride: tl.tensor, rank: tl.tensor,
                   SAMPLE: tl.constexpr, LARGEST: tl.constexpr, HAS_VALID: tl.constexpr) -> tl.tensor:  # fmt: skip
    """Return a key that `rank` or a few more of the sample are not above; NaN's where there are fewer numbers."""
    i_B = tl.arange(0, SAMPLE)
    o_B = i_B // RUN * (num_cols // (SAMPLE // RUN)) + i_B % RUN
    key_B, inside_B = load_row(row_ptr, valid_ptr, o_B, i_B >= 0, col_stride, LARGEST, HAS_VALID)
    key_B = tl.where(inside_B, key_B, LAST)
    low = tl.full([], BEFORE_NUMBERS, tl.int32)
    high = tl.full([], LAST_NUMBER, tl.int32)
    for _ in range(HALVINGS):
        middle = (low & high) + ((low ^ high) >> 1)  # their sum may overflow
        enough = tl.sum((key_B <= middle).to(tl.int32)) >= rank
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle)
    num_numbers = tl.sum((key_B <= LAST_NUMBER).to(tl.int32))
    return tl.where(num_numbers >= rank, high, LAST)


@jit()
def pack(keep_B: tl.tensor) -> tl.tensor:
    """Return eight neighbours' bits in a byte, the first in the lowest: int32 [B / 8]."""
    B: tl.constexpr = keep_B.shape[0]
    bit_G8 = tl.arange(0, 8)[None, :]
    return tl.sum(tl.reshape(keep_B.to(tl.int32), [B // 8, 8]) << bit_G8, 1)


@jit()
def shift_of(row_ptr: tl.tensor, ALIGNED: tl.constexpr) -> tl.tensor:
    """Elements between the last multiple of 16 bytes and the row's start."""
    if ALIGNED:
        shift = tl.full([], 0, tl.int32)
    else:
        itemsize: tl.constexpr = row_ptr.dtype.element_ty.primitive_bitwidth // 8
        shift = ((row_ptr.to(tl.int64) & 15) // itemsize).to(tl.int32)
    return shift


@jit(do_not_specialize=("rank", "bits_stride"))
def filter_kernel(x_ptr: tl.tensor, valid_ptr: tl.tensor, bits_ptr: tl.tensor, num_cols: tl.tensor, row_stride: tl.tensor,
                  col_stride: tl.tensor, rank: tl.tensor, bits_stride: tl.tensor, SAMPLE: tl.constexpr,
                  BLOCK: tl.constexpr, STAGES: tl.constexpr, LARGEST: tl.constexpr, HAS_VALID: tl.constexpr,
                  NEIGHBOURS: tl.constexpr, ALIGNED: tl.constexpr) -> None:  # fmt: skip
    """Write the bits of one segment of a row: bit i is column i - shift, where shift elements lie before it in its first 16 bytes.

    NEIGHBOURS: columns are neighbours, so shift lets them be read in words of 16 bytes; ALIGNED: it is known to be 0.
    """
    row, segment, num_segments = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    row_ptr = x_ptr + row * row_stride
    limit = _sampled_limit(row_ptr, valid_ptr, num_cols, col_stride, rank, SAMPLE, LARGEST, HAS_VALID)
    first_bits, length = interval(limit, LARGEST)
    shift = shift_of(row_ptr, ALIGNED or not NEIGHBOURS)
    bits_ptr += row * bits_stride
    num_tiles = tl.cdiv(num_cols + shift, BLOCK)
    first = (num_tiles * segment.to(tl.int64) // num_segments).to(tl.int32)
    end = (num_tiles * (segment.to(tl.int64) + 1) // num_segments).to(tl.int32)
    g_G = tl.arange(0, BLOCK // 8)
    whole_first = tl.maximum(first, (shift > 0).to(tl.int32))
    whole_end = tl.minimum(end, (num_cols + shift) // BLOCK)
    for tile in tl.range(whole_first, whole_end, num_stages=STAGES):
        start = tile * BLOCK - shift
        o_B = start + tl.arange(0, BLOCK)
        if NEIGHBOURS:
            x_B = tl.load(tl.multiple_of(row_ptr + start, 16) + tl.arange(0, BLOCK))
        else:
            x_B = tl.load(row_ptr + o_B.to(tl.int64) * col_stride)
        keep_B = passes(x_B, first_bits, length)
        if HAS_VALID:
            if ALIGNED:
                valid_B = tl.load(tl.multiple_of(valid_ptr + start, 16) + tl.arange(0, BLOCK))
            else:
                valid_B = tl.load(valid_ptr + o_B)
            keep_B = keep_B & (valid_B != 0)
        tl.store(bits_ptr + tile * (BLOCK // 8) + g_G, pack(keep_B).to(tl.uint8))
    for ragged in range(2):  # the first tile and the last, where they are not whole
        tile = tl.where(ragged == 0, 0, num_tiles - 1)
        if (tile >= first) & (tile < end) & ((tile < whole_first) | (tile >= whole_end)):
            o_B = tile * BLOCK - shift + tl.arange(0, BLOCK)
            inside_B = (o_B >= 0) & (o_B < num_cols)
            x_B = tl.load(row_ptr + o_B.to(tl.int64) * col_stride, mask=inside_B, other=0.0)
            keep_B = passes(x_B, first_bits, length) & inside_B
            if HAS_VALID:
                keep_B = keep_B & (tl.load(valid_ptr + o_B, mask=inside_B, other=0) != 0)
            tl.store(bits_ptr + tile * (BLOCK // 8) + g_G, pack(keep_B).to(tl.uint8))


@jit()
def num_bits(word_B: tl.tensor) -> tl.tensor:
    """How many bits of each uint32 are set, as int32: Warren, Hacker's Delight, section 5-1."""
    word_B = word_B - ((word_B >> 1) & 0x55555555)
    word_B = (word_B & 0x33333333) + ((word_B >> 2) & 0x33333333)
    word_B = (word_B + (word_B >> 4)) & 0x0F0F0F0F
    return ((word_B + (word_B >> 8) + (word_B >> 16) + (word_B >> 24)) & 0x3F).to(tl.int32)


@jit()
def append_ids(
    entries_ptr: tl.tensor, count: tl.tensor, word_W: tl.tensor, id_W: tl.tensor, capacity: tl.tensor
) -> tl.tensor:
    """Write the ids of all bits of uint32 words behind `count` entries, in order, where there is room; return the new count.

    id_W: that of each word's lowest bit. A key is not there yet: `fill` adds it.
    """
    num_W = num_bits(word_W)
    to_W = count + tl.cumsum(num_W, 0) - num_W
    for _ in range(tl.max(num_W)):
        rest_W = word_W & (word_W - 1)
        lowest_W = word_W ^ rest_W
        place_W = (lowest_W.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127  # a power of two is exact
        id_B = (id_W + place_W).to(tl.int64)
        tl.store(entries_ptr + to_W, id_B, mask=(lowest_W != 0) & (to_W < capacity))
        word_W = rest_W
        to_W += 1
    return count + tl.sum(num_W)


@jit()
def fill(entries_ptr: tl.tensor, row_ptr: tl.tensor, first: tl.tensor, end: tl.tensor, id_offset: tl.tensor,
         col_stride: tl.tensor, BLOCK: tl.constexpr, LARGEST: tl.constexpr) -> None:  # fmt: skip
    """Make key << 32 | id of the ids among entries [first, end), from a row whose column 0 has the id `id_offset`."""
    for start in range(first, end, BLOCK):
        o_B = start + tl.arange(0, BLOCK)
        inside_B = o_B < end
        id_B = tl.load(entries_ptr + o_B, mask=inside_B, other=0)
        x_B = tl.load(row_ptr + (id_B - id_offset) * col_stride, mask=inside_B, other=0.0)
        tl.store(entries_ptr + o_B, (keys(x_B, LARGEST).to(tl.int64) << 32) | id_B, mask=inside_B)


@jit()
def gather(bits_ptr: tl.tensor, entries_ptr: tl.tensor, row_ptr: tl.tensor, num_cols: tl.tensor, col_stride: tl.tensor,
           capacity: tl.tensor, BLOCK: tl.constexpr, LARGEST: tl.constexpr, NEIGHBOURS: tl.constexpr,
           ALIGNED: tl.constexpr) -> tl.tensor:  # fmt: skip
    """Turn a row's bits into entries by rising ids; return how many there are, which may exceed the capacity."""
    shift = shift_of(row_ptr, ALIGNED or not NEIGHBOURS)
    num_words = tl.cdiv(num_cols + shift, 32)
    word_ptr = bits_ptr.to(tl.pointer_type(tl.uint32))
    count = tl.full([], 0, tl.int32)
    for start in range(0, num_words, BLOCK):
        w_W = start + tl.arange(0, BLOCK)
        word_W = tl.load(word_ptr + w_W, mask=w_W < num_words, other=0)
        count = append_ids(entries_ptr, count, word_W, w_W * 32 - shift, capacity)
    tl.debug_barrier()  # what other threads appended is there
    fill(entries_ptr, row_ptr, 0, tl.minimum(count, capacity), 0, col_stride, BLOCK, LARGEST)
    tl.debug_barrier()
    return count
