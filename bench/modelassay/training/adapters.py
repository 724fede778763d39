"""Several low-rank adapters trained together on one frozen base, each as if it were alone.

::

    lessons = [Lesson(name="a", training=..., batches=..., seed=0, keep={120: "a/epochs-1"}), ...]
    learned = fit_adapters(bank, lessons, keep=write, checkpoints=StageCheckpoints(stage))

The rows of all adapters go through the base's products as one batch; low-rank parts, losses, clipping, averages and schedules are
each one's own, so an adapter's course does not depend on the others but through the order in which sums are taken. One that
diverges is set aside with its step, and the others go on. The head's logits are computed only where a token carries loss.
"""

# N = adapters still training, B = rows of one adapter's batch, S = tokens of a row, P = positions that carry loss, V = vocabulary

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from modelassay.errors import CheckpointError, UsageError
from modelassay.models.low_rank import Bank
from modelassay.training.loop import Step, StepTimer, batch_digest, untimed
from modelassay.training.optimiser import AdamW, count_nonfinite
from modelassay.training.resume import Resumable, Saved
from modelassay.training.rows import IGNORED, Batch, Batches
from modelassay.training.schedule import fraction
from modelassay.training.settings import Training

Keep = Callable[[str, str, Mapping[str, Tensor]], None]
"""Called as ``keep(name, label, weights)`` when an adapter has made as many updates as a key of its `Lesson.keep` says."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What one adapter is taught."""

    name: str
    training: Training
    """Of all lessons batch size and accumulation must be the same."""
    batches: Batches
    seed: int
    """Of matrix A and of dropout."""
    keep: Mapping[int, str] = field(default_factory=dict)
    """Number of updates to the label under which the weights are kept at that moment."""


@dataclass(kw_only=True)
class Learned:
    """How one adapter's training went."""

    steps: list[Step] = field(default_factory=list)
    diverged_at: int | None = None
    """Updates after which its loss or a gradient was no number; the weights are those before."""


def fit_adapters(
    bank: Bank, lessons: Sequence[Lesson], *, keep: Keep | None = None, timer: StepTimer = untimed,
    checkpoints: Resumable | None = None,
) -> dict[str, Learned]:  # fmt: skip
    """Train adapters from their initial weights, or from the last checkpoint if there is one; the bank then holds none.

    Args:
        bank: of the frozen base; what it holds is replaced.
        lessons: one for each adapter.
        keep: takes the weights where a lesson says so; called again for the same moment after a kill.
        timer: wraps each step, batches apart.
        checkpoints: where to go on from, and where to write.

    Raises:
        UsageError: lessons of different batch sizes or names, too few batches, or a batch without loss.
        CheckpointError: the checkpoint is damaged, or belongs to another training.
    """
    _check(bank, lessons)
    class_ = _Class(bank, lessons, keep)
    saved = checkpoints.latest() if checkpoints else None
    first = 0 if saved is None else class_.restore(saved)
    for step in range(first, max(lesson.training.num_steps for lesson in lessons)):
        class_.attend(step)
        if not class_.present:
            break
        parts = class_.parts(step)
        with timer(tokens=sum(batch.num_tokens for part in parts for batch in part), step=step):
            class_.learn(step, parts)
        if checkpoints is not None and checkpoints.due():
            checkpoints.save(step + 1, class_.tensors(), class_.document(step + 1))
    bank.fill([], [])
    return class_.learned


