"""Mean loss against a loop over tokens."""

import pytest
import torch

from modelassay.evaluation.loss import mean_loss
from support.tiny_models import make_model


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_mean_loss_is_that_of_a_loop_over_tokens(batch_size: int) -> None:
    model = make_model("qwen2")
    rows_BS = torch.randint(32, (7, 9), generator=torch.Generator().manual_seed(0))
    losses = []
    for row_S in rows_BS:
        with torch.no_grad():
            chances = torch.softmax(model(input_ids=row_S[None]).logits[0].double(), dim=-1)
        losses += [-float(chances[at - 1, row_S[at]].log()) for at in range(1, 9)]
    assert mean_loss(model, rows_BS, batch_size=batch_size) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
