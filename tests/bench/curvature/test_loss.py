"""What is counted, which parameters are selected, and that a pass leaves the model's own numbers alone."""

from typing import Any

import pytest
import torch

from modelassay.curvature.loss import (
    IGNORED,
    PLAIN_HEADS,
    CausalLoss,
    count_tokens,
    microbatches,
    model_logits,
    model_loss,
    second_order,
)
from modelassay.curvature.operators import Hessian
from modelassay.curvature.parameters import select_parameters
from modelassay.errors import UsageError
from support import curvature_cases as cases


@pytest.mark.parametrize("name", cases.CASES)
def test_loss_and_logits_are_the_models_own(name: str) -> None:
    """Also for the head that is applied to hidden states here, and with padding and ignored tokens."""
    model, batch = cases.make_model(name), cases.make_batch()
    tensors = {f"model.{key}": parameter.detach() for key, parameter in model.named_parameters()}
    (counted,) = count_tokens([batch], vocabulary=cases.VOCABULARY, device=torch.device("cpu"))
    with second_order(model, torch.float64, "eager"):
        output = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, labels=batch.labels_BT)
        kept = output.logits[:, :-1][batch.labels_BT[:, 1:] != IGNORED]
        assert kept.dtype == torch.float64
        assert cases.off(model_logits(CausalLoss(model), tensors, counted), kept) < 1e-14
        loss = model_loss(CausalLoss(model), tensors, counted) / counted.num_tokens
    assert abs(float(loss) - float(output.loss)) < 1e-13
    assert counted.sequences_N.tolist() == [0] * 3 + [1] * 5 + [2] * 3
    assert (name in PLAIN_HEADS) == (name != "gpt_neox")


def test_a_float64_pass_is_float64_throughout() -> None:
    """transformers rounds through float32 inside; the difference is seen, and gone."""
    model, batch = cases.make_model("llama"), cases.make_batch()
    tensors = {f"model.{key}": parameter.detach() for key, parameter in model.named_parameters()}
    (counted,) = count_tokens([batch], vocabulary=cases.VOCABULARY, device=torch.device("cpu"))

    first = "model.model.embed_tokens.weight"

    def change(step: float, *, wide: bool) -> float:
        moved = tensors | {first: tensors[first] * (1 + step)}
        with second_order(model, torch.float64 if wide else torch.float32):
            return float(
                model_loss(CausalLoss(model), moved, counted) - model_loss(CausalLoss(model), tensors, counted)
            )

    errors = {wide: abs(change(1e-9, wide=wide) / change(1e-7, wide=wide) - 0.01) for wide in (True, False)}
    assert errors[True] < 1e-6
    assert errors[False] > 1e-5


def _failing(stage: str, **labels: int) -> Any:
    raise ZeroDivisionError(stage)


def test_a_pass_that_fails_puts_the_model_back() -> None:
    model = cases.make_model("gemma", pad_token_id=3)
    model.set_attn_implementation("sdpa")
    silent = torch.zeros(1, 3, dtype=torch.int64)
    operator = Hessian(model, microbatches(silent, size=1), unit=_failing)
    with pytest.raises(ZeroDivisionError):
        operator.matvec(torch.ones(operator.size))
    assert model.config._attn_implementation == "sdpa"
    assert model.model.embed_tokens.padding_idx == 3


def test_microbatches_keep_every_token_once() -> None:
    ids = torch.arange(21).reshape(7, 3)
    mask = torch.ones_like(ids)
    mask[2, 1:] = 0
    for size in (1, 2, 3, 7, 9):
        batches = microbatches(ids, size=size, attention_mask_BT=mask)
        assert torch.equal(torch.cat([batch.input_ids_BT for batch in batches]), ids)
        assert torch.equal(torch.cat([batch.labels_BT for batch in batches]), ids.masked_fill(mask == 0, IGNORED))
        assert {len(batch.input_ids_BT) for batch in batches[:-1]} <= {size}


@pytest.mark.parametrize(("options", "said"), [({"size": 0}, "at least 1, got 0"), ({"size": 1, "labels_BT": torch.zeros(1, 2)}, r"labels_BT has shape \(1, 2\)")])  # fmt: skip
def test_microbatches_refuse(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        microbatches(torch.zeros(1, 3, dtype=torch.int64), **options)


def test_selection() -> None:
    for name in ("qwen2", "llama", "gpt2"):
        model = cases.make_model(name)
        everything = select_parameters(model)
        assert everything.size == sum(parameter.numel() for parameter in model.parameters())
        inner = select_parameters(model, embeddings=False)
        gone = set(everything.names) - set(inner.names)
        assert gone == {"qwen2": {"model.embed_tokens.weight"}, "llama": {"model.embed_tokens.weight", "lm_head.weight"},
                        "gpt2": {"transformer.wte.weight", "transformer.wpe.weight"}}[name]  # fmt: skip
    with pytest.raises(UsageError, match="did you mean 'transformer.wpe.weight'"):
        select_parameters(model, ["transformer.wpe.wieght"])
    with pytest.raises(UsageError, match="nothing is left"):
        select_parameters(model, ["*.wte.*"], embeddings=False)


def test_flattening_there_and_back() -> None:
    model = cases.make_model("llama")
    subset = select_parameters(model, ["*norm*", "*.mlp.up_proj.weight"])
    flat_KP = torch.arange(2.0 * subset.size, dtype=torch.float64).reshape(2, -1)
    result_KP = torch.zeros_like(flat_KP)
    tensors = subset.unflatten(flat_KP, torch.float64)
    assert [part.shape[1:] for part in tensors.values()] == [
        dict(model.named_parameters())[n].shape for n in subset.names
    ]
    subset.add_flat(result_KP, tensors)
    subset.add_flat(result_KP, tensors)
    assert torch.equal(result_KP, 2 * flat_KP)
