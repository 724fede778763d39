"""Stages that train: the fine-tuning with its convergence check, retrainings on subsets, and retrainings without each method's best rows."""

# suffix _Q: queries

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelassay.errors import Diverged
from modelassay.experiments.influence.params import Params
from modelassay.experiments.influence.rows import Prepared, Text, load_rows
from modelassay.models.load import default_device, load_model, reproducible, threads_for
from modelassay.models.reference import Model
from modelassay.models.tokenizer import copy_tokenizer
from modelassay.recording.context import Recorder
from modelassay.training.loop import Hook, causal_loss, fit, stop_if_diverged
from modelassay.training.resume import StageCheckpoints
from modelassay.training.rows import Batches, collate, of_rows, shuffled

MODEL = "model"
_ANSWERS = "answers.json"


def fine_tune(stage: Recorder, *, params: Params, model: Model, rows: Path) -> None:
    """Fine-tune and record ``loss``, ``grad_norm``, ``learning_rate`` by step; then whether it has converged.

    ``final_gradient`` is the norm of the mean loss's gradient over all rows, beside ``first_gradient`` before training; ``plateau`` the
    share of the whole fall of the loss that came last (`plateau`). Influence assumes a minimum: where the plateau is above `params.PLATEAU` the first named cause
    of its failure is there. Also ``held_out_loss``, ``answered`` (share of queries answered right) of the base and of the result.

    Raises:
        Diverged: the loss became NaN or infinite.
    """
    setting, prepared = params.setting, load_rows(rows)
    with reproducible(threads_for(model.sizes().hidden_size)):
        trained: Any = model.load(dtype=getattr(torch, setting.precision), device=default_device())
        tokenizer = model.tokenizer()
        chosen = range(len(prepared.rows))
        base = answers_of(trained, tokenizer, prepared.queries, params.max_new_tokens)
        _evaluate(stage, trained, prepared, base, model="base")
        first = gradient_norm(trained, prepared)
        result = fit(trained, batches(prepared, chosen, params, seed=stage.seed("order")), setting.training, timer=_timer(stage, "step", setting.training.num_steps),
                     checkpoints=StageCheckpoints(stage), hooks=[Hook(every=1, call=stop_if_diverged)])  # fmt: skip
        for step in result.steps:
            for name in ("loss", "grad_norm", "learning_rate"):
                stage.metric(name, getattr(step, name), step=step.step)
        if result.kept:
            raise Diverged(f"the loss was not finite at step {result.kept[-1]['diverged_at']}; lower the learning rate")
        stage.metric("first_gradient", first)
        stage.metric("final_gradient", gradient_norm(trained, prepared))
        stage.metric("plateau", plateau([step.loss for step in result.steps]))
        tuned = answers_of(trained, tokenizer, prepared.queries, params.max_new_tokens)
        _evaluate(stage, trained, prepared, tuned, model="fine-tuned")
        trained.save_pretrained(stage.folder / MODEL)
        copy_tokenizer(model.tokenizer_folder, stage.folder / MODEL)
        told = [{"prompt": query.prompt, "right": query.answer, "base": one["text"], "fine-tuned": two["text"], "ids": two["ids"]}
                for query, one, two in zip(prepared.queries, base, tuned, strict=True)]  # fmt: skip
        (stage.folder / _ANSWERS).write_text(json.dumps(told))
        for number, answer in enumerate(told):
            stage.fact("answer", {key: value for key, value in answer.items() if key != "ids"}, query=number)


def own_answers(folder: Path) -> list[list[int]]:
    """Return the tokens that the fine-tuned model of stage ``fine-tune`` answers each query with."""
    return [answer["ids"] for answer in json.loads((folder / _ANSWERS).read_text())]


def plateau(losses: Sequence[float]) -> float:
    """Return what share of a training's whole fall of the loss came between its third quarter and its last; 0 for fewer than eight steps.

    The whole fall is from the first step to the mean of the last quarter: against the last loss alone no model that learns its rows by heart
    ever settles, since that loss goes to 0.

    >>> plateau([4.0] * 4 + [2.5] * 2 + [2.0] * 2)
    0.25
    """
    quarter = len(losses) // 4
    if quarter < 2:
        return 0.0
    before, last = fmean(losses[-2 * quarter : -quarter]), fmean(losses[-quarter:])
    return (before - last) / (losses[0] - last) if losses[0] > last else 0.0


