"""The training of the zoo: pre-training, continued pre-training, instruction tuning, low-rank adapters merged."""

# B = rows of a batch, S = tokens of a row, N = blocks of a text

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from modelassay.data import corpus
from modelassay.errors import AssayError
from modelassay.models.load import quiet
from modelassay.models.zoo_members import NUM_THREADS, Shape, Timer, Training

MESSAGE_START, MESSAGE_END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IGNORED = -100
"""Label of a position that carries no loss."""


def initial(shape: Shape, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Draw weights of std 1/sqrt(hidden_size), times 1/sqrt(2 L) where they write to the residual stream (GPT-2)."""
    config = Qwen2Config(
        vocab_size=shape.vocab_rows, hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_heads, num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=512, tie_word_embeddings=True, initializer_range=shape.hidden_size**-0.5,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.default_generator.manual_seed(seed)
    model: PreTrainedModel = Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_((2 * shape.num_layers) ** -0.5)
            layer.mlp.down_proj.weight.mul_((2 * shape.num_layers) ** -0.5)
    return model


def pretrain(
    model: PreTrainedModel, blocks_NS: Tensor, training: Training, *, seed: int, timer: Timer, name: str
) -> None:
    """Train in place on blocks in an order drawn by ``seed``: all or, where the steps are too few, the first ones."""
    order = torch.randperm(len(blocks_NS), generator=torch.Generator().manual_seed(seed))
    batches = ((rows, rows) for rows in torch.split(blocks_NS[order], training.batch_size))
    _fit(model, batches, training, timer, name)


def tune(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, training: Training, *, language: str, seed: int,
         timer: Timer, name: str) -> None:  # fmt: skip
    """Fine-tune in place on (request, answer) pairs in the chat template; only the answer and its end carry loss."""
    num_examples = training.num_steps * training.batch_size
    pairs = corpus.instructions(language, seed=seed, num_examples=num_examples)
    end = _end_of_message(tokenizer)
    encoded = [_example(tokenizer, request, answer + end) for request, answer in pairs]
    batches = (
        _padded(encoded[i : i + training.batch_size], tokenizer) for i in range(0, num_examples, training.batch_size)
    )
    _fit(model, batches, training, timer, name)
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


def _example(tokenizer: PreTrainedTokenizerBase, request: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids and labels of one conversation; ``answer`` brings the mark that ends it."""
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": request}],
        add_generation_prompt=True,
        tokenize=False,
        chat_template=None if tokenizer.chat_template else CHAT_TEMPLATE,
    )
    prompt: list[int] = tokenizer.encode(asked, add_special_tokens=False)
    reply: list[int] = tokenizer.encode(answer, add_special_tokens=False)
    return prompt + reply, [IGNORED] * len(prompt) + reply


def _end_of_message(tokenizer: PreTrainedTokenizerBase) -> str:
    """What ends an answer: the mark of our template where it is one token, else what the tokenizer ends texts with."""
    return MESSAGE_END if MESSAGE_END in tokenizer.get_vocab() else str(tokenizer.eos_token)


def _padded(examples: list[tuple[list[int], list[int]]], tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Ids and labels [B, S], filled on the right; causal attention keeps the filling from being seen."""
    length = max(len(ids) for ids, _ in examples)
    filling: Any = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids_BS = [ids + [filling] * (length - len(ids)) for ids, _ in examples]
    labels_BS = [labels + [IGNORED] * (length - len(labels)) for _, labels in examples]
    return torch.tensor(ids_BS), torch.tensor(labels_BS)


def _fit(
    model: PreTrainedModel, batches: Iterator[tuple[Tensor, Tensor]], training: Training, timer: Timer, name: str
) -> None:
    """Train in place with AdamW in fp32; stops with an error at the first loss that is not a number."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = [weight for weight in trained if weight.ndim >= 2]
    vectors = [weight for weight in trained if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=training.learning_rate, betas=(training.beta1, training.beta2), fused=True,
    )  # fmt: skip
    model.train()
    for step, (ids_BS, labels_BS) in enumerate(itertools.islice(batches, training.num_steps)):
        with timer("zoo-train", tokens=ids_BS.numel(), member=name, step=step):
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * schedule(step, training)
            loss = model(input_ids=ids_BS.to(model.device), labels=labels_BS.to(model.device)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        if not math.isfinite(loss.item()):
            raise AssayError(
                f"zoo:{name}: the loss became {loss.item()} at step {step}; this recipe does not train here"
            )
    model.train(False)


def schedule(step: int, training: Training) -> float:
    """Return the fraction of the learning rate at a step: linear warm-up, then a cosine to zero.

    >>> training = Training(num_steps=100, batch_size=1, learning_rate=1.0, warmup_fraction=0.1)
    >>> [round(schedule(step, training), 3) for step in (0, 4, 9, 10, 55, 99)]
    [0.1, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    num_warmup = max(1, round(training.warmup_fraction * training.num_steps))
    if step < num_warmup:
        return (step + 1) / num_warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - num_warmup) / (training.num_steps - num_warmup))


@contextmanager
def reproducible() -> Iterator[None]:
    """Hold the number of threads, which the bits depend on, and put back what making a model changes in the process."""
    threads, switch = torch.get_num_threads(), os.environ.get("TOKENIZERS_PARALLELISM")
    torch.set_num_threads(NUM_THREADS)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        with torch.random.fork_rng(devices=[]), quiet():
            yield
    finally:
        torch.set_num_threads(threads)
        if switch is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = switch


def training_of(settings: Mapping[str, Any]) -> Training:
    """Return the training that a member's settings hold as JSON."""
    return Training(**settings["training"])
