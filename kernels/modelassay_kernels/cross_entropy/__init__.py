"""Cross-entropy from hidden states: the logits of all tokens never exist at one time.

The loss of a token with label y, logits z = W h + b, and s = softcap * tanh(z / softcap) (or s = z):

    loss = lse - (1 - e) s[y] - e mean(s) + z_loss lse^2         lse = logsumexp(s), e = label_smoothing

The definition everywhere, whatever computes it:

- tokens with ``ignore_index`` take no part: their hidden states are not read, their gradients are exactly 0;
- the mean over no tokens is NaN with gradients of 0, the sum is 0, both as in torch;
- a NaN among the logits, or an infinity that wins, gives NaN (a softcap makes infinities finite), as in torch;
- a label that is neither in the vocabulary nor ``ignore_index`` is an error;
- logits, softmax and sums are float32 (float64 where an input is), so the loss is not rounded to bfloat16.
"""

# N = tokens, V = vocabulary, D = hidden size

from __future__ import annotations

import math

import torch
from torch import Tensor

from modelassay_kernels.cross_entropy.autograd import apply_gradient, apply_losses
from modelassay_kernels.cross_entropy.chunks import GradientMask, accumulator
from modelassay_kernels.cross_entropy.rows import Spec
from modelassay_kernels.dtypes import FLOATS
from modelassay_kernels.softcap import check_softcap


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    chunk_rows: int | None = None,
) -> Tensor:
    """Return the cross-entropy of ``hidden @ weight.T + bias`` against ``labels`` (see the module for the formula).

    Differentiable in hidden states, weight and bias, by `backward` and by torch.func; all three second-order
    compositions (`jvp(grad)`, `grad(grad)`, `grad(jvp)`) are exact, `vmap` over tangents shares the work at the point, and
    a third derivative raises. Tied embeddings need nothing special.

    Memory: the logits of one chunk with their tangents (of 128 tokens on a CPU, and at most 256 MiB; of 1 GiB on a GPU),
    and the gradients in the accumulating type. Flops: with ``mean`` and ``sum`` the gradient is made
    while the logits exist, 3 products of 2 N V D like the layers apart; a Hessian-vector product of it 10 (a floor of 9), 4 + 6 k for k by
    `vmap`. With ``none`` the logits are made again: 4 and 14. Ignored tokens cost nothing.

    GPU: vendor products of the weight's own type accumulated in fp32, and Triton for what is done to a chunk; gradients of
    logits are rounded to bfloat16 where the weight is bfloat16, and where it is float16 to that, brought into its range by a
    power of two. Under CUDA's autocast hidden states and weight are rounded to its type first, as those of a linear layer are,
    and logits are not. CPU: products in fp32, narrow weights widened in pieces; autocast rounds nothing.

    The host waits once for labels that many products share: for the number of rows that count. While a CUDA graph is captured it
    does not: all rows take part, those to be ignored as zeros, and a label that is not in the vocabulary gives NaN instead of an error.

    >>> hidden, weight = torch.zeros(2, 3), torch.ones(4, 3)
    >>> linear_cross_entropy(hidden, weight, torch.tensor([0, -100]))  # log(4): all tokens are equally likely
    tensor(1.3863)

    Args:
        hidden_ND: float64, float32, float16 or bfloat16; any strides.
        weight_VD: rows of the vocabulary, at least one; its type may differ.
        labels_N: integers.
        bias: [V], or None.
        softcap: 1e-30 to 1e30; Gemma 2 has 30. None: logits stay as they are.
        label_smoothing: from 0 to 1, as in torch.
        z_loss: weight of lse^2; PaLM has 1e-4.
        ignore_index: the label of tokens without a target; -100 as in torch.
        reduction: ``mean`` (over tokens that are not ignored), ``sum`` or ``none``.
        chunk_rows: tokens whose logits exist at one time; None chooses by the memory above.

    Returns:
        A scalar, or [N] for ``none``: float32, or float64 where an input is.

    Raises:
        ValueError: shapes that do not fit, settings out of range, or a label that is not in the vocabulary (see above for a
            graph that is captured).
        TypeError: for an unsupported dtype.
        NotImplementedError: when a third derivative is asked for.
    """
    spec = Spec(
        softcap=softcap,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        ignore_index=ignore_index,
        chunk_rows=chunk_rows,
    )
    narrow = autocast_type(hidden_ND.device)
    if narrow is not None and torch.float64 not in {hidden_ND.dtype, weight_VD.dtype}:
        hidden_ND, weight_VD = hidden_ND.to(narrow), weight_VD.to(narrow)
    if torch.compiler.is_compiling():  # see modelassay_kernels.compiled
        settings = (softcap, label_smoothing, z_loss, ignore_index, chunk_rows, reduction)
        loss: Tensor = torch.ops.modelassay.linear_cross_entropy(hidden_ND, weight_VD, bias, labels_N, *settings)
        return loss
    _check(hidden_ND, weight_VD, labels_N, bias, spec, reduction)
    if reduction == "none":
        return apply_losses(hidden_ND, weight_VD, bias, labels_N, spec)
    dtype = accumulator(hidden_ND, weight_VD, bias)
    keep_N = labels_N != ignore_index
    num_kept = keep_N.sum()
    g_N = keep_N.to(dtype)
    if reduction == "mean":
        g_N = g_N / num_kept.clamp(min=1)
    mask = GradientMask(
        hidden=hidden_ND.requires_grad,
        weight=weight_VD.requires_grad,
        bias=bias is not None and bias.requires_grad,
    )
    if torch.is_grad_enabled() and (mask.hidden or mask.weight or mask.bias):
        total = apply_gradient(g_N, hidden_ND, weight_VD, bias, labels_N, spec, mask)[0]
    else:
        losses_N = apply_losses(hidden_ND, weight_VD, bias, labels_N, spec)
        total = (g_N.double() * losses_N.double()).sum().to(dtype)
    return torch.where(num_kept == 0, math.nan, total) if reduction == "mean" else total


