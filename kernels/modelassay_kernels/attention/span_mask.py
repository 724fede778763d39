"""`SpanMask`: the mask that a model carries from `spans_mask` to its layers, and that nobody else can mistake for a tensor.

transformers tells masks apart by their shape, so a tensor that happens to have the shape and type of spans would pass for
one, and spans handed back to transformers would pass for padding. A mask here is known by its type. It says the four
dimensions of the mask that it stands for, moves to devices, and refuses to be indexed or calculated with.
"""

# B = batch, S = queries, J = keys: the dimensions of a mask

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from modelassay_kernels.attention.spans import END, FIRST, unwrapped

ADVICE = "use attn_implementation='eager'"


class MaskUseError(ValueError, AttributeError):
    """A model treats the mask as a tensor; an AttributeError too, so that `hasattr` answers."""


def refuse(what: str, instead: str = ADVICE) -> NoReturn:
    """Raise.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"attn_implementation='modelassay': {what}; {instead}")


class SpanMask:
    """One interval of keys per query, in place of a mask [batch, 1, queries, keys].

    Args:
        spans_B2S: int32 [1 or batch, 2, queries], as `attention_over_spans` takes.
        batch_size: number of sequences.
        num_keys: how many keys the intervals count.
        has_blind: whether some query sees no key; None: read from the spans.
    """

    def __init__(self, spans_B2S: Tensor, batch_size: int, num_keys: int, *, has_blind: bool | None = None) -> None:
        self.spans = spans_B2S
        self.has_blind = _has_blind(spans_B2S) if has_blind is None else has_blind
        self.shape = torch.Size([batch_size, 1, spans_B2S.shape[-1], num_keys])

    @property
    def ndim(self) -> int:
        """Number of dimensions of the mask that this stands for."""
        return len(self.shape)

    @property
    def device(self) -> torch.device:
        """Where the spans are."""
        return self.spans.device

    def dim(self) -> int:
        """Return what `ndim` says."""
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        """Return the shape of the mask that this stands for, or one of its extents."""
        return self.shape if dim is None else self.shape[dim]

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> SpanMask:
        """Return the mask on another device; hooks that spread a model over devices call this."""
        if isinstance(device, torch.dtype | Tensor):
            _not_a_tensor(f".to({device})")
        spans = self.spans.to(device, non_blocking=non_blocking)
        return SpanMask(spans, self.shape[0], self.shape[-1], has_blind=self.has_blind)

    def __repr__(self) -> str:
        return f"SpanMask(batch {self.shape[0]}, {self.shape[2]} queries, {self.shape[3]} keys)"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's own protocols: copying, pickling, arrays
            raise AttributeError(name)
        _not_a_tensor(f".{name}")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        _not_a_tensor(getattr(function, "__name__", str(function)))

    __hash__ = object.__hash__


def _has_blind(spans_B2S: Tensor) -> bool:
    return bool(unwrapped(spans_B2S[:, FIRST] >= spans_B2S[:, END]).any())


def _not_a_tensor(use: str) -> NoReturn:
    raise MaskUseError(
        f"attn_implementation='modelassay': this model changes or applies its attention mask itself ({use}), where it should "
        f"hand it to its attention function; {ADVICE}"
    )


def _refusing(name: str) -> Any:
    def method(_: SpanMask, *__: Any) -> NoReturn:
        _not_a_tensor(name)

    return method


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
for _name in (
    *(f"__{side}{name}__" for name in _BINARY for side in ("", "r", "i")),
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__neg__", "__invert__", "__abs__"),
    *("__getitem__", "__setitem__", "__len__", "__iter__", "__contains__", "__bool__", "__int__", "__float__"),
):
    setattr(SpanMask, _name, _refusing(_name))
