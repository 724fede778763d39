"""What stored weights are multiplied by, and what is no weight at all: a factor is applied, or the tensor is refused.

A quantiser leaves beside each module's weight what its numbers mean: scales, zero points, codebooks. Formats are told by
these companions' names and by the weight's own dtype. What is understood is fp8 with one scale per tensor, row, column or
stated block; everything else is refused by its name before a number is computed.
"""

# R = rows and C = columns of a weight, r, c = of its scale

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modelassay.errors import CheckpointError, printable
from modelassay.models.checkpoints.safetensors import TensorInfo, read_elements
from modelassay.models.gate import one_line, section, shown

if TYPE_CHECKING:
    from torch import Tensor

    from modelassay.models.checkpoints.tensors import TensorTable

PACKED: Final[Mapping[str, str]] = {
    ".qweight": "GPTQ or AWQ packs several weights into one integer",
    ".weight_packed": "compressed-tensors packs several weights into one integer",
    ".weight.absmax": "bitsandbytes packs two 4-bit weights into one byte",
    ".weight.quant_map": "bitsandbytes packs two 4-bit weights into one byte",
    ".SCB": "bitsandbytes stores 8-bit integers with a scale per row",
    ".weight.SCB": "bitsandbytes stores 8-bit integers with a scale per row",
    ".weight_blocks": "MXFP4 packs two 4-bit weights into one byte",
    "_blocks": "MXFP4 packs two 4-bit weights into one byte",
    ".weight_scale_2": "NVFP4 packs two 4-bit weights into one byte, with scales of scales",
    ".W_q": "HQQ packs several weights into one integer",
    ".q_weight": "ExLlamaV2 packs several weights into one integer",
    ".codes": "AQLM stores numbers of entries in codebooks",
    ".dense_weights": "SpQR packs several weights into one integer",
    ".weight._data": "quanto stores integers with scales",
    ".weight_scales": "EETQ stores 8-bit integers with a scale per column",
}
"""Tensors that give away a module whose weights are not stored as numbers, and what was done to it."""

SCALES: Final = (".weight_scale_inv", ".weight_scale")
"""Names of what stored fp8 values are multiplied by, despite the first one's `inv`."""

_FACTOR = re.compile(
    r"scale|zero|absmax|scb|quant|codebook|codes$|[._]lut|magnitude|lora_|amax|(^|[._])weight_[gvu]$", re.IGNORECASE
)
_OF_ACTIVATIONS = re.compile(
    r"[._](input|output|act|activation|[qkv]|kv|kv_cache|attn|prob)_?(global_)?(scale|zero_point|amax)(_inv|s)?$"
)
"""What inputs and outputs are multiplied by, which leaves the weights what they are."""
_STORED = {
    **dict.fromkeys(["I8"], "8-bit integers"),
    **dict.fromkeys(["U8", "BOOL"], "bytes, two 4-bit weights in each as a rule (NF4, FP4, MXFP4)"),
    **dict.fromkeys(["I32", "U32", "I64", "U64", "I16", "U16"], "integers, several weights in each as a rule (GPTQ, AWQ)"),
    **dict.fromkeys(["F4", "F6_E2M3", "F6_E3M2"], "floats of less than a byte (MXFP4, MXFP6)"),
    **dict.fromkeys(["F8_E8M0"], "exponents, which are scales"),
    **dict.fromkeys(["F8_E4M3FNUZ", "F8_E5M2FNUZ"], "fp8 of another form"),
    "C64": "complex numbers",
}  # fmt: skip
_REMEDY: Final = "open the model it was quantised from, or save a dequantised copy"


def refuse_packed(where: str, stem: str, names: Collection[str]) -> None:
    """Refuse the module ``stem`` if a quantiser packed its weights.

    Raises:
        CheckpointError: by which, and what to do.
    """
    for suffix, reason in PACKED.items():
        if stem + suffix in names:
            raise CheckpointError(
                f"{one_line(where)}: {printable(stem + suffix)}: {reason}, so that the stored numbers are no weights; {_REMEDY}"
            )


