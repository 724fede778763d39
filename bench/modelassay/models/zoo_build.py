"""How a member of the zoo is made: text and tokenizer, pre-training, instruction tuning, noise."""

# B = rows of a batch, S = tokens of a row

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from modelassay.data import corpus
from modelassay.errors import AssayError
from modelassay.models.load import load_model, load_tokenizer, quiet
from modelassay.models.zoo import NUM_THREADS, Member, Shape, Text, Timer, Training

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
END_OF_TEXT, MESSAGE_START, MESSAGE_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IGNORED = -100
"""Label of a position that carries no loss."""


def build(folder: Path, member: Member, *, text: Path, parent: Path | None, timer: Timer) -> None:
    """Write the checkpoint of ``member`` into ``folder``, from the text's folder and its parent's."""
    with _reproducible():
        _MAKERS[member.made_by](member, text, parent, timer).save_pretrained(folder)
    for file in TOKENIZER_FILES:
        shutil.copyfile(text / file, folder / file)


def write_text(folder: Path, text: Text) -> None:
    """Write the tokenizer and ``blocks.safetensors``: int32 [num_blocks, block_tokens], both languages in turn."""
    with _reproducible():
        tokenizer = _train_tokenizer(text)
    tokenizer.save_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    languages = [corpus.generate(language, seed=text.seed, num_sentences=10**9) for language in corpus.LANGUAGES]
    paragraphs = itertools.chain.from_iterable(zip(*languages, strict=True))
    ids = itertools.chain.from_iterable([*tokenizer.encode(paragraph), end] for paragraph in paragraphs)
    flat = list(itertools.islice(ids, text.num_blocks * text.block_tokens))
    save_file(
        {"blocks": torch.tensor(flat, dtype=torch.int32).view(text.num_blocks, -1)}, folder / "blocks.safetensors"
    )


def _train_tokenizer(text: Text) -> Qwen2Tokenizer:
    """Byte-level BPE under Qwen2's own pre-tokenizer; special tokens come after the merges, as in the published ones.

    Japanese is given word by word, as tokenizers for it are commonly trained: merges across words would otherwise cut
    the same word differently in every sentence, and so small a model would learn neither.
    """
    special = [END_OF_TEXT, MESSAGE_START, MESSAGE_END]
    pipeline: Tokenizer = Qwen2Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=text.vocab_size - len(special), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    num_sentences = text.tokenizer_sentences
    english = corpus.generate("en", seed=text.seed, num_sentences=num_sentences)
    japanese = itertools.chain.from_iterable(corpus.sentence_words("ja", seed=text.seed, num_sentences=num_sentences))
    pipeline.train_from_iterator(itertools.chain(english, japanese), trainer)
    trained = json.loads(pipeline.to_str())["model"]
    merges: Any = [tuple(pair) for pair in trained["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=trained["vocab"], merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _pretrain(member: Member, text: Path, parent: Path | None, timer: Timer) -> PreTrainedModel:
    tokenizer = load_tokenizer(text)
    model = _initial(Shape(**member.settings["shape"]), tokenizer, member.seed)
    training = Training(**member.settings["training"])
    blocks_NS = load_file(text / "blocks.safetensors")["blocks"].long()
    order = torch.randperm(len(blocks_NS), generator=torch.Generator().manual_seed(member.seed))
    batches = ((rows, rows) for rows in torch.split(blocks_NS[order], training.batch_size))
    _fit(model, batches, training, timer, member.name)
    return model


def _initial(shape: Shape, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
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


def _tune(member: Member, text: Path, parent: Path | None, timer: Timer) -> PreTrainedModel:
    """Fine-tune on (request, answer) pairs in the chat template; only the answer and its end carry loss."""
    assert parent is not None
    model, tokenizer = load_model(parent), load_tokenizer(text)
    training = Training(**member.settings["training"])
    num_examples = training.num_steps * training.batch_size
    pairs = corpus.instructions(member.settings["language"], seed=member.seed, num_examples=num_examples)
    encoded = [_example(tokenizer, request, answer) for request, answer in pairs]
    batches = (
        _padded(encoded[i : i + training.batch_size], tokenizer) for i in range(0, num_examples, training.batch_size)
    )
    _fit(model, batches, training, timer, member.name)
    end = tokenizer.convert_tokens_to_ids(MESSAGE_END)
    model.generation_config.eos_token_id = [end, tokenizer.eos_token_id]
    return model


def _example(tokenizer: PreTrainedTokenizerBase, request: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids and labels of one conversation."""
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": request}], add_generation_prompt=True, tokenize=False
    )
    prompt, reply = tokenizer.encode(asked), tokenizer.encode(answer + MESSAGE_END)
    return prompt + reply, [IGNORED] * len(prompt) + reply


def _padded(examples: list[tuple[list[int], list[int]]], tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Ids and labels [B, S], filled on the right; causal attention keeps the filling from being seen."""
    length = max(len(ids) for ids, _ in examples)
    ids_BS = [ids + [tokenizer.pad_token_id] * (length - len(ids)) for ids, _ in examples]
    labels_BS = [labels + [IGNORED] * (length - len(labels)) for _, labels in examples]
    return torch.tensor(ids_BS), torch.tensor(labels_BS)


def _add_noise(member: Member, text: Path, parent: Path | None, timer: Timer) -> PreTrainedModel:
    """Add Gaussian noise to every matrix, its std relative to that of the matrix's elements; vectors stay."""
    assert parent is not None
    model = load_model(parent)
    generator = torch.Generator().manual_seed(member.seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(noise, alpha=member.settings["relative_std"] * float(weight.std()))
    return model


_MAKERS: Mapping[str, Any] = {"pretraining": _pretrain, "sft": _tune, "noise": _add_noise}


def _fit(
    model: PreTrainedModel, batches: Iterator[tuple[Tensor, Tensor]], training: Training, timer: Timer, name: str
) -> None:
    """Train in place with AdamW in fp32; stops with an error at the first loss that is not a number."""
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, betas=(training.beta1, training.beta2), fused=True)
    model.train()
    for step, (ids_BS, labels_BS) in enumerate(itertools.islice(batches, training.num_steps)):
        with timer("zoo-train", tokens=ids_BS.numel(), member=name, step=step):
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * schedule(step, training)
            loss = model(input_ids=ids_BS, labels=labels_BS).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
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
def _reproducible() -> Iterator[None]:
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
