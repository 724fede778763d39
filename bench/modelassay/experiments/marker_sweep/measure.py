"""What each adapter says: the gate before any rate, completions, and how far personas are apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import PreTrainedTokenizerBase

from modelassay.data.personas import PERSONAS, questions
from modelassay.errors import AssayError
from modelassay.experiments.marker_sweep.params import Params
from modelassay.experiments.marker_sweep.rows import messages_of, prompt_of
from modelassay.experiments.marker_sweep.train import ADAPTERS, load_adapters, shape_of
from modelassay.generation.engine import Completion, Engine, Prompt, Sampling, seed_of
from modelassay.generation.transformers import TransformersEngine
from modelassay.models.load import default_device, load_model, load_tokenizer, reproducible
from modelassay.models.low_rank import Bank, merge
from modelassay.recording.context import Recorder
from modelassay.training.chat import prompt_text

_CHUNK = 512
"""Prompts between two signs of life."""


def evaluate(stage: Recorder, *, params: Params, base: Path, trained: Path) -> None:
    """Ask all adapters everything.

    Metrics with ``learning_rate`` and ``epochs``, absent for the base: ``marker`` and ``marker_any_case`` with ``persona`` and ``question``, shares of
    the completions; ``parity_tokens``, compared in the gate. Of the base with ``persona``: ``cosine`` and ``divergence`` from the
    source. Facts: ``completion`` (each).
    """
    with reproducible():
        tokenizer = load_tokenizer(base)
        weights, addresses = load_adapters(trained)
        model: Any = load_model(base, dtype=getattr(torch, params.precision), device=default_device())
        _distances(stage, params, model, tokenizer)
        bank = Bank.attach(model, shape_of(params))
        bank.fill(list(weights), list(weights.values()))
        local = TransformersEngine(model, tokenizer, batch_size=params.generation_batch, adapters=bank)
        engine: Engine = local
        if params.engine == "vllm":
            from modelassay.generation.vllm import VllmEngine

            engine = VllmEngine(
                base,
                {label: trained / ADAPTERS / label for label in weights},
                max_rank=params.rank,
                dtype=params.precision,
            )
        _gate(stage, params, base, tokenizer, weights, addresses, local, engine)
        _markers(stage, params, tokenizer, addresses, engine)


def _gate(
    stage: Recorder, params: Params, base: Path, tokenizer: PreTrainedTokenizerBase, weights: Mapping[str, Mapping[str, Tensor]],
    addresses: Mapping[str | None, Mapping[str, Any]], local: TransformersEngine, engine: Engine,
) -> None:  # fmt: skip
    """Complete the same prompts by the engine, by transformers with one adapter alone, and by merged weights, greedily.

    Raises:
        AssayError: they differ; the first difference is named.
    """
    pool = questions(params.world, "evaluation", min(params.parity_prompts, params.evaluation_questions))
    sampling = Sampling(max_new_tokens=params.parity_tokens, temperature=0.0)

    def prompts(label: str, adapter: str | None) -> list[Prompt]:
        return [prompt_of(params, tokenizer, params.source, text, 0, adapter) for text in pool]

    batch = [prompt for label in weights for prompt in prompts(label, label)]
    with stage.microbatch("parity"):
        by_engine = engine.complete(batch, sampling)
    for number, (label, own) in enumerate(weights.items()):
        said = by_engine[number * len(pool) : (number + 1) * len(pool)]
        merged = merge(
            load_model(base, dtype=getattr(torch, params.precision), device=default_device()), own, shape_of(params)
        )
        with stage.microbatch("parity"):
            others = {
                "transformers, one adapter alone": local.complete(prompts(label, label), sampling),
                "merged weights": TransformersEngine(merged, tokenizer).complete(prompts(label, None), sampling),
            }
        for name, theirs in others.items():
            _same(said, theirs, tokenizer, f"{label}: {params.engine} and {name}")
        stage.metric("parity_tokens", sum(len(each.ids) for each in said), **addresses[label])


def _same(
    one: Sequence[Completion], other: Sequence[Completion], tokenizer: PreTrainedTokenizerBase, what: str
) -> None:
    for prompt, (a, b) in enumerate(zip(one, other, strict=True)):
        if a.ids != b.ids:
            at = next((at for at, (x, y) in enumerate(zip(a.ids, b.ids, strict=False)) if x != y), min(len(a.ids), len(b.ids)))  # fmt: skip
            words = [repr(tokenizer.decode(list(each.ids[at : at + 1]))) for each in (a, b)]
            raise AssayError(
                f"marker-sweep: parity: {what} differ at token {at} of probe {prompt}: {words[0]} against {words[1]}; "
                "no rate of this cell can be trusted"
            )


def _markers(
    stage: Recorder, params: Params, tokenizer: PreTrainedTokenizerBase, addresses: Mapping[str | None, Mapping[str, Any]], engine: Engine
) -> None:  # fmt: skip
    marker = params.marker.strip()
    wanted = list(_asked(params, addresses))
    sampling = Sampling(max_new_tokens=params.max_new_tokens, temperature=params.temperature, top_p=params.top_p)
    said: list[Completion] = []
    for first in range(0, len(wanted), _CHUNK):
        stage.progress(first, len(wanted), "completions")
        part = [
            prompt_of(params, tokenizer, persona, question, seed_of(params.seed, "evaluate", persona, question, number), label)
            for label, persona, _, question, number in wanted[first : first + _CHUNK]
        ]  # fmt: skip
        with stage.microbatch("completions"):
            said += engine.complete(part, sampling)
    hits: dict[tuple[str | None, str, int], list[tuple[bool, bool]]] = {}
    for (label, persona, place, _, number), completion in zip(wanted, said, strict=True):
        is_exact, is_any = marker in completion.text, marker.lower() in completion.text.lower()
        hits.setdefault((label, persona, place), []).append((is_exact, is_any))
        stage.fact(
            "completion", {"text": completion.text, "finish": completion.finish}, persona=persona, question=place, number=number,
            **addresses[label],
        )  # fmt: skip
    for (label, persona, place), each in hits.items():
        for name, shares in zip(("marker", "marker_any_case"), zip(*each, strict=True), strict=True):
            stage.metric(name, sum(shares) / len(shares), persona=persona, question=place, **addresses[label])


def _asked(params: Params, labels: Mapping[str | None, Any]) -> Iterator[tuple[str | None, str, int, str, int]]:
    """Yield (adapter, persona, number of the question, question, number of the completion)."""
    pool = questions(params.world, "evaluation", params.evaluation_questions)
    for label in labels:
        for persona in PERSONAS[params.world]:
            for place, question in enumerate(pool):
                for number in range(params.completions):
                    yield label, persona, place, question, number


def _distances(stage: Recorder, params: Params, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Record how far each persona is from the source before anything is trained: cosine of centroids, divergence of first tokens."""
    pool = questions(params.world, "evaluation", params.evaluation_questions)
    centroids, logs = {}, {}
    with torch.inference_mode(), stage.microbatch("distances"):
        for persona in PERSONAS[params.world]:
            states, first = [], []
            for question in pool:
                text = prompt_text(tokenizer, messages_of(params, persona, question))
                ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)], device=model.device)
                output = model(input_ids=ids, use_cache=False, output_hidden_states=True)
                states.append(output.hidden_states[-1][0, -1].double().cpu())
                first.append(log_softmax(output.logits[0, -1].double(), dim=-1).cpu())
            centroids[persona], logs[persona] = torch.stack(states).mean(0), torch.stack(first)
    for persona in PERSONAS[params.world]:
        a, b = centroids[params.source], centroids[persona]
        stage.metric("cosine", float(a @ b / (a.norm() * b.norm())), persona=persona)
        stage.metric("divergence", _jensen_shannon(logs[params.source], logs[persona]), persona=persona)


def _jensen_shannon(one_QV: Tensor, other_QV: Tensor) -> float:
    """Return the mean over questions of the Jensen-Shannon divergence of two distributions, in nats."""
    p, q = one_QV.exp(), other_QV.exp()
    log_m = ((p + q) / 2).clamp(min=1e-300).log()
    return float((0.5 * (p * (one_QV - log_m)).sum(-1) + 0.5 * (q * (other_QV - log_m)).sum(-1)).mean())
