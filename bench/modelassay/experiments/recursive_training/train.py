"""Two stages of a generation: the fine-tuning on its documents, and the documents that it then writes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelassay.errors import AssayError
from modelassay.experiments.recursive_training.documents import Document, Human, load, pack, save
from modelassay.experiments.recursive_training.params import Params
from modelassay.generation.engine import Completion, Engine, Prompt, Sampling, seed_of
from modelassay.generation.transformers import TransformersEngine
from modelassay.models.load import default_device, load_model, load_tokenizer, reproducible
from modelassay.models.tokenizer import copy_tokenizer
from modelassay.recording.context import Recorder
from modelassay.training.loop import Hook, Loss, causal_loss, fit, stop_if_diverged
from modelassay.training.resume import StageCheckpoints
from modelassay.training.rows import Batch, of_blocks, shuffled

MODEL, OUTCOME = "model", "outcome.json"


def corpus_of(params: Params, generation: int, human: Human, written: Sequence[Path]) -> list[Document]:
    """Return the documents that a generation is trained on, ``samples`` of them but for ``accumulate``, which has all.

    ``written`` holds what each earlier generation wrote, in turn; of ``first-writer`` the last of it is another text of generation 0.
    """
    condition = params.condition
    if generation == 0 or condition == "same":
        return human.generation(0)
    if condition == "fresh" or (condition == "recovery" and generation >= params.recover_from):
        return human.generation(generation)
    if condition in {"replace", "recovery", "first-writer"}:
        return load(written[-1])
    if condition == "mixed":
        half = params.samples // 2
        return [*load(written[-1])[: params.samples - half], *human.generation(generation)[:half]]
    every = [*human.generation(0), *(document for folder in written for document in load(folder))]
    if condition == "accumulate":
        return every
    generator = torch.Generator().manual_seed(seed_of("subsample", params.seed, generation) % 2**63)
    return [every[at] for at in torch.randperm(len(every), generator=generator)[: params.samples].tolist()]


def train(stage: Recorder, *, params: Params, generation: int, start: Path, written: Sequence[Path]) -> None:
    """Fine-tune ``start`` and write the model; `OUTCOME` says whether it diverged or had nothing to be trained on.

    Metrics: ``train_loss`` and ``grad_norm`` by ``step`` (each tenth and the last), ``trained_tokens``, ``trained_steps``, ``trained_documents``,
    ``distinct_rows``, ``moved``: share of the weights whose bits changed.

    Raises:
        AssayError: fewer weights moved than ``least_moved``.
    """
    with reproducible():
        tokenizer = load_tokenizer(start)
        documents = corpus_of(params, generation, Human(params=params, tokenizer=tokenizer), written)
        documents = thinned(documents, params.augmentation, stage.generator(f"augmentation of generation {generation}"))
        rows_NT = pack(documents, params.length)
        if not len(rows_NT):
            _end(stage, nothing=True)
            return
        training = params.training(generation)
        model: Any = load_model(start, dtype=getattr(torch, params.precision), device=default_device())
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        epochs = -(-training.num_steps * training.batch_size // len(rows_NT))
        seed = stage.seed(f"order of generation {generation}")
        order = shuffled(len(rows_NT), seed=seed, num_epochs=epochs)[: training.num_steps * training.batch_size]

        def timer(*, tokens: int, step: int) -> AbstractContextManager[object]:
            stage.progress(step + 1, training.num_steps, f"steps of generation {generation}")
            return stage.microbatch("step", tokens=tokens)

        result = fit(
            model, of_blocks(rows_NT, batch_size=training.batch_size, order=order), training, loss=_loss(params), timer=timer,
            hooks=[Hook(every=1, call=stop_if_diverged)], checkpoints=StageCheckpoints(stage),
        )  # fmt: skip
    for step in result.steps:
        if step.step % 10 == 0 or step is result.steps[-1]:
            stage.metric("train_loss", step.loss, step=step.step)
            stage.metric("grad_norm", step.grad_norm, step=step.step)
    for name, value in (("trained_tokens", sum(step.num_tokens for step in result.steps)), ("trained_steps", len(result.steps)),
                        ("trained_documents", len(documents)), ("distinct_rows", len(torch.unique(rows_NT, dim=0)))):  # fmt: skip
        stage.metric(name, value)
    if result.kept:
        _end(stage, diverged_at=result.kept[-1]["diverged_at"])
        return
    _check_moved(stage, params, generation, before, model)
    model.save_pretrained(stage.folder / MODEL)
    copy_tokenizer(start, stage.folder / MODEL)
    _end(stage)


def thinned(documents: list[Document], share: float, generator: torch.Generator) -> list[Document]:
    """Return documents of which each token is left out with probability ``share``; the first and the last, which may be the end, stay.

    >>> thinned([Document(ids=(1, 2, 3, 9), text="")], 0.999999, torch.Generator().manual_seed(0))[0].ids
    (1, 9)
    """
    if not share:
        return documents
    thin = []
    for document in documents:
        stays = torch.rand(len(document.ids), generator=generator) >= share
        stays[:1] = stays[-1:] = True
        kept = tuple(each for each, stay in zip(document.ids, stays.tolist(), strict=True) if stay)
        thin.append(Document(ids=kept, text=document.text))
    return thin


def _loss(params: Params) -> Loss:
    """Return the mean cross-entropy, or that of tokens that are not sure yet."""
    limit = params.truncate_above
    return causal_loss if limit is None else lambda model, batch: truncated_loss(model, batch, limit)


def truncated_loss(model: Any, batch: Batch, limit: float) -> Tensor:
    """Return the mean cross-entropy over all tokens, of which those with a probability above ``limit`` add nothing (2509.08972)."""
    ids_BS = batch.ids_BS.to(model.device)
    logits_BSV = model(input_ids=ids_BS).logits[:, :-1].float()
    losses_N = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), ids_BS[:, 1:].flatten(), reduction="none")
    return (losses_N * (losses_N.detach() > -math.log(limit))).mean()


def _end(stage: Recorder, **outcome: Any) -> None:
    told = {"diverged_at": None, "nothing": False, **outcome}
    (stage.folder / OUTCOME).write_text(json.dumps(told))


def outcome_of(folder: Path) -> str | None:
    """Return why a generation is the last, None where its model is there."""
    told = json.loads((folder / OUTCOME).read_text())
    if told["nothing"]:
        return "the texts before it do not fill one row: there is nothing to train on"
    return None if told["diverged_at"] is None else f"the loss was not finite at step {told['diverged_at']}"


def _check_moved(stage: Recorder, params: Params, generation: int, before: dict[str, Tensor], model: Any) -> None:
    moved = total = 0
    for name, weight in model.named_parameters():
        moved += int((weight.detach() != before[name]).sum())
        total += weight.numel()
    stage.metric("moved", moved / total)
    if moved < params.least_moved * total:
        raise AssayError(
            f"generation {generation}: the fine-tuning changed {moved / total:.1%} of the weights, less than least_moved {params.least_moved:.0%}; a model that does "
            "not move cannot collapse. Raise the learning rate or steps, or lower -o least_moved=..."
        )


def write(stage: Recorder, *, params: Params, generation: int, model: Path) -> None:
    """Let a generation write ``samples`` documents, each from the beginning of a human one.

    Metrics: ``written_tokens``, prompts apart, ``ended``, share that ended by themselves, ``empty``, share with nothing after the prompt, ``commonest_token``, share of the
    most frequent token; fact ``prompts``: digest of prompts, seeds and decoder.
    """
    with reproducible():
        tokenizer = load_tokenizer(model)
        prompts = _prompts(params, generation, tokenizer)
        sampling = Sampling(
            max_new_tokens=params.length - params.prompt_tokens, temperature=params.temperature, top_k=params.top_k, top_p=params.top_p,
            stop_ids=() if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),),
        )  # fmt: skip
        with stage.microbatch("write"):
            completions = _engine(params, model, tokenizer).complete(prompts, sampling)
    start = 0 if tokenizer.eos_token_id is None else 1
    documents = [_document(prompt, each, tokenizer, start) for prompt, each in zip(prompts, completions, strict=True)]
    save(documents, stage.folder)
    tokens = [token for each in completions for token in each.ids]
    counts = torch.bincount(torch.tensor(tokens)) if tokens else torch.zeros(1)
    stage.metric("written_tokens", len(tokens))
    stage.metric("ended", sum(each.finish == "stop" for each in completions) / len(completions))
    stage.metric("empty", sum(not each.text.strip() for each in completions) / len(completions))
    stage.metric("commonest_token", float(counts.max()) / max(1, len(tokens)))
    asked = json.dumps([[list(prompt.ids), prompt.seed] for prompt in prompts]) + repr(sampling)
    stage.fact("prompts", hashlib.blake2b(asked.encode(), digest_size=8).hexdigest())
    for number, document in enumerate(documents[:3]):
        stage.fact("sample", document.text, number=number)


def _prompts(params: Params, generation: int, tokenizer: Any) -> list[Prompt]:
    human = Human(params=params, tokenizer=tokenizer).generation(generation + 1)
    begin = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    count = max(params.prompt_tokens, 0 if begin else 1)
    return [
        Prompt(ids=(*begin, *document.ids[:count]), seed=seed_of(params.seed, "write", generation, number))
        for number, document in enumerate(human)
    ]


def _engine(params: Params, model: Path, tokenizer: Any) -> Engine:
    if params.engine == "vllm":
        from modelassay.generation.vllm import VllmEngine

        return VllmEngine(model, dtype=params.precision)
    loaded = load_model(model, dtype=getattr(torch, params.precision), device=default_device())
    return TransformersEngine(loaded, tokenizer, batch_size=params.generation_batch)


def _document(prompt: Prompt, completion: Completion, tokenizer: Any, start: int) -> Document:
    """Join prompt and completion; ``start`` tokens before the prompt are no part of the document."""
    ids = (*prompt.ids[start:], *completion.ids)
    ended = completion.finish == "stop"
    return Document(ids=ids, text=str(tokenizer.decode(ids[:-1] if ended else ids)))
