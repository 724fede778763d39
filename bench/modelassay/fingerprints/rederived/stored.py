"""A model that was quantised or cast as safetensors, tensor by tensor, against the same made anew of its source."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from modelassay.fingerprints.rederived import scaled
from modelassay.fingerprints.rederived.compare import (
    ABSENT,
    FLOATS,
    OTHER_SHAPE,
    Outcome,
    Way,
    closest,
    is_narrower,
    read_bytes,
    read_source,
    units,
)
from modelassay.fingerprints.rederived.result import Remade
from modelassay.models.checkpoints import config_path
from modelassay.models.checkpoints.architectures import language_config
from modelassay.models.checkpoints.factors import PACKED, SCALES, block_size, is_plain, quantization_of
from modelassay.models.checkpoints.safetensors import TORCH_DTYPES, TensorInfo, read_elements
from modelassay.models.checkpoints.tensors import TensorTable
from modelassay.models.gate import read_json
from modelassay.models.hub import Files


def may_be_quantised(a: TensorTable, b: TensorTable) -> bool:
    """Tell from headers alone whether some tensor of ``b`` is stored in fewer bits than in ``a``, or packed."""
    names = set(b.names())
    return any(
        is_narrower(a.find(name)[1].dtype, b.find(name)[1].dtype)
        if name in names
        else _why_absent(name, names) != ABSENT
        for name in a.names()
    )


def remake_tensors(a: TensorTable, b: TensorTable, files: Files) -> Outcome:
    """Make the tensors of a safetensors model ``b`` anew from those of ``a`` by name; ``files`` are those of ``b``."""
    path = config_path(files)
    config = read_json(path)
    block = block_size(quantization_of(config, language_config(config)[1], str(path)), str(path))
    names, tensors, reasons = set(b.names()), list[Remade](), list[tuple[str, int]]()
    for name in sorted(a.names()):
        source = read_source(a, name)
        if source is None:
            continue
        if name not in names:
            reasons.append((_why_absent(name, names), source.numel()))
            continue
        ways = _ways(source, b, name, block)
        if isinstance(ways, str):
            reasons.append((ways, source.numel()))
        else:
            place = b.find(name)[1]
            tensors.append(
                closest(
                    name,
                    _format(place, b, name),
                    ways,
                    num_weights=source.numel(),
                    is_narrower=is_narrower(a.find(name)[1].dtype, place.dtype),
                )
            )
    return tensors, reasons


def _ways(source: Tensor, b: TensorTable, name: str, block: tuple[int, int] | None) -> Iterable[Way] | str:
    """Return every way to make a tensor anew, or why there is none."""
    info = b.find(name)[1]
    stem = name.removesuffix(".weight")
    absmax, scb = f"{name}.absmax", next((s for s in (f"{stem}.SCB", f"{name}.SCB") if s in b.names()), None)
    if info.dtype in FLOATS and is_plain(b, name, info):
        if tuple(source.shape) != info.shape:
            return OTHER_SHAPE
        return [("cast", [(units(source.to(getattr(torch, TORCH_DTYPES[info.dtype]))), units(_read(b, name)))])]
    if info.dtype == "U8" and absmax in b.names():
        return _nf4_ways(source, b, name)
    if tuple(source.shape) != info.shape or source.ndim != 2:
        return f"{info.dtype} packed in a way that is not known here"
    if info.dtype == "I8" and scb is not None:
        stored, maxima = _read(b, name), _read(b, scb).float().reshape(-1)
        return (
            (way, [(units(codes), units(stored)), (units(made), units(maxima))])
            for way, codes, made in scaled.per_row_int8(source)
        )
    scale = next((stem + suffix for suffix in SCALES if stem + suffix in b.names()), None)
    if (info.dtype == "I8" or info.dtype in scaled.FP8) and scale is not None:
        return _scaled_ways(source, b, name, scale, block)
    return f"{info.dtype} without scales that are known here"


def _scaled_ways(
    source: Tensor, b: TensorTable, name: str, scale: str, block: tuple[int, int] | None
) -> Iterable[Way] | str:
    dtype, stored, scales = b.find(name)[1].dtype, _read(b, name), _read(b, scale)
    (rows, columns), count = source.shape, scales.numel()
    if count == 1:
        shape, block = (1, 1), (rows, columns)
    elif count == rows and (scales.ndim == 1 or scales.shape[1] == 1):
        shape, block = (rows, 1), (1, columns)
    elif (
        block is not None
        and scales.ndim == 2
        and tuple(scales.shape) == (-(-rows // block[0]), -(-columns // block[1]))
    ):
        shape = (scales.shape[0], scales.shape[1])
    else:
        return f"{dtype} with scales of a shape that config.json does not explain"
    return ((way, [(units(codes), units(stored)), (units(made), units(scales))])
            for way, codes, made in scaled.grouped(source, dtype, shape, block, scales.dtype))  # fmt: skip


def _nf4_ways(source: Tensor, b: TensorTable, name: str) -> Iterable[Way] | str:
    if f"{name}.quant_state.bitsandbytes__nf4" not in b.names() or f"{name}.quant_map" not in b.names():
        return "4-bit codes of bitsandbytes that are not NF4"
    levels, stored, absmax = (_read(b, part) for part in (f"{name}.quant_map", name, f"{name}.absmax"))
    state = json.loads(bytes(_read(b, f"{name}.quant_state.bitsandbytes__nf4").numpy()).decode(errors="replace"))
    if levels.numel() != 16 or not isinstance(state, dict) or state.get("blocksize") != scaled.NF4_BLOCK:
        return f"NF4 of other blocks than {scaled.NF4_BLOCK}"
    if stored.numel() != -(-source.numel() // 2):
        return OTHER_SHAPE
    nested = absmax.dtype == torch.uint8  # quantised scales: the codes alone are compared
    return ((f"{way}{', scales not compared' if nested else ''}", [(units(codes), units(stored)), *([] if nested else [(units(made), units(absmax))])])
            for way, codes, made in scaled.nf4(source, levels.float()))  # fmt: skip


def _why_absent(name: str, names: set[str]) -> str:
    stem = name.removesuffix(".weight")
    for suffix, reason in PACKED.items():
        if stem + suffix in names:
            return f"{suffix.rpartition('.')[2]}: {reason}, in a format that is not made again here"
    return ABSENT


def _format(info: TensorInfo, b: TensorTable, name: str) -> str:
    return "NF4" if info.dtype == "U8" and f"{name}.absmax" in b.names() else info.dtype


def _read(table: TensorTable, name: str) -> Tensor:
    path, info = table.find(name)
    if info.dtype in TORCH_DTYPES:
        return read_elements(path, info.dtype, info.offset, math.prod(info.shape)).reshape(info.shape)
    data = torch.from_numpy(read_bytes(path, info.offset, info.size_bytes))
    return data.view(torch.int8).reshape(info.shape) if info.dtype == "I8" else data.reshape(-1)