def _timer(stage: Recorder, name: str, total: int) -> Any:
    def timed(*, tokens: int, step: int) -> AbstractContextManager[object]:
        stage.progress(step + 1, total, "steps")
        return stage.microbatch(name, tokens=tokens)

    return timed


def batches(prepared: Prepared, chosen: Sequence[int], params: Params, *, seed: int) -> Batches:
    """Return the batches of the rows ``chosen``, each epoch in an order of its own."""
    setting = params.setting
    rows = [prepared.rows[number].row for number in chosen]
    order = shuffled(len(rows), seed=seed % 2**63, num_epochs=setting.epochs)
    return of_rows(rows, batch_size=setting.batch_size, filling=0, order=order)


@torch.no_grad()
def row_losses(model: Any, texts: Sequence[Text], *, batch_size: int = 64) -> Tensor:
    """Return the summed loss of each row's answer, in nats, [rows] in fp64."""
    parts = []
    for start in range(0, len(texts), batch_size):
        batch = collate([text.row for text in texts[start : start + batch_size]], filling=0)
        logits = model(input_ids=batch.ids_BS.to(model.device), use_cache=False).logits[:, :-1].float()
        labels = batch.labels_BS[:, 1:].to(model.device)
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100
        )
        parts.append(losses.view(labels.shape).double().sum(1).cpu())
    return torch.cat(parts)


def gradient_norm(model: Any, prepared: Prepared) -> float:
    """Return the norm of the gradient of the mean loss per token over all rows, by all weights."""
    total = sum(sum(text.row.loss[1:]) for text in prepared.rows)
    model.zero_grad()
    for start in range(0, len(prepared.rows), 64):
        batch = collate([text.row for text in prepared.rows[start : start + 64]], filling=0)
        loss = causal_loss(model, batch) * (batch.num_targets / total)
        loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
    model.zero_grad()
    return float(norm)


@torch.no_grad()
def answers_of(model: Any, tokenizer: Any, queries: Sequence[Text], max_new_tokens: int) -> list[dict[str, Any]]:
    """Return each query's greedy answer, its tokens (with the one that ends texts, if it came) and its text."""
    ids = [list(query.row.ids[: query.num_prompt]) for query in queries]
    ended = [False] * len(ids)
    for _ in range(max_new_tokens):
        length = max(map(len, ids))
        padded = torch.tensor([[*row, *[0] * (length - len(row))] for row in ids], device=model.device)
        logits = model(input_ids=padded, use_cache=False).logits
        for number, row in enumerate(ids):
            if not ended[number]:
                row.append(int(logits[number, len(row) - 1].argmax()))
                ended[number] = row[-1] == tokenizer.eos_token_id
        if all(ended):
            break
    new = [row[query.num_prompt :] for row, query in zip(ids, queries, strict=True)]
    return [{"ids": row, "text": tokenizer.decode(row, skip_special_tokens=True).strip()} for row in new]


def _evaluate(
    stage: Recorder, tuned: Any, prepared: Prepared, answers: Sequence[Mapping[str, Any]], **labels: str
) -> None:
    known = [(query, answer) for query, answer in zip(prepared.queries, answers, strict=True) if query.answer]
    for number, (query, answer) in enumerate(known):
        stage.metric("right", float(answer["text"] == query.answer), query=number, **labels)
    if prepared.held_out:
        counts = sum(sum(text.row.loss[1:]) for text in prepared.held_out)
        stage.metric("held_out_loss", float(row_losses(tuned, prepared.held_out).sum()) / counts, **labels)


