"""How each quantiser stores a weight: told by the names that stand beside it, by dtypes and by shapes, and decoded by `unpack`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from modelassay.errors import printable
from modelassay.models.checkpoints import unpack
from modelassay.models.checkpoints.factors import block_size, divided
from modelassay.models.checkpoints.module import FLOATS, Decoded, Module
from modelassay.models.gate import one_line, shown

if TYPE_CHECKING:
    from torch import Tensor

_FP8: Final = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_BITS: Final = (2, 4, 8)


def _gptq_or_awq(module: Module) -> Decoded | None:
    if not module.has(".qweight", ".qzeros", ".scales"):
        return None
    stored, outputs = module.matrix(".qweight", ("I32",)), module.matrix(".scales", FLOATS)[1]
    return _gptq(module, stored, outputs) if stored[1] == outputs else _awq(module, stored, outputs)


def _gptq(module: Module, stored: tuple[int, int], outputs: int) -> Decoded:
    bits = _bits(module, ".qzeros", outputs)
    inputs, groups = stored[0] * 32 // bits, module.info(".scales").shape[0]
    zero = 0 if module.quantization.get("checkpoint_format") == "gptq_v2" else 1
    if module.has(".g_idx") and module.info(".g_idx").shape != (inputs,):
        raise module.fault(
            ".g_idx", f"expected a group for each of {inputs} inputs, got {shown(list(module.info('.g_idx').shape))}"
        )
    if inputs % groups or module.info(".qzeros").shape[0] != groups:
        raise module.fault(
            ".scales", f"{groups} groups of {inputs} inputs with {module.info('.qzeros').shape[0]} rows of zero points"
        )

    def make(first: int, last: int) -> Tensor:
        import torch

        index = module.read(".g_idx").long() if module.has(".g_idx") else torch.arange(inputs) // (inputs // groups)
        if int(index.min()) < 0 or int(index.max()) >= groups:
            raise module.fault(".g_idx", f"names a group beyond the {groups} that have scales")
        weights, zeros, scales = (module.read(suffix) for suffix in (".qweight", ".qzeros", ".scales"))
        return unpack.gptq(weights, zeros, scales, index, bits=bits, zero=zero)

    return Decoded(
        shape=(outputs, inputs), parts=module.names(".qweight", ".qzeros", ".scales", ".g_idx"), units=1, make=make
    )


def _awq(module: Module, stored: tuple[int, int], outputs: int) -> Decoded:
    inputs, groups = stored[0], module.info(".scales").shape[0]
    zeros = module.info(".qzeros").shape
    if stored[1] * 8 != outputs or zeros != (groups, stored[1]) or not groups or inputs % groups:
        raise module.fault(
            ".qweight",
            f"{shown(list(stored))} with scales of {shown(list(module.info('.scales').shape))} are not AWQ's 4 bits",
        )
    return Decoded(
        shape=(outputs, inputs), parts=module.names(".qweight", ".qzeros", ".scales"), units=1,
        make=lambda first, last: unpack.awq(module.read(".qweight"), module.read(".qzeros"), module.read(".scales")),
    )  # fmt: skip


def _bits(module: Module, zeros: str, outputs: int) -> int:
    columns = module.matrix(zeros, ("I32",))[1]
    bits = 32 * columns // outputs if outputs and 32 * columns % outputs == 0 else 0
    if bits not in _BITS:
        raise module.fault(zeros, f"GPTQ of {module.quantization.get('bits', 'other')} bits, of which {_BITS} are read")
    return bits


def _compressed(module: Module) -> Decoded | None:
    """Decode what compressed-tensors packed."""
    if not module.has(".weight_packed", ".weight_scale"):
        return None
    if module.info(".weight_packed").dtype == "U8":
        return _fp4(module, ".weight_packed", ".weight_global_scale", divides=True)
    (rows, packed), (_, columns) = module.matrix(".weight_packed", ("I32",)), _stated_shape(module)
    per_word = -(-columns // packed) if packed else 0
    bits = next((bits for bits in _BITS if 32 // bits >= per_word and -(-columns // (32 // bits)) == packed), None)
    if bits is None:
        raise module.fault(".weight_packed", f"{packed} integers for {columns} columns are not of {_BITS} bits")
    groups = module.groups(".weight_scale", rows, columns)
    width, zero_name, index_name = bits, ".weight_zero_point", ".weight_g_idx"

    def make(first: int, last: int) -> Tensor:
        import torch

        codes = unpack.integers(module.read(".weight_packed", first, last), width, dim=1)[:, :columns] - 2 ** (
            width - 1
        )
        scales = module.read(".weight_scale", first, last).float().reshape(last - first, groups)
        index = torch.arange(columns) // (columns // groups)
        if module.has(index_name) and int(module.read(index_name).min()) >= 0:
            index = module.read(index_name).long()
            if index.shape != (columns,) or int(index.max()) >= groups:
                raise module.fault(index_name, f"names a group beyond the {groups} that have scales")
        zeros = torch.zeros(last - first, groups, dtype=torch.int64)
        if module.has(zero_name):
            stored = module.read(zero_name)
            if stored.dtype == torch.int32:
                stored = unpack.integers(stored, width, dim=0)[:rows] - 2 ** (width - 1)
            zeros = stored.reshape(rows, groups)[first:last].long()
        values: Tensor = (codes - zeros[:, index]).float() * scales[:, index]
        return values

    return Decoded(
        shape=(rows, columns), units=rows, make=make,
        parts=module.names(".weight_packed", ".weight_scale", ".weight_shape", zero_name, index_name),
    )  # fmt: skip


def _stated_shape(module: Module) -> tuple[int, int]:
    if not module.has(".weight_shape") or module.info(".weight_shape").shape != (2,):
        raise module.fault(".weight_packed", "no weight_shape beside it tells how many columns it has")
    rows, columns = (int(value) for value in module.read(".weight_shape").tolist())
    if rows != module.info(".weight_packed").shape[0] or not 0 < columns < 2**31:
        raise module.fault(
            ".weight_shape",
            f"[{rows}, {columns}] is not that of {shown(list(module.info('.weight_packed').shape))} integers",
        )
    return rows, columns


def _fp4(module: Module, stored: str, whole: str, *, divides: bool) -> Decoded | None:
    """Decode NVFP4, of groups of 16 with fp8 scales and one of all, or MXFP4, of groups of 32 with exponents."""
    rows, half = module.matrix(stored, ("U8",))
    columns, scale = 2 * half, module.info(".weight_scale")
    if scale.dtype == "F8_E4M3" and module.has(whole):
        groups = module.groups(".weight_scale", rows, columns, ("F8_E4M3",))
        if math.prod(module.info(whole).shape) != 1:
            raise module.fault(whole, "expected one number")
    elif scale.dtype in {"U8", "F8_E8M0"} and not module.has(whole):
        groups = module.groups(".weight_scale", rows, columns, ("U8", "F8_E8M0"))
    else:
        return None
    if columns // groups not in {16, 32}:
        raise module.fault(
            ".weight_scale", f"groups of {columns // groups} columns; NVFP4 has groups of 16, MXFP4 of 32"
        )

    def make(first: int, last: int) -> Tensor:
        scales = module.read(".weight_scale", first, last)
        factors = (
            unpack.exponents(scales)
            if scales.element_size() == 1 and not scales.is_floating_point()
            else scales.float()
        )
        if module.has(whole):
            one = module.read(whole).float().reshape(())
            factors = factors / one if divides else factors * one
        return unpack.by_group(unpack.fp4(module.read(stored, first, last)), factors)

    return Decoded(shape=(rows, columns), parts=module.names(stored, ".weight_scale", whole), units=rows, make=make)


def _nvfp4(module: Module) -> Decoded | None:
    if module.has(".weight", ".weight_scale", ".weight_scale_2") and module.info(".weight").dtype == "U8":
        return _fp4(module, ".weight", ".weight_scale_2", divides=False)
    return None


def _bitsandbytes(module: Module) -> Decoded | None:
    scb = next((suffix for suffix in (".SCB", ".weight.SCB") if module.has(suffix)), None)
    if module.has(".weight") and scb is not None and module.info(".weight").dtype == "I8":
        rows, columns = module.matrix(".weight", ("I8",))
        if module.info(scb).shape not in {(rows,), (rows, 1)}:
            raise module.fault(scb, f"expected the largest weight of each of {rows} rows")
        return Decoded(
            shape=(rows, columns), parts=module.names(".weight", scb, ".weight_format", ".weight.weight_format"), units=rows,
            make=lambda first, last: module.read(".weight", first, last).float() * (module.read(scb).float().reshape(-1)[first:last, None] / 127),
        )  # fmt: skip
    if module.has(".weight", ".weight.absmax", ".weight.quant_map") and module.info(".weight").dtype == "U8":
        return _four_bits(module)
    return None


_STATES: Final = (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4")


def _four_bits(module: Module) -> Decoded:
    suffix = next((suffix for suffix in _STATES if module.has(suffix)), None)
    if suffix is None:
        raise module.fault(".weight", f"no {' or '.join(_STATES)} beside it tells its shape")
    try:
        state = json.loads(bytes(module.read(suffix).tolist()))
        rows, columns = state["shape"]
        block, inner, offset = state["blocksize"], state.get("nested_blocksize", 256), state.get("nested_offset", 0.0)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise module.fault(suffix, "expected JSON with shape and blocksize") from None
    if not all(type(value) is int and 0 < value < 2**31 for value in (rows, columns, block, inner)) or not isinstance(
        offset, int | float
    ):
        raise module.fault(suffix, f"expected whole numbers above 0 as shape and blocks, got {shown(state)}")
    count, num_blocks = rows * columns, -(-rows * columns // block)
    if math.prod(module.info(".weight").shape) != -(-count // 2) or module.info(".weight.absmax").shape != (
        num_blocks,
    ):
        raise module.fault(".weight", f"{module.info('.weight').size_bytes} bytes and {shown(list(module.info('.weight.absmax').shape))} blocks do not hold "
                           f"[{rows}, {columns}] in blocks of {block}")  # fmt: skip
    is_nested = module.info(".weight.absmax").dtype == "U8"

    def make(first: int, last: int) -> Tensor:
        absmax = module.read(".weight.absmax")
        if is_nested:
            absmax = unpack.nested(
                absmax,
                module.read(".weight.nested_quant_map"),
                module.read(".weight.nested_absmax"),
                offset,
                block=inner,
            )
        return unpack.nf4(
            module.read(".weight"), module.read(".weight.quant_map"), absmax.float(), block=block, shape=(rows, columns)
        )

    more = (".weight.nested_absmax", ".weight.nested_quant_map")
    if is_nested and not module.has(*more):
        raise module.fault(".weight.absmax", f"no {' and '.join(more)} beside it")
    return Decoded(
        shape=(rows, columns),
        units=1,
        make=make,
        parts=module.names(".weight", ".weight.absmax", ".weight.quant_map", suffix, *more),
    )


def _mlx(module: Module) -> Decoded | None:
    if not module.has(".weight", ".scales", ".biases") or module.info(".weight").dtype != "U32":
        return None
    rows, words = module.matrix(".weight", ("U32",))
    groups = module.matrix(".scales", FLOATS)[1]
    own = module.quantization.get(module.stem)
    stated = own if isinstance(own, dict) else module.quantization
    size, bits = stated.get("group_size"), stated.get("bits")
    if (
        type(size) is not int
        or bits not in _BITS
        or size * groups * bits != 32 * words
        or module.info(".biases").shape != (rows, groups)
    ):
        raise module.fault(
            ".weight", f"MLX of {words} integers and {groups} groups a row, for which config.json says group_size {shown(size)} and bits {shown(bits)}; "
            f"of {_BITS} bits are read"
        )  # fmt: skip
    width, columns = bits, size * groups
    module.groups(".scales", rows, columns)

    def make(first: int, last: int) -> Tensor:
        codes = unpack.integers(module.read(".weight", first, last), width, dim=1).float()
        scales, biases = (module.read(suffix, first, last).float() for suffix in (".scales", ".biases"))
        return unpack.by_group(codes, scales) + biases.repeat_interleave(columns // groups, 1)

    return Decoded(shape=(rows, columns), parts=module.names(".weight", ".scales", ".biases"), units=rows, make=make)


def _experts(module: Module) -> Decoded | None:
    """Decode MXFP4 of all experts in one tensor, as gpt-oss has them: [experts, outputs, groups, 16] bytes for [experts, inputs, outputs]."""
    if not module.has("_blocks", "_scales"):
        return None
    blocks, scales = module.info("_blocks"), module.info("_scales")
    if (
        len(blocks.shape) != 4
        or blocks.dtype != "U8"
        or blocks.shape[3] != 16
        or scales.shape != blocks.shape[:3]
        or scales.dtype != "U8"
    ):
        raise module.fault(
            "_blocks",
            f"{blocks.dtype} {shown(list(blocks.shape))} with {scales.dtype} {shown(list(scales.shape))} are not MXFP4",
        )
    experts, outputs, groups, _ = blocks.shape

    def make(first: int, last: int) -> Tensor:
        values = (
            unpack.fp4(module.read("_blocks", first, last))
            * unpack.exponents(module.read("_scales", first, last))[..., None]
        )
        return values.reshape(last - first, outputs, groups * 32).transpose(1, 2).contiguous()

    return Decoded(
        shape=(experts, groups * 32, outputs), parts=module.names("_blocks", "_scales"), units=experts, make=make
    )


def _integers(module: Module) -> Decoded | None:
    """Decode integers of 8 bits with a scale for all, each row or group (compressed-tensors, SmoothQuant and others)."""
    if not module.has(".weight", ".weight_scale") or module.info(".weight").dtype != "I8":
        return None
    rows, columns = module.matrix(".weight", ("I8",))
    zero = ".weight_zero_point"
    one = math.prod(module.info(".weight_scale").shape) == 1
    groups = 1 if one else module.groups(".weight_scale", rows, columns)
    if module.has(zero) and module.info(zero).dtype != "I8":
        return None

    def make(first: int, last: int) -> Tensor:
        def of_rows(suffix: str) -> Tensor:
            values = module.read(suffix).float()
            return values.reshape(1, 1).expand(last - first, 1) if one else values.reshape(rows, groups)[first:last]

        values = module.read(".weight", first, last).float()
        if module.has(zero):
            values = values - of_rows(zero).repeat_interleave(columns // groups, 1)
        return unpack.by_group(values, of_rows(".weight_scale"))

    return Decoded(shape=(rows, columns), parts=module.names(".weight", ".weight_scale", zero), units=rows, make=make)


_SCALES: Final = (".weight_scale_inv", ".weight_scale", ".scale", ".scale_weight")


def _fp8(module: Module) -> Decoded | None:
    """Decode fp8 whose scales are exponents, or that has other names than transformers' (`factors` reads those in place)."""
    if not module.has(".weight") or module.info(".weight").dtype not in _FP8 or len(module.info(".weight").shape) != 2:
        return None
    found = [suffix for suffix in _SCALES if module.has(suffix)]
    plain = module.info(".weight").dtype in {"F8_E4M3", "F8_E5M2"}
    if len(found) != 1 or (plain and found[0] in _SCALES[:2] and module.info(found[0]).dtype in FLOATS):
        return None
    suffix, (rows, columns) = found[0], module.matrix(".weight", _FP8)
    info = module.info(suffix)
    if info.dtype not in {*FLOATS, "F8_E8M0", "U8"} or not info.size_bytes:
        raise module.fault(suffix, f"{info.dtype} {shown(list(info.shape))} are no scales of fp8 weights")
    place = module.place(suffix)
    block = block_size(module.quantization, str(place.parent / "config.json"))
    if block is None and info.dtype in {"U8", "F8_E8M0"} and info.shape == (rows, columns // 32):
        block = (1, 32)

    def make(first: int, last: int) -> Tensor:
        stored = module.read(suffix)
        scale = unpack.exponents(stored) if info.dtype in {"U8", "F8_E8M0"} else stored.float()
        scale_rc = divided(f"{one_line(place)}: {printable(module.stem + suffix)}", scale, (rows, columns), block)
        of_rows = scale_rc.repeat_interleave(rows // scale_rc.shape[0], 0)[first:last]
        return unpack.by_group(module.read(".weight", first, last).float(), of_rows)

    return Decoded(shape=(rows, columns), parts=module.names(".weight", suffix), units=rows, make=make)


FORMATS: Final[tuple[tuple[str, str, Callable[[Module], Decoded | None]], ...]] = (
    (".qweight", "GPTQ or AWQ", _gptq_or_awq), (".weight_packed", "compressed-tensors", _compressed), (".weight_scale_2", "NVFP4", _nvfp4),
    (".weight.absmax", "bitsandbytes 4 bit", _bitsandbytes), (".SCB", "bitsandbytes 8 bit", _bitsandbytes),
    (".weight.SCB", "bitsandbytes 8 bit", _bitsandbytes), (".biases", "MLX", _mlx), ("_blocks", "MXFP4", _experts),
    (".weight_scale", "8-bit integers", _integers), (".weight_scale", "fp8", _fp8), (".weight_scale_inv", "fp8", _fp8),
    (".scale", "fp8", _fp8), (".scale_weight", "fp8", _fp8),
)  # fmt: skip
"""What gives a format away beside a module, its name, and how it is decoded."""

SHAPES: Final = (".weight_shape", *_STATES)
"""What tells the shape of a packed weight."""
