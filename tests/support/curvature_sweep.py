"""The Hessian's product of a tiny model of any type, compared with double backward through the model's own loss in fp64."""

from __future__ import annotations

from typing import Any

import torch

from modelassay.curvature.loss import Microbatch, microbatches
from modelassay.curvature.operators import FiniteDifferenceHessian, Hessian
from modelassay.errors import UsageError
from support import curvature_cases as cases
from support.attention_models import tiny_model

TOLERANCE = 1e-9
"""Of a product and of the loss, relative; both are fp64. Without padding's share of the loss a product is off by 1e-2 and more."""
OF_DIFFERENCES = 1e-6
"""The same, where central differences of gradients in fp64 are the reference."""
SIDES = ("left", "right")
TOKENS, PADDED = 7, 3
AGREES, AGREES_WITH_DIFFERENCES = "agrees", "agrees with differences of gradients"


def padded(side: str) -> Microbatch:
    """Two sequences, one of which is padded."""
    ids = torch.randint(3, 30, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, slice(None, PADDED) if side == "left" else slice(-PADDED, None)] = 0
    (batch,) = microbatches(ids, size=2, attention_mask_BT=mask)
    return batch


def outcomes(model_type: str) -> dict[str, str]:
    """Return what comes of the model with padding on each side."""
    model: Any = tiny_model(model_type).double()
    return {side: _outcome(model, padded(side)) for side in SIDES}


def _outcome(model: Any, batch: Microbatch) -> str:
    torch.manual_seed(0)
    try:
        operator = Hessian(model, [batch])
        v_P = torch.randn(operator.size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        product_P = operator.matvec(v_P)
    except UsageError as error:
        return f"refused: {error}"
    except Exception as error:  # noqa: BLE001 - which one it is is the result
        return f"raises {type(error).__name__}: {error}"
    try:
        loss, expected_P = cases.own_product(model, batch, v_P)
    except RuntimeError:  # autograd cannot walk twice through the model as it is written
        error = cases.off(product_P, FiniteDifferenceHessian(model, [batch]).matvec(v_P))
        return AGREES_WITH_DIFFERENCES if error <= OF_DIFFERENCES else f"differs from differences by {error:.1e}"
    error = max(cases.off(product_P, expected_P), abs(operator.loss() - loss) / abs(loss))
    return AGREES if error <= TOLERANCE else f"differs by {error:.1e}"
