"""Keys of numbers in Triton: signed int32 in the order of the result, and the sets of bits that a limit lets pass."""

# B = elements of one tile

from __future__ import annotations

from modelassay_kernels.optional_triton import constexpr, jit, tl

LAST = constexpr(0x7FFFFFFF)  # NaN
LAST_NUMBER = constexpr(0x7F800000)  # the infinity that comes last
BEFORE_NUMBERS = constexpr(-2139095042)  # one below the infinity that comes first


@jit()
def _bits(x_B: tl.tensor) -> tl.tensor:
    """Return the bits of numbers of any type as those of fp32, in int32."""
    if x_B.dtype == tl.bfloat16:
        bits_B = x_B.to(tl.int16, bitcast=True).to(tl.int32) << 16  # exact also where a cast would flush subnormals
    else:
        bits_B = x_B.to(tl.float32).to(tl.int32, bitcast=True)
    return bits_B


@jit()
def keys(x_B: tl.tensor, LARGEST: tl.constexpr) -> tl.tensor:
    """int32 keys of numbers of any type."""
    bits_B = _bits(x_B)
    nan_B = (bits_B & 0x7FFFFFFF) > LAST_NUMBER
    if LARGEST:
        bits_B = bits_B ^ -2147483648
    key_B = bits_B ^ ((bits_B >> 31) & 0x7FFFFFFF)
    key_B = tl.where(key_B == -1, 0, key_B)  # -0.0 would come just before +0.0
    return tl.where(nan_B, LAST, key_B)


@jit()
def numbers(key_B: tl.tensor, LARGEST: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    """Return numbers that have these keys."""
    bits_B = key_B ^ ((key_B >> 31) & 0x7FFFFFFF)
    if LARGEST:
        bits_B = tl.where((key_B == 0) | (key_B == LAST), bits_B, bits_B ^ -2147483648)
    if dtype == tl.bfloat16:
        x_B = (bits_B >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        x_B = bits_B.to(tl.float32, bitcast=True).to(dtype)
    return x_B


@jit()
def interval(limit: tl.tensor, LARGEST: tl.constexpr) -> tl.tensor:
    """Return the first bits and the length, both uint32, of an interval that holds all bits whose key is not above the limit.

    Counted upwards from 0 through 2^31 to 2^32 and on from 0: the negative numbers fall and the others, from 0, rise, so
    what is below a limit is one interval. It may also hold zeros and negative NaN that are above it.
    """
    minus_zero = tl.full([], 0x80000000, tl.uint32)
    all_bits = tl.full([], 0xFFFFFFFF, tl.uint32)
    end = tl.full([], 0xFF800000, tl.uint32)  # the infinity that comes first
    bits = limit.to(tl.uint32, bitcast=True)
    negative = limit < 0
    first = tl.where(negative, bits ^ 0x7FFFFFFF, minus_zero)
    length = tl.where(negative, end - tl.minimum(first, end), bits ^ minus_zero)
    first = tl.where(limit == LAST, 0, first)
    length = tl.where(limit == LAST, all_bits, length)
    if LARGEST:
        first = first ^ minus_zero
    return first, length


@jit()
def passes(x_B: tl.tensor, first: tl.tensor, length: tl.tensor) -> tl.tensor:
    """Whether the bits of x are within the interval: two instructions where keys take seven."""
    return _bits(x_B).to(tl.uint32, bitcast=True) - first <= length


@jit()
def load_row(row_ptr: tl.tensor, valid_ptr: tl.tensor, o_B: tl.tensor, inside_B: tl.tensor, col_stride: tl.tensor,
             LARGEST: tl.constexpr, HAS_VALID: tl.constexpr) -> tl.tensor:  # fmt: skip
    """Return the keys of columns o, and which of them may be chosen."""
    x_B = tl.load(row_ptr + o_B.to(tl.int64) * col_stride, mask=inside_B, other=0.0)
    if HAS_VALID:
        inside_B = inside_B & (tl.load(valid_ptr + o_B, mask=inside_B, other=0) != 0)
    return keys(x_B, LARGEST), inside_B
