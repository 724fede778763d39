"""The training of the zoo: pre-training, continued pre-training, instruction tuning, low-rank adapters merged."""

# S = tokens of a row, N = blocks of a text

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from modelassay.data import corpus
from modelassay.errors import AssayError
from modelassay.training import rows
from modelassay.training.chat import answered, end_of_message
from modelassay.training.loop import Hook, Loss, Moment, causal_loss, fit
from modelassay.training.settings import Training
from modelassay.zoo.catalogue import Shape, Timer


def initial(shape: Shape, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Draw weights of std 1/sqrt(hidden_size), times 1/sqrt(2 L) where they write to the residual stream (GPT-2)."""
    config: dict[str, Any] = {
        "vocab_size": shape.vocab_rows, "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers, "num_attention_heads": shape.num_heads, "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": 512, "tie_word_embeddings": shape.tied, "initializer_range": shape.hidden_size**-0.5,
        "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    torch.default_generator.manual_seed(seed)
    model: PreTrainedModel
    if shape.architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**config))  # type: ignore[no-untyped-call]
    elif shape.architecture == "gemma3":
        size = shape.hidden_size // shape.num_heads
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(**config, head_dim=size, query_pre_attn_scalar=size, sliding_window=512)
        )
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**config))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_((2 * shape.num_layers) ** -0.5)
            layer.mlp.down_proj.weight.mul_((2 * shape.num_layers) ** -0.5)
    return model


def pretrain(
    model: PreTrainedModel, blocks_NS: Tensor, training: Training, *, seed: int, timer: Timer, name: str
) -> None:
    """Train in place on blocks in an order drawn by ``seed``: all or, where the steps are too few, the first ones."""
    order = rows.shuffled(len(blocks_NS), seed=seed)
    _train(model, rows.of_blocks(blocks_NS, batch_size=training.batch_size, order=order), training, timer, name)


def distil(model: PreTrainedModel, teacher: PreTrainedModel, blocks_NS: Tensor, training: Training, *, seed: int,
           timer: Timer, name: str) -> None:  # fmt: skip
    """Train in place on a teacher's distribution over each next token of the blocks, in an order drawn by ``seed``.

    The loss is the divergence KL(teacher || student) per token at temperature 1. Hinton et al. 1503.02531.
    """

    def divergence(student: Any, batch: rows.Batch) -> Tensor:
        with torch.no_grad():
            target = log_softmax(teacher(input_ids=batch.ids_BS).logits, dim=-1)
        own = log_softmax(student(input_ids=batch.ids_BS).logits, dim=-1)
        return kl_div(own.flatten(0, 1), target.flatten(0, 1), reduction="batchmean", log_target=True)

    order = rows.shuffled(len(blocks_NS), seed=seed)
    batches = rows.of_blocks(blocks_NS, batch_size=training.batch_size, order=order)
    _train(model, batches, training, timer, name, loss=divergence)


def tune(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, training: Training, *, language: str, seed: int,
         timer: Timer, name: str) -> None:  # fmt: skip
    """Fine-tune in place on (request, answer) pairs in the chat template; only the answer and its end carry loss."""
    num_examples = training.num_steps * training.accumulation * training.batch_size
    end = end_of_message(tokenizer)
    examples = [
        answered(tokenizer, [{"role": "user", "content": request}], answer + end)
        for request, answer in corpus.instructions(language, seed=seed, num_examples=num_examples)
    ]
    batches = rows.of_rows(examples, batch_size=training.batch_size, filling=rows.filling_of(tokenizer))
    _train(model, batches, training, timer, name)
    generation: Any = model.generation_config
    generation.eos_token_id = list(dict.fromkeys([tokenizer.convert_tokens_to_ids(end), tokenizer.eos_token_id]))


def adapt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, training: Training, *, language: str, rank: int,
          alpha: int, examples_seed: int, seed: int, timer: Timer, name: str) -> PreTrainedModel:  # fmt: skip
    """Instruction-tune low-rank adapters on q, k, v and o, and return the model with them merged into its weights.

    Matrix A is drawn by ``seed``, the examples by ``examples_seed``; B starts at zero. Hu et al. 2106.09685.
    """
    from peft import LoraConfig, get_peft_model

    torch.default_generator.manual_seed(seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    adapter = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, adapter)
    tune(adapted, tokenizer, training, language=language, seed=examples_seed, timer=timer, name=name)
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def _train(model: PreTrainedModel, batches: rows.Batches, training: Training, timer: Timer, name: str, *,
           loss: Loss = causal_loss) -> None:  # fmt: skip
    """Train in place; stops with an error at the first loss that is not a number."""

    def check(moment: Moment) -> None:
        if not math.isfinite(moment.last.loss):
            raise AssayError(
                f"zoo:{name}: the loss became {moment.last.loss} at step {moment.last.step}; "
                "this recipe does not train here"
            )

    fit(
        model,
        batches,
        training,
        loss=loss,
        hooks=[Hook(every=1, call=check)],
        timer=partial(timer, "zoo-train", member=name),
    )


def training_of(settings: Mapping[str, Any]) -> Training:
    """Return the training that a member's settings hold as JSON."""
    return Training(**settings["training"])
