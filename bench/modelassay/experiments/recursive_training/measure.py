"""What is measured of a generation: its losses on fixed human text, the variety of what it wrote, and the cheap rivals of the spectrum."""

# N = rows, T = tokens of a row, V = rows of the head, D = hidden dimensions, Q = predicted tokens

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, log_softmax

from modelassay.curvature.sharpness import Direction, critical_sharpness, line_curvature, norm_of, unit
from modelassay.errors import UsageError
from modelassay.evaluation import text_quality as quality
from modelassay.evaluation.loss import mean_loss
from modelassay.evaluation.states import activation_statistics, coherence, mean_states, sentences_of, sigma
from modelassay.experiments.recursive_training.documents import Document, Human, load, pack
from modelassay.experiments.recursive_training.params import Params
from modelassay.experiments.recursive_training.train import corpus_of
from modelassay.models.load import default_device, load_model, load_tokenizer, reproducible
from modelassay.recording.context import Recorder

NUCLEUS = 0.95
"""A rare token is covered where it lies within the likeliest tokens that together reach this."""
HEAD = 0.9
"""Share of the evaluation text that the tokens make up which are not rare."""
LINE_STEP = 0.02
"""Of a central difference along a line, as a share of the weights' norm."""
BATCH = 32


def measure(stage: Recorder, *, params: Params, generation: int, model: Path, previous: Path | None, written: Sequence[Path], own: Path,
            reader: Path) -> None:  # fmt: skip
    """Measure a generation; ``reader`` is the model of generation 0, under whose hidden states texts are compared.

    Metrics of the fixed human text: ``held_out_loss``, ``anchor_entropy``, ``tail_loss`` and ``tail_coverage`` (of its rare tokens), ``gram_rank``, ``gradient_norm``,
    ``critical_sharpness`` with ``sharpness_forwards``, ``random_curvature``; of the text it was trained on ``own_loss``; against the generation before, where there is
    one: ``drift_speed``, ``update_curvature``, ``update_norm``, ``layer_drift`` by ``layer``; by ``layer`` ``activation_rms`` and the rest of `activation_statistics`, and those
    of the last layer without the label; of what it wrote those of `text_measures` and `read_measures`. A number that is not defined is not recorded.
    """
    with reproducible():
        tokenizer = load_tokenizer(model)
        human = Human(params=params, tokenizer=tokenizer)
        rows_NT = human.evaluation()
        loaded: Any = load_model(model, dtype=torch.float32, device=default_device())
        before: Any = None if previous is None else load_model(previous, dtype=torch.float32, device=default_device())
        numbers: dict[str, float] = {}
        with stage.microbatch("forward", tokens=rows_NT.numel()):
            numbers["held_out_loss"] = mean_loss(loaded, rows_NT, batch_size=BATCH)
        trained_on = pack(corpus_of(params, generation, human, written)[: params.evaluation_rows], params.length)
        if len(trained_on):
            numbers["own_loss"] = mean_loss(loaded, trained_on, batch_size=BATCH)
        with stage.microbatch("anchors", tokens=rows_NT.numel()):
            numbers |= anchor_measures(loaded, rows_NT)
            numbers |= {} if before is None else {"drift_speed": drift_speed(loaded, before, rows_NT)}
        spectrum_NT = rows_NT[: params.spectrum_rows]
        numbers |= _lines(stage, params, loaded, before, spectrum_NT)
        references = human.generation(generation + 1)
        with stage.microbatch("text"):
            numbers |= text_measures(stage, params, load(own), references)
        with stage.microbatch("activations", tokens=rows_NT.numel()):
            layers = activation_statistics(loaded, rows_NT, batch_size=BATCH)
        for layer, values in enumerate(layers):
            for name, value in values.items():
                if math.isfinite(value):
                    stage.metric(f"activation_{name}", value, layer=layer)
        numbers |= {f"activation_{name}": value for name, value in layers[-1].items()}
        with stage.microbatch("reading", tokens=rows_NT.numel()):
            numbers |= read_measures(params, load(own), reader)
        if before is not None:
            for part, change in layer_drift(loaded, before).items():
                stage.metric("layer_drift", change, layer=part)
    for name, value in numbers.items():
        if math.isfinite(value):
            stage.metric(name, value)


