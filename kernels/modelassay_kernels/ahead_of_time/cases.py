"""The calls whose machine code is looked at: every op as it is launched at the sizes that DESIGN's marks are for."""

# N = rows, V = size of the vocabulary, D = hidden size or head dimension, T = tangents

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BF16, FP32 = torch.bfloat16, torch.float32
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
VOCABULARY = 151_936  # Qwen2.5
UNALIGNED = 50_257  # GPT-2: no row but each eighth starts at a multiple of 16 bytes

PRODUCTS = {
    "forward_kernel": 2, "tangent_kernel": 5, "backward_q_kernel": 3, "backward_kv_kernel": 4,
    "backward_tangent_q_kernel": 8, "backward_tangent_kv_kernel": 10,
}  # fmt: skip
"""Matrix products of a tile of queries and a tile of keys, 2 N M D flops each."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call."""

    op: str
    label: str
    call: Callable[[], object]
    """Makes its tensors and calls the op's host code; within `pretended_gpu`."""

    quick: bool = False
    """Whether default tests compile it too."""

    def __str__(self) -> str:
        return f"{self.op}, {self.label}"


def _new(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="cuda")


def _layer_std(config: int | None = None) -> Callable[[], None]:
    def call() -> None:
        from modelassay_kernels.layer_std import triton_kernels as op  # noqa: PLC0415
        from modelassay_kernels.layer_std.work_table import FIELDS, WorkTable  # noqa: PLC0415

        rows = _new(300, len(FIELDS), dtype=torch.int64)
        chosen = op.default_config(rows.device) if config is None else op.CONFIGS[config]
        table = WorkTable(rows_TF=rows, tensor_C=_new(10_000, dtype=torch.int32), config=chosen, kept=())
        op.launch(table, _new(10_000, 3, dtype=torch.float64), _new(300, dtype=torch.float64), 1)

    return call


def _bottom_k(dtype: torch.dtype, num_rows: int, num_cols: int, *, masked: bool = False) -> Callable[[], None]:
    def call() -> None:
        from modelassay_kernels.bottom_k.triton_kernels import bottom_k_triton  # noqa: PLC0415

        valid = _new(num_cols, dtype=torch.bool) if masked else None
        bottom_k_triton(_new(num_rows, num_cols, dtype=dtype), 2000, valid=valid)

    return call


def _linear_bottom_k() -> None:
    from modelassay_kernels.bottom_k.linear import GPU_CHUNK  # noqa: PLC0415
    from modelassay_kernels.bottom_k.linear_triton import TritonRunning  # noqa: PLC0415

    rows, cols = GPU_CHUNK
    running = TritonRunning(rows, 2000, cols, False, torch.device("cuda"))
    running.fold(_new(rows, cols, dtype=FP32), 0, None)
    running.finish(_new(rows, 2000, dtype=FP32), _new(rows, 2000, dtype=torch.int64))


def _softmax_ggn(dtype: torch.dtype, num_cols: int = VOCABULARY) -> Callable[[], None]:
    def call() -> None:
        from modelassay_kernels.softmax_ggn.triton_kernels import softmax_ggn_triton  # noqa: PLC0415

        softmax_ggn_triton(_new(8192, num_cols, dtype=dtype), _new(8192, num_cols, dtype=dtype))

    return call


def _cross_entropy(softcap: float | None) -> Callable[[], None]:
    def call() -> None:
        from modelassay_kernels.cross_entropy.rows import Spec  # noqa: PLC0415
        from modelassay_kernels.cross_entropy.triton_kernels import tangents_  # noqa: PLC0415

        labels, g, gt = _new(512, dtype=torch.int64), _new(512, dtype=FP32), _new(1, 512, dtype=FP32)
        spec = Spec(softcap=softcap, label_smoothing=0.0, z_loss=0.0)
        tangents_(_new(512, VOCABULARY, dtype=FP32), _new(1, 512, VOCABULARY, dtype=FP32), labels, g, gt, spec)

    return call


