"""Dividing a gradient by damped curvature: identity, diagonal, KFAC, EKFAC.

(C + d)^-1 G with d = ``damping`` times the mean eigenvalue of the layer's C under the strategy: one number serves layers of all scales, as
Grosse et al. 2023 chose (0.1). Identity divides by nothing, so that its scores have another unit and no damping.
"""

# O = outputs of a layer, J = inputs, K = gradients

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from modelassay.curvature.ekfac.factors import ModuleFactors
from modelassay.errors import UsageError

Strategy = Literal["identity", "diagonal", "kfac", "ekfac"]
STRATEGIES: tuple[Strategy, ...] = ("identity", "diagonal", "kfac", "ekfac")
DAMPING = 0.1


def check_damping(damping: float) -> None:
    """Refuse a damping that makes no inverse.

    Raises:
        UsageError: it is not positive and finite.
    """
    if not 0 < damping < float("inf"):
        raise UsageError(
            f"influence: damping must be positive, got {damping}; 0.1 is 10 % of a layer's mean eigenvalue"
        )


def eigenvalues(factors: ModuleFactors, strategy: Strategy) -> Tensor:
    """Return the curvature's eigenvalues, [O, J]: in the weights' coordinates for ``diagonal``, else in the eigenbasis.

    Raises:
        UsageError: ``identity``, or a diagonal that was not fitted.
    """
    if strategy == "ekfac":
        return factors.lambda_OJ
    if strategy == "kfac":
        return factors.values_O[:, None] * factors.values_J
    if strategy == "diagonal" and factors.diagonal_OJ is not None:
        return factors.diagonal_OJ
    raise UsageError(f"influence: {factors.module.name} has no eigenvalues for {strategy!r}; fit with diagonal=True" if strategy == "diagonal"
                     else f"influence: {strategy!r} has no eigenvalues")  # fmt: skip


def damping_of(factors: ModuleFactors, strategy: Strategy, damping: float) -> float:
    """Return d, in nats per squared weight and token."""
    return damping * float(eigenvalues(factors, strategy).double().mean())


def precondition(
    gradients_KOJ: Tensor, factors: ModuleFactors, *, strategy: Strategy, damping: float, rotated: bool = False
) -> Tensor:
    """Return (C + d)^-1 times each gradient, [K, O, J]; the gradient itself for ``identity``.

    With ``rotated`` the gradients are in the eigenbasis, and so is the result.

    Raises:
        UsageError: a damping that is not positive, a layer without curvature: all its eigenvalues are 0, or ``diagonal`` of rotated ones.
    """
    if rotated and strategy == "diagonal":
        raise UsageError(
            "influence: the diagonal is of the weights' own coordinates; gradients in the eigenbasis have none"
        )
    if strategy == "identity":
        return gradients_KOJ
    check_damping(damping)
    values_OJ = eigenvalues(factors, strategy).to(gradients_KOJ.device)
    added = damping_of(factors, strategy, damping)
    if not added > 0:
        raise UsageError(
            f"influence: {factors.module.name} has no curvature: all its eigenvalues are 0; leave it out of the patterns"
        )
    if rotated or strategy == "diagonal":
        return gradients_KOJ / (values_OJ + added)
    return from_basis(to_basis(gradients_KOJ, factors) / (values_OJ + added), factors)


def to_basis(gradients_KOJ: Tensor, factors: ModuleFactors) -> Tensor:
    """Return Q_S^T G Q_A."""
    return torch.matmul(factors.basis_OO.T.to(gradients_KOJ.device), gradients_KOJ) @ factors.basis_JJ.to(
        gradients_KOJ.device
    )


def from_basis(rotated_KOJ: Tensor, factors: ModuleFactors) -> Tensor:
    """Return Q_S R Q_A^T; the inverse of `to_basis`."""
    return torch.matmul(factors.basis_OO.to(rotated_KOJ.device), rotated_KOJ) @ factors.basis_JJ.T.to(
        rotated_KOJ.device
    )