def autocast_type(device: torch.device) -> torch.dtype | None:
    """Return the type to which CUDA's autocast rounds the factors of a product, where it is on."""
    on = device.type == "cuda" and torch.is_autocast_enabled("cuda")
    return torch.get_autocast_dtype("cuda") if on else None


def _check(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, spec: Spec, reduction: str) -> None:
    where = "linear_cross_entropy"
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or weight.shape[0] == 0:
        raise ValueError(
            f"{where}: hidden states of shape {tuple(hidden.shape)} and a weight of shape {tuple(weight.shape)} do not fit; "
            "expected [N, D] and [V, D] with V > 0 (flatten batch and sequence first)"
        )
    if labels.shape != hidden.shape[:1]:
        raise ValueError(
            f"{where}: labels of shape {tuple(labels.shape)} for {hidden.shape[0]} tokens; expected one each"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{where}: a bias of shape {tuple(bias.shape)} for {weight.shape[0]} rows of the weight")
    for name, tensor in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype not in FLOATS:
            raise TypeError(f"{where}: {name} has dtype {tensor.dtype}; expected one of {[*FLOATS]}")
        if tensor is not None and tensor.device != labels.device:
            raise ValueError(
                f"{where}: {name} is on {tensor.device} and the labels on {labels.device}; move them together"
            )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{where}: labels have dtype {labels.dtype}; expected integers")
    if reduction not in {"mean", "sum", "none"}:
        raise ValueError(f"{where}: reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")
    _check_settings(spec)


def _check_settings(spec: Spec) -> None:
    where = "linear_cross_entropy"
    check_softcap(where, spec.softcap)
    if not 0.0 <= spec.label_smoothing <= 1.0:
        raise ValueError(f"{where}: label_smoothing is {spec.label_smoothing}; expected 0 to 1")
    if not (math.isfinite(spec.z_loss) and spec.z_loss >= 0):
        raise ValueError(f"{where}: z_loss is {spec.z_loss}; expected 0 or more")
    if spec.chunk_rows is not None and spec.chunk_rows < 1:
        raise ValueError(f"{where}: chunk_rows is {spec.chunk_rows}; expected 1 or more, or None")
