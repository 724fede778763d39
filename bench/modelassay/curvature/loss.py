"""How a model and a microbatch become logits and a loss: the only file that chooses attention and cross-entropy."""

# B = sequences, T = tokens per sequence, N = counted tokens, D = hidden size, V = vocabulary

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from modelassay.curvature.language_model import PLAIN_HEADS as PLAIN_HEADS
from modelassay.curvature.language_model import plain_head, transformers_model
from modelassay.curvature.layers import SummedLoss
from modelassay.errors import UsageError
from modelassay_kernels import register_attention

IGNORED = -100  # the label of a token that carries no loss, as in transformers and torch.nn.functional.cross_entropy

Attention = Literal["modelassay", "eager"]
"""What has exact second derivatives: our own, in memory linear in the length, and transformers' matrix of probabilities.
None of PyTorch's fused attentions has them."""


@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """Sequences that go through the model together.

    ``model(input_ids=..., attention_mask=..., labels=...).loss`` of these three is the loss whose curvature is taken. The
    model itself decides what positions padded tokens have: most count from the left end, padding included.
    """

    input_ids_BT: Tensor
    """Token ids, int64."""
    labels_BT: Tensor
    """Labels aligned with the inputs, -100 where a token carries no loss; label t is predicted from position t - 1. Padding
    carries no loss and predicts nothing: its labels, and the label of the token after it, become -100 here."""
    attention_mask_BT: Tensor | None = None
    """1 for tokens, 0 for padding; None if nothing is padded."""

    def __post_init__(self) -> None:
        """Take the labels off padding and off the token that padding would predict."""
        labels, mask = self.labels_BT, self.attention_mask_BT
        if mask is not None and labels.dim() == 2 and labels.shape == mask.shape:
            is_padding = mask == 0
            predicted_by_padding = F.pad(is_padding, (1, 0))[:, :-1]
            object.__setattr__(self, "labels_BT", labels.masked_fill(is_padding | predicted_by_padding, IGNORED))


@dataclass(frozen=True, kw_only=True)
class TargetBatch:
    """A microbatch on its device, with the tokens that carry loss found in it."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor | None
    positions_N: Tensor
    """Index into the flattened [B * T] positions of the prediction of each counted token, in reading order."""
    targets_N: Tensor
    """The token to be predicted there."""
    sequences_N: Tensor
    """The sequence it belongs to, 0 .. B - 1."""

    @property
    def num_tokens(self) -> int:
        """Tokens that carry loss."""
        return len(self.targets_N)

    @property
    def labels_BT(self) -> Tensor:
        """Labels of the counted tokens as transformers takes them, -100 elsewhere."""
        labels = self.targets_N.new_full((self.input_ids_BT.numel(),), IGNORED)
        labels[self.positions_N + 1] = self.targets_N
        return labels.view(self.input_ids_BT.shape)

    def rows(self, first: int, end: int) -> TargetBatch:
        """Return sequences ``first`` to ``end - 1``."""
        chosen = (self.sequences_N >= first) & (self.sequences_N < end)
        mask = self.attention_mask_BT
        return TargetBatch(
            input_ids_BT=self.input_ids_BT[first:end],
            attention_mask_BT=None if mask is None else mask[first:end],
            positions_N=self.positions_N[chosen] - first * self.input_ids_BT.shape[1],
            targets_N=self.targets_N[chosen],
            sequences_N=self.sequences_N[chosen] - first,
        )

    def to(self, device: torch.device) -> TargetBatch:
        """Return the same on ``device``."""
        parts: dict[str, Any] = {name: None if part is None else part.to(device) for name, part in vars(self).items()}
        return TargetBatch(**parts)


def microbatches(input_ids_BT: Tensor, *, size: int, labels_BT: Tensor | None = None,
                 attention_mask_BT: Tensor | None = None) -> list[Microbatch]:  # fmt: skip
    """Split sequences into microbatches of ``size``, the last one ragged; without labels every token carries loss.

    Padding (mask 0) never carries loss, on whichever side it lies, and neither does the token that it would predict.

    Raises:
        UsageError: ``size`` below 1, or shapes that differ.

    >>> [len(batch.input_ids_BT) for batch in microbatches(torch.zeros(5, 3, dtype=torch.int64), size=2)]
    [2, 2, 1]
    """
    if size < 1:
        raise UsageError(f"microbatches: size must be at least 1, got {size}")
    labels = input_ids_BT if labels_BT is None else labels_BT
    for name, part in (("labels_BT", labels), ("attention_mask_BT", attention_mask_BT)):
        if part is not None and part.shape != input_ids_BT.shape:
            raise UsageError(f"microbatches: {name} has shape {tuple(part.shape)}, input_ids_BT {tuple(input_ids_BT.shape)}; make them equal")  # fmt: skip
    masks = [None] * len(input_ids_BT) if attention_mask_BT is None else torch.split(attention_mask_BT, size)
    parts = zip(torch.split(input_ids_BT, size), torch.split(labels, size), masks, strict=False)
    return [Microbatch(input_ids_BT=ids, labels_BT=labels, attention_mask_BT=mask) for ids, labels, mask in parts]


def count_tokens(batches: Sequence[Microbatch], *, vocabulary: int, device: torch.device) -> list[TargetBatch]:
    """Check microbatches, move them to the device, and find their counted tokens; those without any are left out.

    Raises:
        UsageError: no microbatch, a shape that is not [B, T], ids or labels outside the vocabulary, or no counted token in
            all of them: a mean over nothing has no curvature.
    """
    counted = [_count(index, batch, vocabulary).to(device) for index, batch in enumerate(batches)]
    if not counted:
        raise UsageError("curvature: no microbatch was given; a mean loss over nothing has no curvature")
    if not sum(batch.num_tokens for batch in counted):
        longest = max(batch.input_ids_BT.shape[1] for batch in counted)
        raise UsageError(
            f"curvature: no token of the {len(counted)} microbatches carries loss; their longest sequence has {longest} tokens. "
            f"Give sequences of at least 2 tokens with labels other than {IGNORED} after the first"
        )
    return [batch for batch in counted if batch.num_tokens]


def _count(index: int, batch: Microbatch, vocabulary: int) -> TargetBatch:
    where, ids, labels, mask = f"microbatch {index}", batch.input_ids_BT, batch.labels_BT, batch.attention_mask_BT
    shapes = [tuple(part.shape) for part in (ids, labels, mask) if part is not None]
    if ids.dim() != 2 or len(set(shapes)) > 1:
        raise UsageError(f"{where}: inputs, labels and mask must share one shape [B, T], got {shapes}")
    for name, part in (("input_ids_BT", ids), ("labels_BT", labels[labels != IGNORED])):
        if part.numel() and not (int(part.min()) >= 0 and int(part.max()) < vocabulary):
            raise UsageError(f"{where}: {name} must lie in 0 .. {vocabulary - 1}, got {int(part.min())} .. {int(part.max())}; use the model's own tokenizer")  # fmt: skip
    following = F.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    positions = (following.reshape(-1) != IGNORED).nonzero().squeeze(1)
    return TargetBatch(input_ids_BT=ids, attention_mask_BT=mask, positions_N=positions,
                   targets_N=following.reshape(-1)[positions], sequences_N=positions // max(ids.shape[1], 1))  # fmt: skip


Output = Literal["loss", "logits", "own loss", "own logits"]
"""The summed loss [] or the logits [N, V] of the counted tokens; ``own`` as the model's call with labels returns them."""