class _Class:
    """The adapters that are being trained, and how far they are."""

    def __init__(self, bank: Bank, lessons: Sequence[Lesson], keep: Keep | None) -> None:
        self.bank, self.keep = bank, keep
        self.lessons = {lesson.name: lesson for lesson in lessons}
        self.learned = {lesson.name: Learned() for lesson in lessons}
        self.present: list[Lesson] = list(lessons)
        self.optimisers: dict[str, AdamW] = {}
        self._seat({lesson.name: bank.initial(lesson.seed) for lesson in lessons}, {})

    def _seat(self, weights: Mapping[str, Mapping[str, Tensor]], states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put the adapters that are present into the bank; optimisers go on from ``states``."""
        names = [lesson.name for lesson in self.present]
        self.bank.fill(names, [weights[name] for name in names])
        for tensor in (*self.bank.a, *self.bank.b):
            tensor.requires_grad_(True)
        self.optimisers = {}
        for lesson in self.present:
            optimiser = AdamW(self.bank.weights(lesson.name), lesson.training)
            if lesson.name in states:
                optimiser.restore(states[lesson.name])
            self.optimisers[lesson.name] = optimiser

    def attend(self, step: int) -> None:
        """Let those go that have ended."""
        staying = [
            lesson
            for lesson in self.present
            if lesson.training.num_steps > step and self.learned[lesson.name].diverged_at is None
        ]
        if len(staying) == len(self.present):
            return
        weights = {
            lesson.name: {key: value.clone() for key, value in self.bank.weights(lesson.name).items()}
            for lesson in staying
        }
        states = {lesson.name: self.optimisers[lesson.name].tensors() for lesson in staying}
        self.present = staying
        self._seat(weights, states)

    def parts(self, step: int) -> list[list[Batch]]:
        """Return for each pass of the step the batches of all adapters."""
        passes = self.present[0].training.accumulation
        parts = [
            [lesson.batches[number] for lesson in self.present] for number in range(step * passes, (step + 1) * passes)
        ]
        for at, lesson in enumerate(self.present):
            if not any(part[at].num_targets for part in parts):
                raise UsageError(
                    f"training: no token carries loss at step {step} of {lesson.name}; look at the rows' loss marks"
                )
        return parts

    def learn(self, step: int, parts: Sequence[Sequence[Batch]]) -> None:
        """Make one update of each adapter."""
        counts = [sum(part[at].num_targets for part in parts) for at in range(len(self.present))]
        totals = [0.0] * len(self.present)
        for number, part in enumerate(parts):
            losses_N = self._losses(step, number, part, counts)
            losses_N.sum().backward()  # type: ignore[no-untyped-call]
            totals = [total + value for total, value in zip(totals, losses_N.tolist(), strict=True)]
        gradients = {
            f"{layer}.{kind}": tensor.grad
            for kind, stack in (("lora_A", self.bank.a), ("lora_B", self.bank.b))
            for layer, tensor in zip(self.bank.layers, stack, strict=True)
        }
        for at, lesson in enumerate(self.present):
            optimiser, tokens = self.optimisers[lesson.name], sum(part[at].num_tokens for part in parts)
            for name, weight in optimiser.weights.items():
                gradient = gradients[name]
                assert gradient is not None
                weight.grad = gradient[at]
            self._update(step, lesson, optimiser, totals[at], counts[at], tokens)
        for tensor in (*self.bank.a, *self.bank.b):
            tensor.grad = None

    def _losses(self, step: int, number: int, part: Sequence[Batch], counts: Sequence[int]) -> Tensor:
        """Return the share that this pass has in each adapter's mean loss, [N]."""
        training = self.present[0].training
        ids, labels = _joined(part, training.batch_size)
        masks = [
            (_dropout_seed(lesson.seed, step, number), batch.ids_BS.shape[1])
            for lesson, batch in zip(self.present, part, strict=True)
        ]
        model: Any = self.bank.model
        device = model.device
        context = (
            torch.autocast(device.type, dtype=getattr(torch, training.autocast)) if training.autocast else nullcontext()
        )
        with context, self.bank.grouped(masks):
            hidden = model.get_decoder()(input_ids=ids.to(device), use_cache=False).last_hidden_state
            row_P, place_P = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
            logits_PV = model.get_output_embeddings()(hidden[row_P.to(device), place_P.to(device)])
        losses_P = cross_entropy(logits_PV.float(), labels[row_P, place_P + 1].to(device), reduction="none")
        owner_P = (row_P // training.batch_size).to(device)
        sums_N = losses_P.new_zeros(len(part)).index_add(0, owner_P, losses_P)
        return sums_N / torch.tensor(counts, device=device, dtype=losses_P.dtype)

    def _update(
        self, step: int, lesson: Lesson, optimiser: AdamW, loss: float, num_targets: int, num_tokens: int
    ) -> None:
        training, learned = lesson.training, self.learned[lesson.name]
        optimiser.collect()
        gradients = optimiser.gradients()
        norm = torch.nn.utils.get_total_norm(gradients)
        num_nonfinite = 0 if math.isfinite(norm.item()) else count_nonfinite(gradients)
        rate = training.learning_rate * fraction(step, training)
        learned.steps.append(
            Step(step=step, loss=loss, grad_norm=norm.item(), num_nonfinite=num_nonfinite, learning_rate=rate,
                 num_tokens=num_tokens, num_targets=num_targets)
        )  # fmt: skip
        if not math.isfinite(loss) or num_nonfinite:
            learned.diverged_at = step
            return
        if training.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(optimiser.updated.values(), training.max_grad_norm, norm)
        optimiser.step(rate)
        if self.keep is not None and (label := lesson.keep.get(step + 1)) is not None:
            self.keep(lesson.name, label, optimiser.weights)

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights and averages of all that are present."""
        tensors: dict[str, Tensor] = {}
        for name, optimiser in self.optimisers.items():
            tensors |= {f"weights/{name}/{key}": value for key, value in optimiser.weights.items()}
            tensors |= {f"optimiser/{name}/{key}": value for key, value in optimiser.tensors().items()}
        return tensors

    def document(self, step: int) -> dict[str, Any]:
        """Return all else that a checkpoint holds."""
        return {
            "lessons": self._identity(),
            "present": [lesson.name for lesson in self.present],
            "learned": {name: asdict(learned) for name, learned in self.learned.items()},
            "last_batch": self._digest(step),
        }

    def _identity(self) -> dict[str, Any]:
        return {
            name: {
                "training": each.training.recipe(), "seed": each.seed, "keep": {str(at): to for at, to in each.keep.items()},
                "shape": {**asdict(self.bank.shape), "targets": list(self.bank.layers)},
            }
            for name, each in self.lessons.items()
        }  # fmt: skip

    def _digest(self, step: int) -> str:
        passes = self.present[0].training.accumulation
        return batch_digest([
            lesson.batches[number] for lesson in self.present for number in range((step - 1) * passes, step * passes)
        ])

    def restore(self, saved: Saved) -> int:
        """Go on from a checkpoint; return the updates that were made."""
        document = saved.document
        self.present = [self.lessons[name] for name in document["present"] if name in self.lessons]
        if document["lessons"] != self._identity() or document["last_batch"] != self._digest(saved.step):
            raise CheckpointError(
                f"{saved.folder}: a checkpoint of other adapters, settings or rows; delete it to train anew"
            )
        for name, learned in document["learned"].items():
            steps = [Step(**each) for each in learned["steps"]]
            self.learned[name] = Learned(steps=steps, diverged_at=learned["diverged_at"])

        def of(kind: str, name: str) -> dict[str, Tensor]:
            prefix = f"{kind}/{name}/"
            return {key.removeprefix(prefix): value for key, value in saved.tensors.items() if key.startswith(prefix)}

        names = [lesson.name for lesson in self.present]
        self._seat({name: of("weights", name) for name in names}, {name: of("optimiser", name) for name in names})
        return saved.step


def _joined(part: Sequence[Batch], batch_size: int) -> tuple[Tensor, Tensor]:
    """Return the batches of all adapters as one: filled on the right to one length, and to one number of rows, without loss."""
    length = max(batch.ids_BS.shape[1] for batch in part)
    ids = torch.zeros(len(part), batch_size, length, dtype=torch.long)
    labels = torch.full((len(part), batch_size, length), IGNORED)
    for at, batch in enumerate(part):
        size_B, size_S = batch.ids_BS.shape
        ids[at, :size_B, :size_S], labels[at, :size_B, :size_S] = batch.ids_BS, batch.labels_BS
    return ids.flatten(0, 1), labels.flatten(0, 1)


def _dropout_seed(seed: int, step: int, number: int) -> int:
    return (seed * 1_000_003 + step) * 1_009 + number


def _check(bank: Bank, lessons: Sequence[Lesson]) -> None:
    if not lessons:
        raise UsageError("adapters: no lesson; give one for each adapter")
    sizes = {(lesson.training.batch_size, lesson.training.accumulation, lesson.training.autocast) for lesson in lessons}
    if len(sizes) > 1 or len({lesson.name for lesson in lessons}) < len(lessons):
        raise UsageError(
            "adapters: those that train together have one batch size, accumulation and autocast, and a name each; "
            f"got {len(lessons)} lessons with {len({lesson.name for lesson in lessons})} names and {sorted(map(str, sizes))}"
        )
    for lesson in lessons:
        training = lesson.training
        if len(lesson.batches) < (needed := training.num_steps * training.accumulation):
            raise UsageError(
                f"adapters: {lesson.name}: {training.num_steps} steps of {training.accumulation} batches take {needed}, "
                f"got {len(lesson.batches)}; give more rows or epochs, or fewer steps"
            )
    config: Any = bank.model.config
    if getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_scaling", None):
        raise UsageError(
            f"adapters: {type(bank.model).__name__} changes its logits after the head, which is not done here; "
            "train it with peft"
        )