def refuse_stored(where: str, info: TensorInfo, quantization: Mapping[str, Any]) -> CheckpointError:
    """Return what is said of a weight whose dtype holds no plain numbers."""
    method = quantization.get("quant_method")
    said = f"config.json says {shown(method)}" if method is not None else "config.json does not say of which quantiser"
    return CheckpointError(
        f"{where}: {info.dtype} holds no plain weights: {_STORED.get(info.dtype, 'numbers of another kind')} ({said}); {_REMEDY}"
    )


def factors_of(tensors: TensorTable, stem: str) -> list[str]:
    """Return the companions of the module ``stem`` that may say what its weights are multiplied by, or what else they mean."""
    return [
        name
        for name in tensors.companions(stem)
        if _FACTOR.search(rest := name.removeprefix(stem)) and not _OF_ACTIVATIONS.search(rest)
    ]


def is_factor(name: str) -> bool:
    """Return whether a tensor's name says that weights are multiplied by it.

    >>> [is_factor(n) for n in ("q_proj.weight_scale_inv", "q_proj.scale_weight", "q_proj.input_scale", "q_proj.weight")]
    [True, True, False, False]
    """
    return _FACTOR.search(name.rpartition(".")[2]) is not None and not _OF_ACTIVATIONS.search("." + name)


def is_plain(tensors: TensorTable, name: str, info: TensorInfo) -> bool:
    """Return whether the numbers stored under ``name`` are what they stand for: whole floats that nothing multiplies."""
    return info.dtype in {"BF16", "F16", "F32", "F64"} and not factors_of(tensors, name.removesuffix(".weight"))


def read_scale(
    tensors: TensorTable, name: str, info: TensorInfo, quantization: Mapping[str, Any], *, cut: bool
) -> Tensor | None:
    """Return what the fp8 values of tensor ``name`` are multiplied by, fp32 [r, c] whose extents divide [R, C]; None for floats.

    ``cut`` is for a tensor that other roles share in columns or by turns, of which no scale is read.

    Raises:
        CheckpointError: fp8 without a scale, a scale that fits neither the shape nor a stated block, or any factor that
            would not be applied.
    """
    path, stem = tensors.find(name)[0], name.removesuffix(".weight")
    where, factors = f"{one_line(path)}: {printable(name)}", factors_of(tensors, stem)
    scales = [stem + suffix for suffix in SCALES if stem + suffix in factors] if info.dtype.startswith("F8_") else []
    if others := [factor for factor in factors if factor not in scales[:1]]:
        raise CheckpointError(
            f"{where}: {printable(others[0])} says what the stored {info.dtype} numbers are multiplied by or changed with, and "
            f"nothing here applies it; {_REMEDY}"
        )
    if not info.dtype.startswith("F8_"):
        return None
    if not scales:
        method = f"; config.json says {shown(dict(quantization))}" if quantization else ""
        raise CheckpointError(
            f"{where}: fp8 without {' or '.join(SCALES)}: nothing says what its numbers are multiplied by{method}; "
            "open the model it was quantised from, or save a copy in bfloat16"
        )
    path, scale_info = tensors.find(scales[0])
    where = f"{one_line(path)}: {printable(scales[0])}"
    if scale_info.dtype not in {"F32", "BF16", "F16"} or cut:
        raise CheckpointError(
            f"{where}: {scale_info.dtype} scales of {'a tensor that q, k and v share' if cut else 'fp8 weights'} cannot be read; "
            f"{_REMEDY}"
        )
    return divided(
        where, _read(path, scale_info), info.shape, block_size(quantization, str(path.parent / "config.json"))
    )


def _read(path: Path, info: TensorInfo) -> Tensor:
    return read_elements(path, info.dtype, info.offset, math.prod(info.shape)).float().reshape(info.shape)