class CausalLoss(nn.Module):
    """A causal language model as a function of its parameters, for ``torch.func.functional_call``.

    Its parameters are the model's, named ``model.<name>``; a tied head follows the embedding it is tied to. Where the head
    is a plain matrix when this is made, hidden states of uncounted tokens do not go through it; else the model is called.
    """

    inner: Any
    """The model of transformers inside wrappers."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap ``model``, which stays what it is."""
        super().__init__()
        self.model, self.summed_loss = model, SummedLoss()
        vars(self)["inner"] = transformers_model(model)  # not a module of its own: its parameters are the model's
        self.goes_around_head = plain_head(model) is not None
        self.takes_use_cache = "use_cache" in inspect.signature(type(self.inner).forward).parameters

    def forward(self, batch: TargetBatch, output: Output) -> Tensor:
        """Return ``output`` in fp32 (fp64 for an fp64 model)."""
        inputs: dict[str, Any] = {"input_ids": batch.input_ids_BT}
        if batch.attention_mask_BT is not None:
            inputs["attention_mask"] = batch.attention_mask_BT
        if self.takes_use_cache:
            inputs["use_cache"] = False
        if output == "own loss":
            mean: Tensor = self.model(**inputs, labels=batch.labels_BT).loss
            return mean * batch.num_tokens
        if self.goes_around_head and output != "own logits":
            hidden_BTD = self.inner.base_model(**inputs).last_hidden_state
            hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, batch.positions_N)
            head: Any = self.inner.get_output_embeddings()
            if output == "loss":
                summed: Tensor = self.summed_loss(hidden_ND, head.weight, batch.targets_N)
                return summed
            logits_NV = F.linear(hidden_ND, head.weight)
        else:
            logits_NV = self._logits(inputs).index_select(0, batch.positions_N)
        wide_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        return token_losses(wide_NV, batch.targets_N).sum() if output == "loss" else wide_NV

    def _logits(self, inputs: dict[str, Any]) -> Tensor:
        logits_BTV: Tensor = self.model(**inputs).logits
        shape = tuple(inputs["input_ids"].shape)
        if logits_BTV.dim() != 3 or logits_BTV.shape[:2] != shape:
            raise UsageError(f"curvature: {type(self.inner).__name__} returns logits of shape {tuple(logits_BTV.shape)} for {shape} tokens; needs a causal language model")  # fmt: skip
        return logits_BTV.flatten(0, 1)