class _Retraining:
    """Retrainings from the same base weights; each is a unit, and what it gave is kept in the checkpoint."""

    def __init__(
        self, stage: Recorder, params: Params, model: Model, tuned: Path, prepared: Prepared, queries: Sequence[Text]
    ) -> None:
        self.stage, self.params, self.prepared, self.queries = stage, params, prepared, queries
        self.model: Any = model.load(dtype=getattr(torch, params.setting.precision), device=default_device())
        self.base = {name: weight.detach().clone() for name, weight in self.model.state_dict().items()}
        self.tokenizer = model.tokenizer()
        saved = stage.restore()
        self.results: list[dict[str, Any]] = [] if saved is None else list(saved.payload["results"])

    def results_of(self, jobs: Sequence[tuple[Sequence[int], str]]) -> list[dict[str, Any]]:
        """Return losses and answers of each job: the rows that are trained on, and the stream of their order."""
        for number in range(len(self.results), len(jobs)):
            rows, stream = jobs[number]
            self.stage.progress(number + 1, len(jobs), "retrainings")
            self.model.load_state_dict(self.base)
            setting = self.params.setting
            with self.stage.microbatch("retraining"):
                fit(
                    self.model,
                    batches(self.prepared, rows, self.params, seed=self.stage.seed(stream)),
                    setting.training_of(len(rows)),
                )
                losses_Q = row_losses(self.model, self.queries)
                answers = answers_of(self.model, self.tokenizer, self.queries, self.params.max_new_tokens)
            self.results.append({"losses": losses_Q.tolist(), "answers": [answer["ids"] for answer in answers]})
            if self.stage.checkpoint_due():
                self.stage.checkpoint({"results": self.results})
        return self.results


def subsets_of(prepared: Prepared, *, count: int, alpha: float, seed: int) -> list[list[int]]:
    """Return random subsets of the rows, rows that are the same to the token together in or out."""
    groups = prepared.groups()
    together = {number for group in groups for number in group}
    units = [*groups, *([number] for number in range(len(prepared.rows)) if number not in together)]
    rng = np.random.default_rng(seed)
    size = round(alpha * len(units))
    return [
        sorted(number for unit in rng.permutation(len(units))[:size] for number in units[unit]) for _ in range(count)
    ]


def retrain(stage: Recorder, *, params: Params, model: Model, rows: Path, tuned: Path, queries: Sequence[Text]) -> None:
    """Retrain on random subsets; facts ``subsets`` and ``subset-losses`` [subset][repeat][query]. No score is known here."""
    setting, prepared = params.setting, load_rows(rows)
    with reproducible(threads_for(model.sizes().hidden_size)):
        subsets = subsets_of(prepared, count=setting.subsets, alpha=setting.alpha, seed=stage.seed("subsets"))
        jobs = [
            (subset, f"order {repeat} of subset {number}")
            for number, subset in enumerate(subsets)
            for repeat in range(setting.repeats)
        ]
        results = _Retraining(stage, params, model, tuned, prepared, queries).results_of(jobs)
    losses = np.array([result["losses"] for result in results]).reshape(setting.subsets, setting.repeats, -1)
    (stage.folder / "subsets.json").write_text(json.dumps(subsets))
    stage.fact("subset-losses", losses.round(6).tolist())


def remove(stage: Recorder, *, params: Params, model: Model, rows: Path, tuned: Path, queries: Sequence[Text],
           removed: Mapping[str, Sequence[int]]) -> None:  # fmt: skip
    """Retrain with all rows (``nothing``) and without each method's best rows, with `removal_seeds` orders each, the same for every method.

    Metrics by ``method``, ``seed`` and ``query``: ``removed_loss``, the summed loss of the query's answer, and ``flipped``, whether the greedy
    answer is another than the fine-tuned model's; ``removed_rows`` by method.
    """
    setting, prepared = params.setting, load_rows(rows)
    every = range(len(prepared.rows))
    methods = {"nothing": (), **removed}
    with reproducible(threads_for(model.sizes().hidden_size)):
        jobs = [
            (sorted(set(every) - set(gone)), f"order {seed}")
            for gone in methods.values()
            for seed in range(setting.removal_seeds)
        ]
        results = _Retraining(stage, params, model, tuned, prepared, queries).results_of(jobs)
    before = own_answers(tuned)
    for place, (method, gone) in enumerate(methods.items()):
        stage.metric("removed_rows", len(set(gone)), method=method)
        for seed in range(setting.removal_seeds):
            result = results[place * setting.removal_seeds + seed]
            for query, (loss, ids) in enumerate(zip(result["losses"], result["answers"], strict=True)):
                stage.metric("removed_loss", loss, method=method, seed=seed, query=query)
                stage.metric("flipped", float(ids != before[query]), method=method, seed=seed, query=query)


def load_tuned(folder: Path, params: Params) -> Any:
    """Return the fine-tuned model of stage ``fine-tune``."""
    return load_model(folder / MODEL, dtype=getattr(torch, params.setting.precision), device=default_device())