@torch.no_grad()
def anchor_measures(model: Any, rows_NT: Tensor) -> dict[str, float]:
    """Return what the predictions and hidden states on a text tell.

    ``anchor_entropy``: mean entropy of the next token, in nats. ``tail_loss``: mean loss of rare tokens; ``tail_coverage``: share of them within the nucleus.
    Rare are the targets outside the most frequent tokens that make up `HEAD` of the text. ``gram_rank``: (tr G)^2 / tr G^2 of the Gram matrix of the rows' mean hidden
    states about their mean: in how many directions they vary.
    """
    rare = _rare(rows_NT)
    entropies, losses, covered, means = [], [], [], []
    for part_NT in torch.split(rows_NT.to(model.device), BATCH):
        output = model(input_ids=part_NT, output_hidden_states=True, use_cache=False)
        log_p_QV = log_softmax(output.logits[:, :-1].float(), dim=-1).flatten(0, 1)
        targets_Q = part_NT[:, 1:].flatten()
        p_QV = log_p_QV.exp()
        entropies.append(-(p_QV * log_p_QV).sum(-1))
        is_rare_Q = torch.isin(targets_Q, rare.to(targets_Q.device))
        own_Q1 = log_p_QV.gather(1, targets_Q[:, None])
        losses.append(-own_Q1[is_rare_Q, 0])
        above_Q = (p_QV * (log_p_QV > own_Q1)).sum(-1)
        covered.append((above_Q < NUCLEUS)[is_rare_Q])
        means.append(output.hidden_states[-1].float().mean(1))
    tail_Q, covered_Q = torch.cat(losses), torch.cat(covered)
    states_ND = torch.cat(means).double()
    states_ND = states_ND - states_ND.mean(0)
    gram_NN = states_ND @ states_ND.T
    square = float(gram_NN.square().sum())
    return {
        "anchor_entropy": float(torch.cat(entropies).mean()),
        "tail_loss": float(tail_Q.mean()) if len(tail_Q) else math.nan,
        "tail_coverage": float(covered_Q.float().mean()) if len(covered_Q) else math.nan,
        "gram_rank": float(gram_NN.trace()) ** 2 / square if square else math.nan,
    }


def _rare(rows_NT: Tensor) -> Tensor:
    """Return the tokens that are rare in a text."""
    return torch.tensor(sorted(quality.rare_of(rows_NT[:, 1:].flatten().tolist(), HEAD)), dtype=torch.int64)


@torch.no_grad()
def drift_speed(model: Any, before: Any, rows_NT: Tensor) -> float:
    """Return the mean of 1 - cosine between the last hidden states of two generations, over all positions of a text."""
    total, count = 0.0, 0
    for part_NT in torch.split(rows_NT.to(model.device), BATCH):
        states = [
            each(input_ids=part_NT, output_hidden_states=True, use_cache=False).hidden_states[-1].float()
            for each in (model, before)
        ]
        total += float((1 - cosine_similarity(states[0], states[1], dim=-1)).double().sum())
        count += part_NT.numel()
    return total / count


def _lines(stage: Recorder, params: Params, model: Any, before: Any, rows_NT: Tensor) -> dict[str, float]:
    """Return the gradient's norm and the curvatures along lines, on the text of the spectrum; a line in no direction has none."""

    def loss() -> float:
        return mean_loss(model, rows_NT, batch_size=BATCH)

    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    size = norm_of(weights)
    with stage.microbatch("gradient", tokens=rows_NT.numel()):
        gradient = gradient_of(model, rows_NT)
    norm = norm_of(gradient)
    numbers = {"gradient_norm": norm}
    if norm and math.isfinite(norm):
        with stage.microbatch("sharpness", tokens=rows_NT.numel()):
            descent = {name: -part for name, part in gradient.items()}
            found = critical_sharpness(model, loss, descent, first=LINE_STEP * size / norm)
        numbers |= {"critical_sharpness": found.value, "sharpness_forwards": float(found.forwards)}
    with stage.microbatch("lines", tokens=rows_NT.numel()):
        numbers["random_curvature"] = line_curvature(model, loss, _random(weights, params.seed), step=LINE_STEP * size)
        if before is not None:
            update = {name: weights[name] - weight.detach() for name, weight in before.named_parameters()}
            numbers["update_norm"] = norm_of(update)
            try:
                numbers["update_curvature"] = line_curvature(model, loss, unit(update), step=LINE_STEP * size)
            except UsageError:  # two generations with the same weights
                numbers["update_curvature"] = math.nan
    return numbers


