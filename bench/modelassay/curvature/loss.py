"""How a model and a microbatch become logits and a loss: the only file that chooses attention and cross-entropy."""

# B = sequences, T = tokens per sequence, N = counted tokens, D = hidden size, V = vocabulary

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from modelassay.curvature.layers import SummedLoss
from modelassay.errors import UsageError
from modelassay_kernels import register_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100  # the label of a token that carries no loss, as in transformers and torch.nn.functional.cross_entropy

Attention = Literal["modelassay", "eager"]
"""What has exact second derivatives: our own, in memory linear in the length, and transformers' matrix of probabilities.
None of PyTorch's fused attentions has them."""

PLAIN_HEADS = frozenset({"gemma", "gpt2", "llama", "mistral", "qwen2", "qwen3"})
"""Model types whose logits are nothing but hidden states times the head's weight: no bias, no scale, no soft cap."""


@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """Sequences that go through the model together."""

    input_ids_BT: Tensor
    """Token ids, int64."""
    labels_BT: Tensor
    """Labels aligned with the inputs, -100 where a token carries no loss; label t is predicted from position t - 1."""
    attention_mask_BT: Tensor | None = None
    """1 for tokens, 0 for padding; None if nothing is padded."""


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

    def to(self, device: torch.device) -> TargetBatch:
        """Return the same on ``device``."""
        moved: dict[str, Any] = {name: None if part is None else part.to(device) for name, part in vars(self).items()}
        return TargetBatch(**moved)


def microbatches(input_ids_BT: Tensor, *, size: int, labels_BT: Tensor | None = None,
                 attention_mask_BT: Tensor | None = None) -> list[Microbatch]:  # fmt: skip
    """Split sequences into microbatches of ``size``, the last one ragged; without labels every token carries loss.

    Padding (mask 0) never carries loss.

    Raises:
        UsageError: ``size`` below 1, or shapes that differ.

    >>> [len(batch.input_ids_BT) for batch in microbatches(torch.zeros(5, 3, dtype=torch.int64), size=2)]
    [2, 2, 1]
    """
    if size < 1:
        raise UsageError(f"microbatches: size must be at least 1, got {size}")
    labels = input_ids_BT if labels_BT is None else labels_BT
    for name, given in (("labels_BT", labels), ("attention_mask_BT", attention_mask_BT)):
        if given is not None and given.shape != input_ids_BT.shape:
            raise UsageError(f"microbatches: {name} has shape {tuple(given.shape)}, input_ids_BT {tuple(input_ids_BT.shape)}; make them equal")  # fmt: skip
    if attention_mask_BT is not None:
        labels = labels.masked_fill(attention_mask_BT == 0, IGNORED)
    masks = [None] * len(input_ids_BT) if attention_mask_BT is None else torch.split(attention_mask_BT, size)
    parts = zip(torch.split(input_ids_BT, size), torch.split(labels, size), masks, strict=False)
    return [Microbatch(input_ids_BT=ids, labels_BT=kept, attention_mask_BT=mask) for ids, kept, mask in parts]


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


class CausalLoss(nn.Module):
    """A causal language model as a function of its parameters, for ``torch.func.functional_call``.

    Its parameters are the model's, named ``model.<name>``; a tied head follows the embedding it is tied to.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Wrap ``model``, which stays what it is."""
        super().__init__()
        self.model, self.summed_loss = model, SummedLoss()

    def forward(self, batch: TargetBatch, output: Literal["loss", "logits"]) -> Tensor:
        """Return the summed loss [] or the logits [N, V] of the counted tokens, in fp32 (fp64 for an fp64 model)."""
        given = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT, "use_cache": False}
        if self.model.config.model_type in PLAIN_HEADS:
            hidden_BTD = self.model.base_model(**given).last_hidden_state
            hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, batch.positions_N)
            head: Any = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
            if output == "loss":
                summed: Tensor = self.summed_loss(hidden_ND, head.weight, batch.targets_N)
                return summed
            logits_NV = F.linear(hidden_ND, head.weight)
        else:
            logits_NV = self.model(**given).logits.flatten(0, 1).index_select(0, batch.positions_N)
        wide_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        return wide_NV if output == "logits" else token_losses(wide_NV, batch.targets_N).sum()


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


def attention_for(model: PreTrainedModel) -> Attention:
    """Return our attention if transformers routes the model's attention through its interface, else eager."""
    return "modelassay" if model._supports_attention_backend else "eager"


@contextmanager
def second_order(model: PreTrainedModel, dtype: torch.dtype, attention: Attention | None = None) -> Iterator[None]:
    """Make a model twice differentiable while the context lasts, by default with the attention of `attention_for`.

    Three things stand in the way. Fused attention has no second derivative, so ``attention`` takes its place.
    ``padding_idx`` zeroes one row of the embedding's gradient whatever the loss does with it, which makes the Hessian
    unsymmetric: with the padding id used as a token, double backward is off by 80 to 100 % on Qwen2, Llama and Gemma.
    It is put aside, and a padding token that is read counts like any other. And transformers asks for float32 by name in
    norms, rotary embeddings and softmax; in a float64 pass these requests are answered in float64.
    """
    before, attention = model.config._attn_implementation, attention or attention_for(model)
    register_attention()
    embeddings = [part for part in model.modules() if isinstance(part, nn.Embedding) and part.padding_idx is not None]
    padding = [part.padding_idx for part in embeddings]
    mode: Any = _Float64Throughout() if dtype == torch.float64 else nullcontext()
    try:
        if before != attention:
            model.set_attn_implementation(attention)
        for part in embeddings:
            part.padding_idx = None
        with torch.no_grad(), mode, warnings.catch_warnings():
            # PyTorch's own rules of forward differentiation are compiled by what PyTorch deprecates, at their first use.
            warnings.filterwarnings("ignore", message=".*torch.jit.script.* is ", category=DeprecationWarning)
            yield
    finally:
        for part, index in zip(embeddings, padding, strict=True):
            part.padding_idx = index
        if before != attention:
            model.set_attn_implementation(before)


class _Float64Throughout(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.float:
            return args[0].double()
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        return func(*args, **kwargs)
