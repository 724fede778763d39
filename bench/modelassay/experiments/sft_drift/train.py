"""The stage of a cell: a training that measures itself, resumable to the bit, and what it records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from modelassay.evaluation.loss import mean_loss
from modelassay.experiments.sft_drift.params import Params, Setting
from modelassay.experiments.sft_drift.text import Rows, rows_for
from modelassay.fingerprints.bottom_k.prompts import PromptConfig
from modelassay.fingerprints.drift.measure import measure_answers, measure_weights
from modelassay.fingerprints.drift.numeric import mobility, total
from modelassay.fingerprints.drift.reference import Reference, last_answers, reference_of
from modelassay.fingerprints.drift.snapshot import NORM, Snapshot, trained
from modelassay.models.load import default_device, reproducible, threads_for
from modelassay.models.reference import Model
from modelassay.recording.context import Recorder
from modelassay.statistics.trends import is_flat, slope
from modelassay.training.loop import Finished, Hook, Moment, Trained, autocast, fit, stop_if_diverged
from modelassay.training.resume import StageCheckpoints
from modelassay.training.rows import of_blocks, shuffled

OUTCOME = "outcome.json"
PER_PROMPT = ("overlap_exact", "overlap", "rank_biased", "kl_forward", "kl_backward", "hidden_cosine")
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj")


def train(stage: Recorder, *, params: Params, reference: Model, start: Model) -> None:
    """Train and record, each with ``step`` (0 is before training).

    Metrics with ``prompt``: ``overlap_exact``, ``overlap``, ``kl_forward``, and means over prompts of ``rank_biased``, ``kl_backward``,
    ``hidden_cosine``; ``loss`` (raw, of the step before), ``grad_norm`` (before clipping), ``num_nonfinite``; ``held_out_loss``; ``moved``, ``moved_norms``,
    ``curve_correlation``, ``distance[layer]``. Without a step: ``mobility`` (predicted at the highest learning rate), ``mobility_norms``,
    ``decaying``, ``chance``, ``chance_exact``, ``padded``, ``num_weights``, ``precision_gap``. Facts: ``text`` (its digest), ``ended`` (why).
    Units: ``step``, ``answers``, ``weights``, ``held-out``; ``one-forward`` and ``prompt-by-prompt`` time the two ways to ask.
    """
    setting = params.setting
    with reproducible(threads_for(reference.sizes().hidden_size)):
        _Training(stage, params, setting, reference, start).run()


class _Training:
    """One training with its reference, at step 0 or where it was left."""

    def __init__(self, stage: Recorder, params: Params, setting: Setting, reference: Model, start: Model) -> None:
        self.stage, self.setting, self.seed = stage, setting, params.seed
        self.training = setting.training()
        self.device = default_device()
        self.tokenizer = reference.tokenizer()
        self.rows: Rows = rows_for(params, self.tokenizer)
        config = PromptConfig(num_prompts=params.num_prompts, length=params.prompt_length)
        self.reference, self.gap = self._reference(reference, config)
        torch.manual_seed(stage.seed("adapters"))
        self.model: Any = self._prepared(start)
        self.snapshot = self._snapshot(stage.folder / "weights.safetensors")

    def run(self) -> None:
        """Train, and record what was measured."""
        predicted = self._predictions()  # of the weights before the first step
        torch.manual_seed(self.stage.seed("training"))
        checkpoints = StageCheckpoints(self.stage)
        first = self._look(0, None)
        trained_so_far = fit(
            self.model, self._batches(), self.training, timer=self._unit_of_step, checkpoints=checkpoints,
            hooks=[Hook(every=1, call=stop_if_diverged), Hook(every=self.setting.every, call=self._hook)],
        )  # fmt: skip
        self._time_both_ways()
        self._record(first, trained_so_far, predicted)
        self.snapshot.path.unlink(missing_ok=True)

    def _reference(self, reference: Model, config: PromptConfig) -> tuple[Reference, float | None]:
        """Return the reference, and how much of the published overlap the precision in which it is asked takes away."""
        folder = self.stage.folder / "reference"
        as_trained = self.setting.reference_precision == "as-trained"
        name = self.training.weights if as_trained else self.setting.reference_precision
        if not (folder / "gap.json").exists():
            model = reference.load(dtype=getattr(torch, name), device=self.device)
            with self._autocast(model) if as_trained else nullcontext():
                reference_of(model, self.tokenizer, config).save(folder)
            gap = None
            if not as_trained:
                same = reference.load(dtype=getattr(torch, self.training.weights), device=self.device)
                with self._autocast(same):
                    gap = fmean(measure_answers(same, Reference.load(folder)).overlap_exact)
            (folder / "gap.json").write_text(json.dumps(gap))
        return Reference.load(folder), json.loads((folder / "gap.json").read_text())

    def _prepared(self, start: Model) -> Any:
        model: Any = start.load(dtype=getattr(torch, self.training.weights), device=self.device)
        if self.setting.resized_head:
            model.resize_token_embeddings(len(self.tokenizer))
        if self.setting.tune == "frozen-embedding":
            for module in (model.get_input_embeddings(), model.get_output_embeddings()):
                module.weight.requires_grad_(False)
        if self.setting.tune == "lora":
            from peft import LoraConfig, get_peft_model

            adapter = LoraConfig(
                r=self.setting.rank,
                lora_alpha=2 * self.setting.rank,
                target_modules=list(ADAPTED),
                task_type="CAUSAL_LM",
            )
            model = get_peft_model(model, adapter, autocast_adapter_dtype=False)
        return model

    def _snapshot(self, path: Path) -> Snapshot:
        return Snapshot(path) if path.exists() else Snapshot.take(self.model, path)

    def _batches(self) -> Any:
        blocks_BT = self.rows.trained_BT
        return of_blocks(
            blocks_BT,
            batch_size=self.setting.batch_size,
            order=shuffled(len(blocks_BT), seed=self.seed, num_epochs=self.setting.epochs),
        )

    def _autocast(self, model: Any) -> AbstractContextManager[Any]:
        return autocast(model, self.training)

    def _unit_of_step(self, *, tokens: int, step: int) -> AbstractContextManager[object]:
        self.stage.progress(step + 1, self.setting.steps, "steps")
        return self.stage.microbatch("step", tokens=tokens)

    def _hook(self, moment: Moment) -> dict[str, Any]:
        result = self._look(moment.num_updates, moment)
        if self.setting.flat_slope is not None and self._is_flat([*moment.kept, result]):
            raise Finished({**result, "flat": True})
        return result

    def _look(self, step: int, moment: Moment | None) -> dict[str, Any]:
        """Return everything that is measured at a step, as JSON."""
        setting, model = self.setting, self.model
        num_tokens = sum(map(len, self.reference.rows))
        with self._autocast(model):
            with self.stage.microbatch("answers", tokens=num_tokens):
                answers = measure_answers(model, self.reference)
            line: dict[str, Any] = {"step": step, **answers.to_json()}
            if step % setting.loss_every == 0:
                model.eval()
                with self.stage.microbatch("held-out", tokens=self.rows.held_out_BT.numel()):
                    line["held_out_loss"] = mean_loss(model, self.rows.held_out_BT, batch_size=setting.batch_size)
        if step % setting.weights_every == 0 or step == setting.steps:
            with self.stage.microbatch("weights"):
                line["weights"] = measure_weights(model, self.reference, self.snapshot)
        if moment is not None:
            last = moment.last
            line |= {"loss": last.loss, "grad_norm": last.grad_norm, "num_nonfinite": last.num_nonfinite}
        return line

    def _is_flat(self, kept: Sequence[Any]) -> bool:
        curve = [(each["step"], fmean(each["overlap"])) for each in kept if "overlap" in each]
        if len(curve) < self.setting.flat_after:
            return False
        steps, overlaps = np.array(curve[len(curve) // 2 :]).T
        return is_flat(slope(steps, overlaps), (self.setting.flat_slope or 0.0) / 100)

    def _predictions(self) -> dict[str, float]:
        rate, decay = self.setting.learning_rate, self.setting.weight_decay
        parts = {name: mobility(weight, rate, decay=rate * decay if weight.ndim >= 2 else 0.0)
                 for name, weight in trained(self.model).items()}  # fmt: skip
        whole, norms = total(parts.values()), total(part for name, part in parts.items() if NORM.search(name))
        predictions = {"mobility": whole.share, "num_weights": whole.num_weights}
        if norms.num_weights:
            predictions["mobility_norms"] = norms.share
        if decay:
            predictions["decaying"] = whole.num_decaying / whole.num_weights
        return predictions

    def _time_both_ways(self) -> None:
        """Time one forward pass of all prompts against the published way: two passes of one prompt, for each prompt; once, as cells repeat it."""
        rows = self.reference.rows
        with self._autocast(self.model):
            with self.stage.microbatch("one-forward", tokens=sum(map(len, rows))):
                measure_answers(self.model, self.reference)
            with self.stage.microbatch("prompt-by-prompt", tokens=2 * sum(map(len, rows))):
                for row in rows:
                    for _twice in range(2):
                        last_answers(self.model, [row])

    def _record(self, first: Mapping[str, Any], result: Trained, predicted: Mapping[str, float]) -> None:
        stage, kept = self.stage, [first, *(each for each in result.kept if "step" in each)]
        for line in kept:
            _record_line(stage, line)
        for name, value in predicted.items():
            stage.metric(name, value)
        stage.metric("chance", self.reference.chance)
        stage.metric("chance_exact", self.reference.chance_exact)
        stage.metric("padded", self.reference.padded)
        if self.gap is not None:
            stage.metric("precision_gap", 1 - self.gap)
        diverged_at = next((each["diverged_at"] for each in result.kept if "diverged_at" in each), None)
        if diverged_at is not None:
            stage.metric("diverged_at", diverged_at)
        stage.fact("text", self.rows.digest)
        flat = any(each.get("flat") for each in result.kept)
        stage.fact("ended", "diverged" if diverged_at is not None else "flat" if flat else "all steps")
        (stage.folder / OUTCOME).write_text(json.dumps({"diverged_at": diverged_at}))


def _record_line(stage: Recorder, line: Mapping[str, Any]) -> None:
    step = line["step"]
    for name in PER_PROMPT:
        if name in {"overlap_exact", "overlap", "kl_forward"}:
            for prompt, value in enumerate(line[name]):
                stage.metric(name, value, step=step, prompt=prompt)
        else:
            stage.metric(name, fmean(line[name]), step=step)
    for name in ("loss", "grad_norm", "num_nonfinite", "held_out_loss"):
        if name in line:
            stage.metric(name, line[name], step=step)
    weights = line.get("weights")
    if weights is not None:
        for name in ("moved", "moved_norms", "curve_correlation"):
            if weights[name] is not None:
                stage.metric(name, weights[name], step=step)
        for layer, distance in weights["distance"].items():
            stage.metric("distance", distance, step=step, layer=layer)
