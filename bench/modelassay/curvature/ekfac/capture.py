"""What one pass gives of a linear layer: its inputs and the gradients of its outputs, from which the gradient of each row follows."""

# B = rows, T = positions, O = outputs, J = inputs (with a bias's 1), N = counted tokens

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from modelassay.curvature.ekfac.examples import ExampleBatch, uniform_numbers
from modelassay.curvature.ekfac.modules import LinearModule
from modelassay.curvature.gauss_newton import draw_labels
from modelassay.curvature.language_model import check_model, parameter_dtype
from modelassay.curvature.loss import CausalLoss, own_attention, second_order, token_losses
from modelassay.errors import Diverged, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Fisher = Literal["true", "empirical"]
"""Labels drawn from the model (its own distribution, one draw a token), or the data's."""
CHUNK_BYTES = 2**28
"""Of row gradients at a time, at most."""
_CACHED_BYTES = 2**22
"""On a CPU: row gradients of a layer of 344 x 128 are formed, squared and added in 47 microseconds each 16 at a time and in 70 with 64, beside a
second-level cache of 1 MiB."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Of one layer and one microbatch. A layer that is called several times has its calls end to end along T."""

    inputs_BTJ: Tensor
    gradients_BTO: Tensor
    """Of the rows' summed loss, in nats per unit of output; zero at padding."""

    def row_gradients(self, *, out: Tensor | None = None) -> Tensor:
        """Return the gradient of each row's loss, [B, O, J], in ``out`` if it is given: fresh pages cost as much as the product."""
        gradients_BOT = self.gradients_BTO.transpose(1, 2)
        return gradients_BOT @ self.inputs_BTJ if out is None else torch.bmm(gradients_BOT, self.inputs_BTJ, out=out)

    def rotated(self, basis_OO: Tensor, basis_JJ: Tensor) -> Trace:
        """Return the trace in the eigenbasis, Q_S^T g and Q_A^T a of each position: its row gradients are Q_S^T G Q_A."""
        return Trace(inputs_BTJ=self.inputs_BTJ @ basis_JJ, gradients_BTO=self.gradients_BTO @ basis_OO)

    def rotated_row_gradients(self, basis_OO: Tensor, basis_JJ: Tensor) -> Tensor:
        """Return Q_S^T G Q_A of each row's gradient G, [B, O, J], in the cheaper order: T (O^2 + J^2) or O J (O + J) products beside T O J."""
        if self.rotates_by_position:
            return self.rotated(basis_OO, basis_JJ).row_gradients()
        return basis_OO.T @ self.row_gradients() @ basis_JJ

    @property
    def rotates_by_position(self) -> bool:
        """Whether rotating each position takes fewer products than rotating each row's gradient."""
        (_, t, j), o = self.inputs_BTJ.shape, self.gradients_BTO.shape[2]
        return t * (o * o + j * j) <= o * j * (o + j)

    @property
    def size(self) -> int:
        """Entries of a row's gradient."""
        return self.inputs_BTJ.shape[2] * self.gradients_BTO.shape[2]

    def rows(self, start: int, end: int) -> Trace:
        """Return rows ``start`` to ``end - 1``."""
        return Trace(inputs_BTJ=self.inputs_BTJ[start:end], gradients_BTO=self.gradients_BTO[start:end])

    def chunks(self, most_bytes: int | None = None) -> Iterator[Trace]:
        """Yield the same some rows at a time, so that their gradients stay within ``most_bytes``: in the cache of a CPU, or 256 MiB elsewhere."""
        if most_bytes is None:
            most_bytes = _CACHED_BYTES if self.inputs_BTJ.device.type == "cpu" else CHUNK_BYTES
        rows = max(1, most_bytes // (self.size * self.inputs_BTJ.element_size()))
        for start in range(0, len(self.inputs_BTJ), rows):
            yield self.rows(start, start + rows)


Traces = Mapping[str, Trace]


class Capture:
    """A model whose layers are listened to; nothing of it changes once the context of `passes` is left."""

    def __init__(self, model: PreTrainedModel, modules: Sequence[LinearModule]) -> None:
        """Listen to ``modules`` of ``model``.

        Raises:
            UsageError: what `language_model.check_model` refuses.
        """
        check_model(model)
        self.model, self.modules = model, tuple(modules)
        self.device = next(model.parameters()).device
        self.dtype = torch.float64 if parameter_dtype(model) == torch.float64 else torch.float32
        """Of what is captured; bf16 activations are widened."""
        self._loss = CausalLoss(model)
        head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        names = {module.name for module in modules}
        follows_head = any(part is head for name, part in model.named_modules() if name in names)
        self._output: Literal["logits", "own logits"] = "own logits" if follows_head else "logits"
        self._calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    @contextmanager
    def passes(self) -> Iterator[None]:
        """Freeze the weights, whose gradients nobody needs, and listen."""
        before = {name: weight.requires_grad for name, weight in self.model.named_parameters()}
        named = dict(self.model.named_modules())
        handles = [named[module.name].register_forward_hook(self._listener(module.name)) for module in self.modules]
        wide = self.dtype == torch.float64
        context: AbstractContextManager[None] = (
            second_order(self.model, torch.float64, own_attention(self.model)) if wide else nullcontext()
        )
        try:
            self.model.requires_grad_(False)
            with context, torch.enable_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()
            for name, weight in self.model.named_parameters():
                weight.requires_grad_(before[name])
            self._calls.clear()

    def _listener(self, name: str) -> Callable[..., None]:
        def listen(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                output.requires_grad_(True)  # the first one: nothing before it has a gradient
            self._calls.setdefault(name, []).append((inputs[0].detach(), output))

        return listen

    def traces(self, batch: ExampleBatch, *, sampled_seed: int | None = None) -> Traces:
        """Pass a microbatch through the model and back; must be called inside `passes`.

        Args:
            batch: the rows.
            sampled_seed: of the labels, drawn from the model at each counted token; None: the data's own.

        Raises:
            Diverged: a loss or a gradient that is not finite, with the rows or the layer.
            UsageError: a layer that the pass does not call.
        """
        self._calls.clear()
        logits_NV = self._loss(batch.target, self._output)
        labels_N = batch.target.targets_N
        if sampled_seed is not None:
            uniform_N = uniform_numbers(batch, seed=sampled_seed).to(self.device)
            labels_N = draw_labels(logits_NV.detach(), uniform_N[:, None])[:, 0]
        losses_N = token_losses(logits_NV, labels_N)
        if not torch.isfinite(losses_N.detach()).all():
            at = int(batch.target.sequences_N[~torch.isfinite(losses_N)][0])
            raise Diverged(
                f"influence: the loss of row {batch.numbers[at]} is not finite; a model that has blown up has no influences"
            )
        if silent := [module.name for module in self.modules if module.name not in self._calls]:
            raise UsageError(
                f"influence: {silent[0]} is never called in a forward pass ({len(silent)} of {len(self.modules)} chosen modules are not); "
                "leave it out of the patterns"
            )
        calls = [(module, call) for module in self.modules for call in self._calls[module.name]]
        gradients = torch.autograd.grad(losses_N.sum(), [output for _, (_, output) in calls])
        result = self._collected(batch, calls, gradients)
        self._calls.clear()
        return result

    def _collected(self, batch: ExampleBatch, calls: Sequence[tuple[LinearModule, tuple[Tensor, Tensor]]],
                   gradients: Sequence[Tensor]) -> Traces:  # fmt: skip
        widened: dict[tuple[Any, ...], Tensor] = {}
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        shape = batch.real_BT.shape
        for (module, (given, _)), gradient in zip(calls, gradients, strict=True):
            key = (
                given.data_ptr(),
                given.shape,
                given.stride(),
                module.has_bias,
            )  # gate and up are given the same tensor
            if given.shape[:2] != shape:
                raise UsageError(
                    f"influence: {module.name} is given inputs of shape {tuple(given.shape)} for {tuple(shape)} tokens; "
                    "only layers that work on each position alone have factors"
                )
            if key not in widened:
                widened[key] = module.with_ones(given.to(self.dtype))
            parts.setdefault(module.name, []).append((widened[key], gradient.to(self.dtype)))
        traces = {}
        for module in self.modules:
            calls_ = parts[module.name]
            inputs, gradients_ = [one for one, _ in calls_], [other for _, other in calls_]
            alone = len(calls_) == 1
            trace = Trace(inputs_BTJ=inputs[0] if alone else torch.cat(inputs, 1),
                          gradients_BTO=gradients_[0] if alone else torch.cat(gradients_, 1))  # fmt: skip
            if not torch.isfinite(trace.gradients_BTO.sum()) or not torch.isfinite(trace.inputs_BTJ.sum()):
                raise Diverged(
                    f"influence: {module.name}: activations or gradients of rows {batch.numbers[0]} to {batch.numbers[-1]} are not finite"
                )
            traces[module.name] = trace
        return traces
