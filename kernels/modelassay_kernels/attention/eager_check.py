"""Whether the attention of a module is the one computed here: its own eager function is asked, once for each module.

A module can hide in itself what it never passes on: sinks, a bias, another softmax. Its eager function, which is what
transformers falls back to, then gives other numbers on any input, so one of three positions tells.
"""

# H = query heads, K = key-value heads, P = 3 positions, D = head dimension

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from modelassay_kernels.attention.reference import attention_reference
from modelassay_kernels.attention.span_mask import refuse
from modelassay_kernels.attention.spans import make_spans, visible

POSITIONS = 3
TOLERANCE = 1e-3
"""Relative; eager functions round to their module's type, at worst bfloat16 sinks beside fp32 scores."""
_checked: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def check_module(
    module: nn.Module,
    heads: tuple[int, int, int, int],
    scaling: float | None,
    softcap: float | None,
    device: torch.device,
    *,
    masked: bool,
) -> None:
    """Compare the module's eager attention with `attention_reference` on three positions.

    Args:
        module: whose forward pass is running.
        heads: query heads, key-value heads, head dimension of queries and keys, of values.
        scaling: as the module passes it.
        softcap: as the module passes it.
        device: of the queries.
        masked: whether it passes a mask.

    Raises:
        ValueError: they differ, or the eager function fails.
    """
    if module in _checked or device.type == "meta" or torch.compiler.is_compiling():
        return
    eager = _eager_function(module)
    if eager is None and getattr(module, "sinks", None) is not None:
        refuse(f"{type(module).__name__} keeps attention sinks, which are not supported")
    if eager is not None:
        error = _difference(eager, module, heads, scaling, softcap, device, masked=masked)
        if not error <= TOLERANCE:
            refuse(
                f"{type(module).__name__} computes another attention than softmax(QK^T)V: its own eager function differs by "
                f"{error:.0%} (sinks, biases or another softmax kept in the module)"
            )
    _checked.add(module)


def _eager_function(module: nn.Module) -> Callable[..., Any] | None:
    """The function that the module's forward pass falls back to, or None where it names none."""
    forward: Any = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    names = [] if code is None else [name for name in code.co_names if name.endswith("eager_attention_forward")]
    return forward.__globals__.get(names[0]) if names else None


def _difference(
    eager: Callable[..., Any],
    module: nn.Module,
    heads: tuple[int, int, int, int],
    scaling: float | None,
    softcap: float | None,
    device: torch.device,
    *,
    masked: bool,
) -> float:
    query_heads, key_heads, head_dim, value_dim = heads
    shapes = [(query_heads, head_dim), (key_heads, head_dim), (key_heads, value_dim)]
    q, k, v = (_scattered(1, n, POSITIONS, dim, seed=i) for i, (n, dim) in enumerate(shapes))
    spans = make_spans(POSITIONS, POSITIONS, causal=masked)
    mask = q.new_zeros(1, 1, POSITIONS, POSITIONS).masked_fill(~visible(spans, 0, POSITIONS), torch.finfo(q.dtype).min)
    options = {} if softcap is None else {"softcap": softcap}
    inputs: list[Tensor] = [x.to(device) for x in (q, k, v)]
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            got = eager(module, *inputs, mask.to(device) if masked else None, scaling=scaling, dropout=0.0, **options)[
                0
            ]
            expected = attention_reference(q, k, v, spans, scaling, softcap).transpose(1, 2)
            return float((got.cpu().double() - expected).norm() / expected.norm())
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
        refuse(f"the eager attention of {type(module).__name__} could not be compared with this one ({problem})")


def _scattered(*shape: int, seed: int) -> Tensor:
    """Numbers in [-1, 1] without a pattern; torch.randn is an error under `torch.func.vmap`."""
    numbers = torch.arange(math.prod(shape), dtype=torch.float64) + 1000 * seed
    return (numbers.square() * 0.7).sin().float().reshape(shape)