def gradient_of(model: Any, rows_NT: Tensor) -> dict[str, Tensor]:
    """Return the gradient of the mean loss per predicted token of rows of one length, by all weights."""
    model.zero_grad()
    for part_NT in torch.split(rows_NT.to(model.device), BATCH):
        (model(input_ids=part_NT, labels=part_NT).loss * (len(part_NT) / len(rows_NT))).backward()
    gradient = {
        name: weight.grad.detach().clone() for name, weight in model.named_parameters() if weight.grad is not None
    }
    model.zero_grad()
    return gradient


def _random(weights: Mapping[str, Tensor], seed: int) -> Direction:
    """A direction that depends on the seed and the shapes alone: the same for every generation and condition."""
    generator = torch.Generator().manual_seed(seed)
    return unit({name: torch.randn(weight.shape, generator=generator).to(weight) for name, weight in weights.items()})


def layer_drift(model: Any, before: Any) -> dict[str, float]:
    """Return the norm of the change of each layer's weights over that of the weights; ``other`` is what is in no layer."""
    changes: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    old = dict(before.named_parameters())
    for name, weight in model.named_parameters():
        parts = name.split(".")
        at = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
        layer = "other" if at is None else parts[at]
        changes[layer] += float((weight.detach() - old[name].detach()).double().square().sum())  # type: ignore[assignment]
        sizes[layer] += float(old[name].detach().double().square().sum())  # type: ignore[assignment]
    return {layer: math.sqrt(change / sizes[layer]) for layer, change in changes.items() if sizes[layer]}


def text_measures(
    stage: Recorder, params: Params, documents: Sequence[Document], references: Sequence[Document]
) -> dict[str, float]:
    """Return how varied and how grammatical documents are (`evaluation.text_quality`), against human ones with the same beginnings.

    ``parse_rate`` and ``finished_sentences`` only of the project's own grammar. A fact ``bleu_signature`` says how BLEU was counted.
    """
    texts = [document.text for document in documents[: params.quality_texts]]
    human = [document.text for document in references[: params.quality_texts]]
    score, signature = quality.bleu(texts, human)
    stage.fact("bleu_signature", signature)
    numbers = {
        **{f"distinct_{n}": quality.distinct(texts, n) for n in (1, 2, 3)},
        "repetition": quality.repetition(texts), "word_entropy": quality.word_entropy(texts),
        "vocabulary_diversity": quality.vocabulary_diversity(texts), "tail_mass": quality.tail_mass(texts, human),
        "unknown_share": quality.unknown_share(texts, human), "self_bleu": quality.self_bleu(texts[: params.self_bleu_texts]),
        "bleu": score, "rouge_l": quality.rouge_l(texts, human),
    }  # fmt: skip
    if params.language is not None:
        rate, count = quality.parse_rate(texts, params.language)
        numbers |= {"parse_rate": rate if count else 0.0, "finished_sentences": float(count)}
    return numbers


def read_measures(params: Params, documents: Sequence[Document], reader: Path) -> dict[str, float]:
    """Return what documents are like under the hidden states of the model of generation 0.

    ``coherence``: mean cosine of adjacent sentences; ``coherence_chance``: that of sentences of different documents. ``sigma_volume``: `sigma` of so many
    documents as the model has dimensions twice over, ``quality_texts`` at least; ``sigma_bound``, where those are not all, its conservative form.
    """
    model: Any = load_model(reader, dtype=torch.float32, device=default_device())
    tokenizer = load_tokenizer(reader)
    parts = [sentences_of(document.text, params.language) for document in documents[: params.quality_texts]]
    numbers_N = [number for number, sentences in enumerate(parts) for _ in sentences]
    states_ND = mean_states(model, tokenizer, [sentence for sentences in parts for sentence in sentences])
    adjacent, chance = coherence(states_ND, numbers_N)
    count = max(params.quality_texts, 2 * model.config.get_text_config().hidden_size)
    volume, bound = sigma(
        mean_states(model, tokenizer, [each.text for each in documents[:count]]), total=len(documents)
    )
    return {"coherence": adjacent, "coherence_chance": chance, "sigma_volume": volume, "sigma_bound": bound}