def model_loss(module: CausalLoss, tensors: dict[str, Tensor], batch: TargetBatch) -> Tensor:
    """Return the loss of a microbatch, summed over its counted tokens, with ``tensors`` in place of the model's own."""
    loss: Tensor = torch.func.functional_call(module, tensors, (batch, "loss"))
    return loss


def model_logits(module: CausalLoss, tensors: dict[str, Tensor], batch: TargetBatch) -> Tensor:
    """Return the logits [N, V] of the counted tokens, with ``tensors`` in place of the model's own."""
    logits_NV: Tensor = torch.func.functional_call(module, tensors, (batch, "logits"))
    return logits_NV


def token_losses(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return the negative log-likelihood of each target, [N]."""
    return F.cross_entropy(logits_NV, targets_N, reduction="none")


def attention_for(model: nn.Module) -> Attention:
    """Return our attention if transformers routes the model's attention through its interface, else eager."""
    return "modelassay" if transformers_model(model)._supports_attention_backend else "eager"


def own_attention(model: nn.Module) -> str:
    """Return the model's attention, or eager in place of fused ones that not every precision and device has."""
    name = transformers_model(model).config._attn_implementation or "eager"
    return "eager" if "/" in name or name.split("|")[-1].startswith(("flash", "flex")) else name


@contextmanager
def second_order(model: nn.Module, dtype: torch.dtype, attention: str | None = None) -> Iterator[None]:
    """Make a model twice differentiable while the context lasts, by default with the attention of `attention_for`.

    What stands in the way: fused attention has no second derivative, so ``attention`` takes its place (and PyTorch's fused
    attention is computed step by step where a model calls it by itself). ``padding_idx`` zeroes one row of the embedding's
    gradient whatever the loss does with it, which makes the Hessian unsymmetric: with the padding id used as a token, double
    backward is off by 80 to 100 % on Qwen2, Llama and Gemma. It is put aside, and a padding token that is read counts like
    any other. transformers asks for float32 by name in norms, rotary embeddings and softmax; in a float64 pass these requests
    are answered in float64. Grouped products of experts know neither float64 nor a second derivative, so experts go one by
    one. And what torch.compile has compiled has one backward pass only, so it runs uncompiled.
    """
    inner: Any = transformers_model(model)
    before, attention = inner.config._attn_implementation, attention or attention_for(model)
    register_attention()
    embeddings = [part for part in model.modules() if isinstance(part, nn.Embedding) and part.padding_idx is not None]
    padding = [part.padding_idx for part in embeddings]
    # What is made of parameters before a forward, as torch.nn.utils.prune does, would be left behind with its graph.
    derived = [(vars(part), dict(vars(part))) for part in model.modules() if part._forward_pre_hooks]
    mode: Any = _float64_throughout() if dtype == torch.float64 else nullcontext()
    try:
        if before != attention:
            inner.set_attn_implementation(attention)
        for part in embeddings:
            part.padding_idx = None
        with torch.no_grad(), mode, _experts_one_by_one(inner), _uncompiled(model), warnings.catch_warnings():
            # PyTorch's own rules of forward differentiation are compiled by what PyTorch deprecates, at their first use.
            warnings.filterwarnings("ignore", message=".*torch.jit.script.* is ", category=DeprecationWarning)
            with sdpa_kernel(SDPBackend.MATH):
                yield
    finally:
        for attributes, earlier in derived:
            attributes.update((name, value) for name, value in earlier.items() if isinstance(value, Tensor))
        for part, index in zip(embeddings, padding, strict=True):
            part.padding_idx = index
        if before != attention:
            inner.set_attn_implementation(before)


FUSED_EXPERTS = {"batched_mm", "deepgemm", "grouped_mm", "sonicmoe"}
"""Names under which transformers registers products of experts of its own; one that a user registered stays."""


@contextmanager
def _experts_one_by_one(inner: Any) -> Iterator[None]:
    before = inner.get_experts_implementation() if hasattr(inner, "get_experts_implementation") else {}
    if FUSED_EXPERTS.isdisjoint(before.values()):
        yield
        return
    try:
        inner.set_experts_implementation("eager")
        yield
    finally:
        inner.set_experts_implementation(before)


def _uncompiled(model: nn.Module) -> AbstractContextManager[object]:
    is_compiled = any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in model.modules())
    if not is_compiled:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def _float64_throughout() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of tensors that a layer makes without saying of which type
    try:
        with _Float64Throughout():
            yield
    finally:
        torch.set_default_dtype(before)


class _Float64Throughout(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.float:
            return args[0].double()
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        return func(*args, **kwargs)
