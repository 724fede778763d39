"""Whether what is differentiated is what the model computes: compared once, before a run, with ``model(**batch)``."""

# N = counted tokens, V = vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelassay.curvature.language_model import vocabulary_size
from modelassay.curvature.layers import StandIns, in_place_of
from modelassay.curvature.loss import CausalLoss, Output, TargetBatch, own_attention, second_order
from modelassay.errors import UsageError

MOST_LOGITS = 2**26
"""Logits of the model's own call at a time: 256 MiB in fp32."""
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3}
"""Relative; in fp32 the sums of two attentions, and of TF32 where the user allows it, stay within."""

CALL_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, NotImplementedError, AttributeError)

Tensors = dict[str, Tensor]


def check_agreement(module: CausalLoss, selected: Tensors, fixed: Tensors, batches: Sequence[TargetBatch], *,
                    attention: str, stand_ins: StandIns) -> None:  # fmt: skip
    """Compare the loss of every microbatch, and the derivative of some logits, with those of the model's own call.

    Derivatives are compared too since two functions may meet in one value: an adapter whose second matrix is still zero
    changes no loss. Costs two forward passes, and a gradient of a few sequences twice.

    Args:
        module: the model and how it is called here.
        selected: the parameters that the curvature is about, by the model's names, in fp32 or fp64.
        fixed: all others, and buffers, as ``model.<name>``.
        batches: with counted tokens.
        attention: with which products are computed; the model's own call has its own.
        stand_ins: what products compute in place of modules.

    Raises:
        UsageError: a difference, with the module that it comes from.
    """
    comparison = _Comparison(module, selected, fixed, attention, stand_ins)
    for index, batch in enumerate(batches):
        for part in _parts(batch, module):
            comparison.losses(index, part)
    comparison.derivatives(next(_parts(batches[0], module)))


def check_callable(
    module: CausalLoss, selected: Tensors, fixed: Tensors, batch: TargetBatch, *, attention: str
) -> None:
    """Raise UsageError where the model's own call with labels fails: what stopped ours is then the model's, and said as such."""
    _Comparison(module, selected, fixed, attention, {})._own("loss", batch, selected)