def _attention(name: str, dtype: torch.dtype, head_dim: int, softcap: float | None) -> Callable[[], None]:
    """Llama-3.1-8B's heads at 4,096 positions."""

    def call() -> None:
        from modelassay_kernels.attention import triton_launch as op  # noqa: PLC0415

        q, k = _new(1, 32, 4096, head_dim, dtype=dtype), _new(1, 8, 4096, head_dim, dtype=dtype)
        spans, lse = _new(1, 2, 4096, dtype=torch.int32), _new(1, 32, 4096, dtype=FP32)
        scale, q_dot, k_dot, lse_dot = head_dim**-0.5, q[None], k[None], lse[None]
        if name == "forward":
            op.forward(q, k, k, spans, scale, softcap)
        elif name == "backward":
            op.backward(q, k, k, spans, q, lse, q, scale, softcap)
        elif name == "tangent":
            op.tangent(q, k, k, spans, q, lse, q_dot, k_dot, k_dot, scale, softcap)
        else:
            dots = (q_dot, k_dot, k_dot, q_dot, lse_dot, q_dot)
            op.backward_tangent(q, k, k, spans, q, lse, q, *dots, scale, softcap)

    return call


PASSES = ("forward", "tangent", "backward", "backward_tangent")


def _bottom_k_case(dtype: torch.dtype, num_cols: int, *, masked: bool = False, quick: bool = False) -> Case:
    label = f"8192 x {num_cols}, {NAMES[dtype]}{', masked' if masked else ''}"
    return Case(op="bottom_k", label=label, call=_bottom_k(dtype, 8192, num_cols, masked=masked), quick=quick)


def _attention_cases(dtype: torch.dtype, head_dim: int, softcap: float | None = None) -> list[Case]:
    label = f"D = {head_dim}, {NAMES[dtype]}{'' if softcap is None else ', soft cap'}"
    return [
        Case(
            op="attention", label=label, call=_attention(name, dtype, head_dim, softcap),
            quick=(dtype, head_dim, name) == (BF16, 64, "forward"),
        )
        for name in PASSES
    ]  # fmt: skip


CASES = (
    Case(op="layer_std", label="300 tensors", call=_layer_std(), quick=True),
    _bottom_k_case(BF16, VOCABULARY, quick=True),
    _bottom_k_case(FP32, VOCABULARY),
    _bottom_k_case(BF16, UNALIGNED),
    Case(op="linear_bottom_k", label="one chunk", call=_linear_bottom_k),
    Case(op="softmax_ggn", label=f"8192 x {VOCABULARY}, bf16", call=_softmax_ggn(BF16), quick=True),
    Case(op="softmax_ggn", label=f"8192 x {VOCABULARY}, fp32", call=_softmax_ggn(FP32)),
    Case(op="cross_entropy", label="one tangent", call=_cross_entropy(None), quick=True),
    *_attention_cases(BF16, 64),
    *_attention_cases(BF16, 128),
    *_attention_cases(FP32, 128),
)
"""Those of `kernels/RESOURCES.md`."""

MORE_CASES = (
    *(Case(op="layer_std", label=f"300 tensors, configuration {i}", call=_layer_std(i)) for i in range(3)),
    Case(op="softmax_ggn", label="8192 x 4096, fp16", call=_softmax_ggn(torch.float16, 4096)),  # one split
    _bottom_k_case(torch.float16, VOCABULARY),
    _bottom_k_case(BF16, VOCABULARY, masked=True),
    _bottom_k_case(FP32, UNALIGNED, masked=True),
    Case(op="cross_entropy", label="one tangent, soft cap", call=_cross_entropy(30.0)),
    *_attention_cases(BF16, 32),
    *_attention_cases(BF16, 256, 50.0),
    *_attention_cases(FP32, 32),
    *_attention_cases(FP32, 64, 50.0),
)
"""Those that are only tested."""