def divided(where: str, scale: Tensor, shape: tuple[int, ...], block: tuple[int, int] | None) -> Tensor:
    """Return scales [r, c] whose numbers divide R and C, repeated where the last block is not full."""
    if scale.numel() == 1:
        return scale.reshape(1, 1)
    counts = tuple(scale.shape) if scale.ndim == 2 else (scale.numel(), 1) if scale.ndim == 1 else None
    if counts is None or not scale.numel() or len(shape) != 2:
        raise CheckpointError(
            f"{where}: scales of shape {list(scale.shape)} for weights of shape {list(shape)}; expected one per tensor, row or block"
        )
    scale_rc = scale.reshape(counts)
    if counts in {(shape[0], 1), (1, shape[1]), shape}:
        return scale_rc
    if block is not None and counts == (-(-shape[0] // block[0]), -(-shape[1] // block[1])):
        for axis, (extent, count) in enumerate(zip(shape, counts, strict=True)):
            if count not in {1, extent} and count * block[axis] != extent:
                scale_rc = scale_rc.repeat_interleave(block[axis], axis).narrow(axis, 0, extent)
        return scale_rc
    raise CheckpointError(
        f"{where}: {counts[0]} scales for {shape[0]} rows and {counts[1]} for {shape[1]} columns in blocks of {block}; "
        f"expected one per tensor, row, or block of config.json's weight_block_size"
    )


def block_size(quantization: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    """Return rows and columns of a scale's block: `weight_block_size`, or compressed-tensors' `block_structure`; None if unstated.

    >>> block_size({"quant_method": "fp8", "weight_block_size": [128, 128]}, "config.json")
    (128, 128)

    Raises:
        CheckpointError: it is stated as anything but two whole numbers above 0, or as several.
    """
    stated = [quantization.get("weight_block_size")]
    groups = section(quantization, "config_groups", f"{where}: quantization_config")
    for key in groups:
        weights = section(section(groups, key, f"{where}: config_groups"), "weights", f"{where}: config_groups: {key}")
        stated.append(weights.get("block_structure"))
    blocks = {_block(value, where) for value in stated if value is not None}
    if len(blocks) > 1:
        raise CheckpointError(
            f"{one_line(where)}: blocks of {' and of '.join(map(str, sorted(blocks)))} are stated, and not for which weights; {_REMEDY}"
        )
    return next(iter(blocks), None)


def _block(value: Any, where: str) -> tuple[int, int]:
    match value:
        case [rows, columns] if type(rows) is type(columns) is int and rows > 0 and columns > 0:
            return rows, columns
    raise CheckpointError(
        f"{one_line(where)}: weight_block_size: expected two whole numbers above 0, got {shown(value)}; take config.json from the "
        "model's author"
    )


def quantization_of(config: Mapping[str, Any], own: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return config.json's section on quantisation, or an empty one.

    Raises:
        CheckpointError: it is no mapping.
    """
    keys = ("quantization_config", "compression_config")
    sections = [section(part, key, where) for part in (own, config) for key in keys]
    sections += [value for part in (own, config) if isinstance(value := part.get("quantization"), dict)]  # MLX
    return next((value for value in sections if value), {})


UNREAD: Final[Mapping[str, str]] = {
    "hqq": "HQQ", "exl2": "ExLlamaV2", "exl3": "ExLlamaV3", "aqlm": "AQLM", "spqr": "SpQR", "quip": "QuIP#", "quip_sharp": "QuIP#",
    "quanto": "quanto", "eetq": "EETQ", "vptq": "VPTQ", "higgs": "HIGGS", "bitnet": "BitNet", "torchao": "torchao", "fp_quant": "FP-Quant",
    "quark": "Quark", "sinq": "SINQ", "autobitlinear": "BitNet", "metal": "Metal's kernels", "squeezellm": "SqueezeLLM", "marlin": "Marlin",
}  # fmt: skip
"""What config.json calls quantisers whose numbers nothing here decodes, and their names."""


def refuse_method(quantization: Mapping[str, Any], where: str) -> None:
    """Refuse a model of a quantiser that nothing here decodes, by what config.json says: before any weight is fetched.

    Raises:
        CheckpointError: by its name, and what to do.
    """
    method = quantization.get("quant_method")
    if isinstance(method, str) and method.lower() in UNREAD:
        raise CheckpointError(
            f"{one_line(where)}: quantised by {UNREAD[method.lower()]} (quant_method {shown(method)}), whose numbers are not decoded here; {_REMEDY}"
        )
