"""The function whose curvature is taken is the one the model computes: `model(**batch).loss`, or an error that names the module."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from modelassay.curvature.loss import IGNORED, Microbatch, microbatches
from modelassay.curvature.operators import Hessian
from modelassay.curvature.parameters import select_parameters
from modelassay.errors import UsageError
from support import curvature_cases as cases

SMALL = {"hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
         "max_position_embeddings": 16}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2}


def llama(**changes: Any) -> Any:
    return cases.make_model("llama", num_hidden_layers=1, **changes)


def randomised(model: Any) -> Any:
    torch.manual_seed(7)
    model.double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def lora(model: Any = None, *, is_fresh: bool = False, **options: Any) -> Any:
    model = peft.get_peft_model(model or llama(), peft.LoraConfig(r=2, **options)).double().eval()
    return model if is_fresh else randomised(model)


def adapted(kind: str, **options: Any) -> Any:
    return randomised(peft.get_peft_model(llama(), getattr(peft, kind)(**options)))


def of_config(model_type: str, **options: Any) -> Any:
    special = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id"])
    config = transformers.CONFIG_MAPPING[model_type](vocab_size=cases.VOCABULARY, **{**special, **SMALL, **options})
    return randomised(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager"))


def changed(change: Callable[[Any], Any], model_type: str = "llama") -> Any:
    model = cases.make_model(model_type, num_hidden_layers=1)
    change(model)
    return model


def biased_head() -> Any:
    model = llama()
    model.lm_head = nn.Linear(8, cases.VOCABULARY)
    return randomised(model)


class Doubled(nn.Module):
    """A reparametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return twice the weight, bent."""
        return 2 * weight + weight.square()


class ScaledLlama(transformers.LlamaForCausalLM):
    """Scales its logits in its own forward."""

    def forward(self, *args: Any, labels: Tensor | None = None, **options: Any) -> Any:
        """Return logits three times those of a Llama."""
        output = super().forward(*args, **options)
        output.logits = output.logits * 3
        if labels is not None:
            output.loss = self.loss_function(output.logits, labels, self.config.vocab_size)
        return output


def own_forward(model: Any) -> None:
    forward = model.lm_head.forward
    model.lm_head.forward = lambda x: 2 * forward(x)


def scaled(module: Any, args: Any, output: Any) -> Any:
    return output * 1.5


EXACT: dict[str, Callable[[], Any]] = {
    "an adapter on attention": lambda: lora(target_modules=["q_proj"]),
    "an adapter on the head": lambda: lora(target_modules=["lm_head"]),
    "a fresh adapter on the head": lambda: lora(target_modules=["lm_head"], is_fresh=True),
    "an adapter on the head, without the wrapper": lambda: lora(target_modules=["lm_head"]).base_model.model,
    "an adapter on a tied head": lambda: lora(cases.make_model("qwen2"), target_modules=["lm_head"]),
    "an adapter on the embedding": lambda: lora(target_modules=["embed_tokens"]),
    "an adapter on every layer": lambda: lora(target_modules="all-linear", use_rslora=True),
    "an adapter with dropout": lambda: lora(target_modules=["q_proj"], lora_dropout=0.5),
    "DoRA": lambda: lora(target_modules=["q_proj"], use_dora=True),
    "a head that is saved": lambda: lora(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "IA3": lambda: adapted("IA3Config", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LoHa": lambda: adapted("LoHaConfig", r=2, target_modules=["q_proj"]),
    "a head with a bias": biased_head,
    "a hook on the head": lambda: changed(lambda model: model.lm_head.register_forward_hook(scaled)),
    "a hook before the head": lambda: changed(lambda model: model.lm_head.register_forward_pre_hook(lambda _, args: (args[0] * 1.3,))),
    "a hook that knows three dimensions": lambda: changed(lambda model: model.model.norm.register_forward_hook(lambda _, args, x: 1.5 * x[:, :, :])),
    "a hook on an activation": lambda: changed(lambda model: model.model.layers[0].mlp.act_fn.register_forward_hook(scaled)),
    "a forward of the head's own": lambda: changed(own_forward),
    "a subclass": lambda: changed(lambda model: setattr(model, "__class__", ScaledLlama)),
    "a reparametrised head": lambda: changed(lambda model: parametrize.register_parametrization(model.lm_head, "weight", Doubled())),
    "a reparametrised tied embedding": lambda: changed(
        lambda model: parametrize.register_parametrization(model.model.embed_tokens, "weight", Doubled()), "qwen2"),
    "a pruned layer": lambda: changed(lambda model: prune.random_unstructured(model.model.layers[0].mlp.up_proj, "weight", 0.5)),
    "a pruned head": lambda: changed(lambda model: prune.random_unstructured(model.lm_head, "weight", 0.5)),
    "frozen parameters": lambda: llama().requires_grad_(False),
    "soft caps": lambda: of_config("gemma2", head_dim=4, query_pre_attn_scalar=4, sliding_window=3, final_logit_softcapping=2.0),
    "a logit scale": lambda: of_config("cohere"),
    "multipliers": lambda: of_config("granite", logits_scaling=3.0, embedding_multiplier=2.0, residual_multiplier=0.5),
    "experts": lambda: of_config("mixtral", num_local_experts=4, **EXPERTS),
    "shared experts": lambda: of_config("qwen2_moe", num_experts=4, moe_intermediate_size=4, shared_expert_intermediate_size=4, **EXPERTS),
    "positions from the mask": lambda: of_config("opt", ffn_dim=6, word_embed_proj_dim=8),
    "attention of its own": lambda: of_config("bloom", n_layer=1, n_head=2),
}  # fmt: skip


def padded_on_the_left() -> Microbatch:
    ids = cases.make_batch().input_ids_BT
    mask = torch.ones_like(ids)
    mask[0, :2] = mask[2, :3] = 0
    (batch,) = microbatches(ids, size=len(ids), attention_mask_BT=mask)
    return batch


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", EXACT)
def test_products_are_those_of_the_models_own_loss(name: str, side: str) -> None:
    model = EXACT[name]()
    batch = cases.make_batch() if side == "right" else padded_on_the_left()
    operator = Hessian(model, [batch])
    v_P = torch.randn(operator.size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    loss, product_P = cases.own_product(model, batch, v_P)
    assert abs(operator.loss() - loss) < 1e-12
    assert cases.off(operator.matvec(v_P), product_P) < 1e-12


@pytest.mark.parametrize("compile_", [torch.compile, lambda model, **how: model.compile(**how) or model,
                                      lambda model, **how: model.model.layers[0].compile(**how) or model])  # fmt: skip
def test_a_compiled_model_is_the_model(compile_: Any) -> None:
    batch = cases.make_batch()
    plain = Hessian(llama(), [batch])
    compiled = Hessian(compile_(llama(), backend="aot_eager"), [batch])
    v_P = torch.randn(plain.size, dtype=torch.float64)
    assert cases.off(compiled.matvec(v_P), plain.matvec(v_P)) < 1e-14


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_padding_on_the_left_is_neither_counted_nor_a_context(model_type: str) -> None:
    """By hand: each sequence alone, without its padding (and with its positions, where they are learned)."""
    model, batch = cases.make_model(model_type), padded_on_the_left()
    operator = Hessian(model, [batch])
    assert operator.num_tokens == 3 * 6 - 2 - 3 - 3
    losses = []
    for ids, mask in zip(batch.input_ids_BT, batch.attention_mask_BT, strict=True):  # type: ignore[arg-type]
        real, places = ids[mask == 1][None], torch.arange(len(ids))[mask == 1][None]
        logits = model(input_ids=real, position_ids=places).logits[0, :-1]
        losses.append(F.cross_entropy(logits, real[0, 1:], reduction="none").detach())
    assert abs(operator.loss() - float(torch.cat(losses).mean())) < 1e-6  # norms of a plain call are fp32 in part


def test_labels_on_padding_and_after_it_carry_no_loss() -> None:
    ids, mask = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[0, 1, 1, 0, 1]])
    batch = Microbatch(input_ids_BT=ids, labels_BT=ids, attention_mask_BT=mask)
    assert batch.labels_BT.tolist() == [[IGNORED, IGNORED, 3, IGNORED, IGNORED]]
    assert Microbatch(input_ids_BT=ids, labels_BT=ids).labels_BT is ids
    whole = Microbatch(input_ids_BT=ids, labels_BT=ids, attention_mask_BT=torch.ones_like(ids))
    assert torch.equal(whole.labels_BT, ids)


def noisy(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda _, args, x: x + 0.1 * torch.randn_like(x))


def own_attention(model: Any) -> None:
    from transformers.masking_utils import eager_mask
    from transformers.models.llama.modeling_llama import eager_attention_forward

    def twice(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **options: Any) -> tuple[Tensor, None]:
        return 2 * eager_attention_forward(module, q, k, v, mask, **options)[0], None

    transformers.AttentionInterface.register("twice", twice)
    transformers.AttentionMaskInterface.register("twice", eager_mask)
    model.set_attn_implementation("twice")


def other_loss(model: Any) -> None:
    model.loss_function = lambda logits, labels, vocab_size, **_: logits.square().mean()


def bert(kind: Any) -> Any:
    options = {key: size for key, size in SMALL.items() if key != "num_key_value_heads"}
    return randomised(kind(transformers.BertConfig(vocab_size=cases.VOCABULARY, **options)))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a router's loss": (lambda: of_config("mixtral", num_local_experts=4, output_router_logits=True, **EXPERTS), "MixtralForCausalLM adds up its loss.*output_router_logits"),
    "another loss": (lambda: changed(other_loss), "LlamaForCausalLM adds up its loss in another way"),
    "a masked language model": (lambda: bert(transformers.BertForMaskedLM), "BertForMaskedLM adds up its loss in another way"),
    "noise": (lambda: changed(noisy), r"differs is model\.layers\.0\.mlp \(LlamaMLP\)"),
    "an attention of one's own": (lambda: changed(own_attention), r"in model\.layers\.0\.self_attn \(LlamaAttention\).*'twice'"),
    "a layer in training mode": (lambda: changed(lambda model: model.model.layers[0].train()), r"model\.layers\.0 \(LlamaDecoderLayer\) is in training mode"),
    "a hook on gradients": (lambda: changed(lambda model: model.model.norm.register_full_backward_hook(lambda *_: None)), r"model\.norm \(LlamaRMSNorm\) has a backward hook"),
    "an encoder and a decoder": (lambda: randomised(transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=cases.VOCABULARY, d_model=8, d_kv=4, d_ff=6, num_layers=1, num_heads=2))), "T5ForConditionalGeneration has an encoder"),
    "no head": (lambda: llama().model, "LlamaModel takes no labels"),
    "a classifier": (lambda: randomised(transformers.LlamaForSequenceClassification(transformers.LlamaConfig(
        vocab_size=cases.VOCABULARY, pad_token_id=0, **SMALL))), r"LlamaForSequenceClassification returns logits of shape \(3, 2\)"),
    "a wrapper": (lambda: nn.DataParallel(llama()).eval(), "got DataParallel; if it wraps one, give the model inside"),
    "virtual tokens": (lambda: adapted("PromptTuningConfig", task_type="CAUSAL_LM", num_virtual_tokens=2), r"PROMPT_TUNING\) puts virtual tokens"),
    "a virtual prefix": (lambda: adapted("PrefixTuningConfig", task_type="CAUSAL_LM", num_virtual_tokens=2), r"PREFIX_TUNING\) puts virtual tokens"),
    "a quantised layer": (lambda: changed(lambda model: setattr(model.model.layers[0].mlp.up_proj, "weight", nn.Parameter(
        torch.ones(6, 8, dtype=torch.int8), requires_grad=False))), r"model\.layers\.0\.mlp\.up_proj\.weight is torch\.int8"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_another_function_is_refused_by_the_name_of_the_module(name: str) -> None:
    make, said = REFUSED[name]
    model = make()
    with pytest.raises(UsageError, match=said):
        Hessian(model, [cases.make_batch()]).loss()


@pytest.mark.parametrize("precision", ["bf16", "fp32", "fp64"])
def test_a_head_that_changes_after_the_operator_is_made_is_named(precision: Any) -> None:
    model = llama()
    operator = Hessian(model, [cases.make_batch()], precision=precision)
    model.lm_head.register_forward_hook(scaled)
    with pytest.raises(UsageError, match="it is the head lm_head"):
        operator.matvec(torch.ones(operator.size))


def test_an_adapter_that_changes_no_loss_yet_is_seen_by_its_derivative() -> None:
    """The way around the head is forced: the losses agree, and the check looks further."""
    model = lora(target_modules=["lm_head"], is_fresh=True).base_model.model
    operator = Hessian(model, [cases.make_batch()])
    operator._module.goes_around_head = True
    with pytest.raises(UsageError, match=r"derivative of the logits by lm_head\.lora_B.*it is the head lm_head"):
        operator.loss()


def test_the_check_is_made_once() -> None:
    model = llama()
    operator = Hessian(model, [cases.make_batch()])
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))  # the model's own call, which products go around
    operator.matvec(torch.ones(operator.size))
    count = len(calls)
    operator.matvec(torch.ones(operator.size))
    assert count == len(calls) == 2  # a loss, a derivative


def test_a_wide_adapter_on_a_narrow_model_is_not_rounded() -> None:
    model = peft.get_peft_model(llama().bfloat16(), peft.LoraConfig(r=2, target_modules=["q_proj"])).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16, torch.float32}
    assert Hessian(model, [cases.make_batch()]).precision == "fp32"


def test_embeddings_are_left_out_under_whatever_name_they_have() -> None:
    def embeddings(model: Any) -> list[str]:
        return [name for name in select_parameters(model, embeddings=False).names if "embed" in name or "head" in name]

    assert embeddings(llama()) == []
    assert embeddings(changed(lambda model: prune.random_unstructured(model.lm_head, "weight", 0.5))) == []
    assert embeddings(lora(target_modules=["lm_head", "embed_tokens"])) == []
