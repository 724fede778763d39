"""layer_std for a runner: the matrices of a model's layers."""

# T is the number of tensors

from __future__ import annotations

import torch
from torch import Tensor

from modelassay_kernels.benchmarking.workload import Provider, Sizes, Tensors, Workload, compiled, normal, some
from modelassay_kernels.layer_std import layer_std
from modelassay_kernels.layer_std.reference import layer_std_reference
from modelassay_kernels.layer_std.work import layer_std_work


def shapes_of(sizes: Sizes, max_bytes: int, itemsize: int) -> list[tuple[int, int]]:
    """Return the matrices of as many layers as fit into ``max_bytes``, of less than one its first matrices, at least one."""
    heads, kv_heads = (count * sizes.head_dim for count in (sizes.heads, sizes.kv_heads))
    hidden, wide = sizes.hidden, sizes.intermediate
    layer = [(heads, hidden), (kv_heads, hidden), (kv_heads, hidden), (hidden, heads), (wide, hidden), (wide, hidden)]
    shapes: list[tuple[int, int]] = []
    left = max_bytes // itemsize
    for shape in [*layer, (hidden, wide)] * sizes.layers:
        left -= shape[0] * shape[1]
        if shapes and left < 0:
            break
        shapes.append(shape)
    return shapes


def eager(*tensors: Tensor) -> Tensor:
    """Take each tensor's deviation in float32, as one writes it."""
    return torch.stack([tensor.float().std() for tensor in tensors])


def eager_narrow(*tensors: Tensor) -> Tensor:
    """Take each tensor's deviation in its own type."""
    return torch.stack([tensor.std() for tensor in tensors])


def workload(sizes: Sizes, max_bytes: int, dtype: torch.dtype, device: str) -> Workload:
    """Return the deviations of all matrices of up to ``max_bytes`` of a model."""
    shapes = shapes_of(sizes, max_bytes, dtype.itemsize)
    counts = [rows * cols for rows, cols in shapes]

    def fill(seed: int) -> Tensors:
        all_E = normal(seed, device, dtype, sum(counts), scale=0.02)
        return tuple(part.view(shape) for part, shape in zip(torch.split(all_E, counts), shapes, strict=True))

    def check(inputs: Tensors, std_T: Tensor, seed: int, loose: float) -> None:
        if std_T.shape != (len(shapes),):
            raise AssertionError(
                f"one number for each of {len(shapes)} tensors is due, the result is {tuple(std_T.shape)}"
            )
        chosen = some(len(shapes), 3, seed)
        expected = layer_std_reference([inputs[i] for i in chosen]).cpu()
        torch.testing.assert_close(std_T.cpu().double()[chosen], expected, rtol=1e-6 * loose, atol=0.0)

    providers = {
        "modelassay": Provider(load=lambda: lambda *tensors: layer_std(tensors)),
        "torch": Provider(load=lambda: eager, loose=100),
        "torch narrow": Provider(load=lambda: eager_narrow, loose=1e4),  # rounds its result to the type
        "torch.compile": Provider(load=compiled(eager, device).load, loose=100),
    }
    meta = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
    return Workload(operation="layer_std", sizes={"tensors": len(shapes), "elements": sum(counts)}, fill=fill, check=check,
                    work=layer_std_work(meta), providers=providers)  # fmt: skip