def _parts(batch: TargetBatch, module: CausalLoss) -> Any:
    """Yield a microbatch in parts of so many sequences that their logits fit, those with counted tokens."""
    num_sequences, length = batch.input_ids_BT.shape
    vocabulary = vocabulary_size(module.inner)
    rows = max(1, MOST_LOGITS // max(1, length * vocabulary))
    parts = (batch.rows(first, first + rows) for first in range(0, num_sequences, rows))
    return (part for part in parts if part.num_tokens)


class _Comparison:
    """Our way through a model and the model's own, at one point."""

    def __init__(
        self, module: CausalLoss, selected: Tensors, fixed: Tensors, attention: str, stand_ins: StandIns
    ) -> None:
        self._module, self._selected, self._fixed = module, selected, fixed
        self._attention, self._stand_ins = attention, stand_ins
        self._dtype = next(iter(selected.values())).dtype
        self._tolerance = TOLERANCE[self._dtype]

    def losses(self, index: int, batch: TargetBatch) -> None:
        ours, own = (float(way("loss", batch, self._selected)) / batch.num_tokens for way in (self._ours, self._own))
        if self._differ(ours, own):
            where = f"curvature: the loss of microbatch {index} is {ours:.6g} as the curvature takes it and {own:.6g} by model(**batch).loss"  # fmt: skip
            raise UsageError(f"{where}; {self._culprit(batch, own)}")

    def derivatives(self, batch: TargetBatch) -> None:
        ours, own = (self._gradient(way, batch) for way in (self._ours, self._own))
        errors = {name: float((ours[name] - own[name]).norm()) for name in ours}
        size = float(torch.stack([part.norm() for part in own.values()]).norm())
        if not sum(error**2 for error in errors.values()) ** 0.5 <= self._tolerance * size:
            name = max(errors, key=errors.__getitem__)
            raise UsageError(f"curvature: the derivative of the logits by {name} is not that of model(**batch).logits; {self._culprit(batch, None)}")  # fmt: skip

    def _gradient(self, way: Callable[..., Tensor], batch: TargetBatch) -> Tensors:
        """Return the derivative of logits weighed at random, which does not vanish where that of the loss does."""
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in self._selected.items()}
        with torch.enable_grad():
            logits_NV = way("logits", batch, leaves)
            generator = torch.Generator().manual_seed(0)
            weights_NV = torch.randn(logits_NV.shape, generator=generator).to(logits_NV)
            gradient = torch.autograd.grad(logits_NV, list(leaves.values()), weights_NV, materialize_grads=True)
        return dict(zip(leaves, gradient, strict=True))

    def _ours(self, output: Output, batch: TargetBatch, selected: Tensors) -> Tensor:
        with second_order(self._module.model, self._dtype, self._attention), in_place_of(self._stand_ins):
            return self._call(output, batch, selected)

    def _own(self, output: Output, batch: TargetBatch, selected: Tensors) -> Tensor:
        own: dict[str, Output] = {"loss": "own loss", "logits": "own logits"}
        with second_order(self._module.model, self._dtype, own_attention(self._module.model)):
            try:
                return self._call(own[output], batch, selected)
            except CALL_ERRORS as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                said = next(iter(str(error).strip().splitlines()), "")[:200]
                raise UsageError(
                    f"curvature: {type(self._module.inner).__name__} cannot be called with input_ids, attention_mask and labels alone: "
                    f"{type(error).__name__}: {said}; give a language model without other inputs, or the one inside it"
                ) from error

    def _call(self, output: Output, batch: TargetBatch, selected: Tensors) -> Tensor:
        # The context of a pass is one without gradients: those who want them ask inside it.
        with torch.set_grad_enabled(any(tensor.requires_grad for tensor in selected.values())):
            tensors = self._fixed | {f"model.{name}": tensor for name, tensor in selected.items()}
            result: Tensor = torch.func.functional_call(self._module, tensors, (batch, output))
            return result

    def _differ(self, ours: float, own: float) -> bool:
        return not abs(ours - own) <= self._tolerance * max(1.0, abs(own))

    def _culprit(self, batch: TargetBatch, own_loss: float | None) -> str:
        """Say where the two ways part: the first module whose output differs, the head, or the model's own loss."""
        inner, modules = self._module.inner, dict(self._module.model.named_modules())
        of_logits = float(F.cross_entropy(self._own("logits", batch, self._selected), batch.targets_N))
        here = float(self._ours("loss", batch, self._selected)) / batch.num_tokens
        if own_loss is not None and not self._differ(here, of_logits):
            return (f"{type(inner).__name__} adds up its loss in another way: the mean cross-entropy of its logits with the "
                    f"next token is {of_logits:.6g}. Switch off what it adds (output_router_logits of a mixture of experts), "
                    "or load a causal language model")  # fmt: skip
        ours, own = (self._outputs(way, batch) for way in (self._ours, self._own))
        for name, output in own.items():
            if name in ours and not self._same(ours[name], output, batch):
                parent = name.rpartition(".")[0]
                attention = own_attention(self._module.model)
                return (f"the first module whose output differs is {name} ({type(modules[name]).__name__}) in {parent or 'the model'} "
                        f"({type(modules[parent]).__name__}). If it is the attention, {attention!r} is another function than the "
                        f"{self._attention!r} taken here: model.set_attn_implementation('eager'). Else take away its noise, or the "
                        "state that changes between calls")  # fmt: skip
        head = next((name for name, part in modules.items() if part is inner.get_output_embeddings()), "")
        return f"the hidden states agree, so it is the head {head} or what {type(inner).__name__} does after it; make the operator after the last change to the model"  # fmt: skip

    def _outputs(self, way: Callable[..., Tensor], batch: TargetBatch) -> Tensors:
        """Return the output of each module below the head, by name, in the order in which they finish."""
        outputs: Tensors = {}
        base = set(self._module.inner.base_model.modules())

        def remember(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                first = output[0] if isinstance(output, (tuple, list)) and output else output
                if isinstance(first, Tensor) and name not in outputs:
                    outputs[name] = first.detach()

            return hook

        handles = [part.register_forward_hook(remember(name)) for name, part in self._module.model.named_modules()
                   if part in base and part is not self._module.inner]  # fmt: skip
        try:
            way("loss", batch, self._selected)
        finally:
            for handle in handles:
                handle.remove()
        return outputs

    def _same(self, ours: Tensor, own: Tensor, batch: TargetBatch) -> bool:
        if ours.shape != own.shape or not own.is_floating_point():
            return True
        if batch.attention_mask_BT is not None:
            real = batch.attention_mask_BT != 0  # what attention makes of padding differs, and nobody reads it
            if own.shape[:2] == real.shape:
                ours, own = ours[real], own[real]
            elif len(own) == real.numel():
                ours, own = ours[real.flatten()], own[real.flatten()]
        return bool((ours - own).norm() <= self._tolerance * own.norm())
