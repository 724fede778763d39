"""The one training loop: of the zoo, and of every experiment that trains.

::

    trained = fit(model, rows.of_rows(examples, batch_size=4, filling=0), Training(num_steps=500, batch_size=4, ...),
                  hooks=[Hook(every=2, call=overlap)], checkpoints=Checkpoints(work / "train"))
    trained.steps[-1].loss, trained.kept

A training with checkpoints, killed anywhere and called again in the same way, ends in the same bits on a CPU: weights,
averages, losses, and what its hooks returned. On a GPU it ends where it would have if its kernels are deterministic.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modelassay.errors import CheckpointError, UsageError
from modelassay.recording.random_state import set_random_states
from modelassay.training.optimiser import AdamW, count_nonfinite
from modelassay.training.resume import Resumable, Saved
from modelassay.training.rows import Batch, Batches
from modelassay.training.schedule import fraction
from modelassay.training.settings import Training

Loss = Callable[[Any, Batch], Tensor]
"""(model, batch) -> mean loss over the batch's targets; called under the training's autocast."""
StepTimer = Callable[..., AbstractContextManager[Any]]
"""What wraps each step, called as ``timer(tokens=..., step=...)``."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One update as it happened: nothing is smoothed, and nothing that is not a number is left out."""

    step: int
    """Counted from 0."""
    loss: float
    """Mean over the tokens that carry loss, before the update."""
    grad_norm: float
    """Of all gradients together, before clipping."""
    num_nonfinite: int
    """Numbers among the gradients, before clipping, that are NaN or infinite."""
    learning_rate: float
    num_tokens: int
    """Positions computed, padding included."""
    num_targets: int
    """Tokens that carried loss."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What a hook is shown, after an update."""

    model: Any
    last: Step
    num_updates: int
    kept: Sequence[Any] = ()
    """What the hooks returned so far, through kill and resume."""


class Finished(Exception):  # noqa: N818 - no error
    """Raised by a hook: the training ends here, whole; what the exception holds is kept as the hook's last result."""

    def __init__(self, result: Any = None) -> None:
        super().__init__("the training ends here")
        self.result = result


@dataclass(frozen=True, kw_only=True)
class Hook:
    """Called after every n-th update; what it returns is kept with the training, through kill and resume.

    It may do with modes (train, eval) and torch's random streams as it likes: both are put back.
    """

    every: int
    call: Callable[[Moment], Any]
    """Returns JSON, or None to keep nothing. May raise: the training ends there; with `Finished` it ends well."""


def stop_if_diverged(moment: Moment) -> None:
    """End a training whose loss is no number any more: a hook that keeps ``diverged_at``, the updates done.

    Raises:
        Finished: so.
    """
    if not math.isfinite(moment.last.loss):
        raise Finished({"diverged_at": moment.num_updates})


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training leaves besides the weights."""

    steps: list[Step] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    """What the hooks returned, in order."""


def causal_loss(model: Any, batch: Batch) -> Tensor:
    """Mean cross-entropy of the tokens that carry loss, as transformers computes it."""
    labels_BS = batch.labels_BS.to(model.device)
    loss: Tensor = model(input_ids=batch.ids_BS.to(model.device), labels=labels_BS).loss
    return loss


def autocast(model: Any, training: Training) -> AbstractContextManager[Any]:
    """Return what a training computes its forward passes under; those of a hook too, where it should see what is trained."""
    if training.autocast is None:
        return nullcontext()
    return torch.autocast(model.device.type, dtype=getattr(torch, training.autocast))


def untimed(*, tokens: int, step: int) -> AbstractContextManager[None]:
    """Time nothing."""
    return nullcontext()


def fit(
    model: nn.Module,
    batches: Batches,
    training: Training,
    *,
    loss: Loss = causal_loss,
    hooks: Sequence[Hook] = (),
    timer: StepTimer = untimed,
    checkpoints: Resumable | None = None,
) -> Trained:
    """Train in place what requires a gradient, from the last checkpoint if there is one; leave the model in eval mode.

    Args:
        model: in the precision that ``training`` states.
        batches: at least ``num_steps * accumulation`` of them, taken in turn.
        training: how.
        loss: of a batch.
        hooks: called in turn after an update.
        timer: wraps each step, batches apart.
        checkpoints: where to go on from, and where to write; None to start afresh and write nothing.

    Raises:
        UsageError: too few batches, a batch without loss, or a model in another precision.
        CheckpointError: the checkpoint is damaged, or belongs to another training.
    """
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    _check(weights, batches, training)
    optimiser, trained, first = AdamW(weights, training), Trained(), 0
    saved = checkpoints.latest() if checkpoints else None
    if saved is not None:
        _restore(saved, model, optimiser, trained, batches, training)
        first = saved.step
    model.train()
    modules = list(model.modules())
    for step in range(first, training.num_steps):
        parts = _parts(batches, step, training)
        with timer(tokens=sum(part.num_tokens for part in parts), step=step):
            trained.steps.append(_update(model, optimiser, parts, training, step, loss))
        if _call_hooks(hooks, model, modules, trained, step + 1):
            break
        if checkpoints is not None and checkpoints.due():
            _save(checkpoints, step + 1, model, optimiser, trained, batches, training)
    model.eval()
    return trained


def _call_hooks(
    hooks: Sequence[Hook], model: nn.Module, modules: Sequence[nn.Module], trained: Trained, num_updates: int
) -> bool:
    """Call those that are due, and keep what they return; whether one of them ends the training."""
    finished = False
    for hook in hooks:
        if num_updates % hook.every:
            continue
        moment = Moment(model=model, last=trained.steps[-1], num_updates=num_updates, kept=trained.kept)
        try:
            with _unchanged(modules):
                result = hook.call(moment)
        except Finished as end:
            result, finished = end.result, True
        if result is not None:
            trained.kept.append(json.loads(json.dumps(result)))  # as a checkpoint would bring it back
    return finished


def _check(weights: Mapping[str, Tensor], batches: Batches, training: Training) -> None:
    if len(batches) < (needed := training.num_steps * training.accumulation):
        raise UsageError(
            f"training: {training.num_steps} steps of {training.accumulation} batches take {needed}, got {len(batches)}; "
            "give more rows or epochs, or fewer steps"
        )
    dtype = getattr(torch, training.weights)
    for name, weight in weights.items():
        if weight.dtype != dtype:
            raise UsageError(
                f"training: {name} is in {weight.dtype}, the training states {dtype}; load the model in that precision"
            )


def _parts(batches: Batches, step: int, training: Training) -> list[Batch]:
    first = step * training.accumulation
    parts = [batches[number] for number in range(first, first + training.accumulation)]
    if not any(part.num_targets for part in parts):
        raise UsageError(f"training: no token carries loss at step {step}; look at the rows' loss marks")
    return parts


def _update(
    model: nn.Module, optimiser: AdamW, parts: Sequence[Batch], training: Training, step: int, loss: Loss
) -> Step:
    counts = [part.num_targets for part in parts]
    num_targets = sum(counts)
    learning_rate, total = training.learning_rate * fraction(step, training), 0.0
    for part, count in zip(parts, counts, strict=True):
        if not count:
            continue
        with autocast(model, training):
            value = loss(model, part)
        share = count / num_targets
        (value if share == 1.0 else value * share).backward()  # type: ignore[no-untyped-call]
        optimiser.collect()
        total += value.item() * share
    gradients = optimiser.gradients()
    norm = torch.nn.utils.get_total_norm(gradients)
    num_nonfinite = 0 if math.isfinite(norm.item()) else count_nonfinite(gradients)
    if training.max_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(optimiser.updated.values(), training.max_grad_norm, norm)
    optimiser.step(learning_rate)
    return Step(
        step=step,
        loss=total,
        grad_norm=norm.item(),
        num_nonfinite=num_nonfinite,
        learning_rate=learning_rate,
        num_tokens=sum(part.num_tokens for part in parts),
        num_targets=num_targets,
    )


@contextmanager
def _unchanged(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put back training mode and torch's random streams."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module in modules:
            if not module.training:
                module.training = True


def _save(
    checkpoints: Resumable,
    step: int,
    model: nn.Module,
    optimiser: AdamW,
    trained: Trained,
    batches: Batches,
    training: Training,
) -> None:
    tensors = {f"weights/{name}": weight for name, weight in optimiser.weights.items()}
    tensors |= {f"buffers/{name}": buffer.clone() for name, buffer in model.named_buffers()}
    tensors |= {f"optimiser/{name}": tensor for name, tensor in optimiser.tensors().items()}
    document = {
        "training": training.recipe(),
        "last_batch": batch_digest(_parts(batches, step - 1, training)),
        "steps": [asdict(each) for each in trained.steps],
        "kept": trained.kept,
    }
    checkpoints.save(step, tensors, document)


@torch.no_grad()
def _restore(
    saved: Saved, model: nn.Module, optimiser: AdamW, trained: Trained, batches: Batches, training: Training
) -> None:
    _check_same(saved, optimiser, batches, training)
    for name, weight in optimiser.weights.items():
        weight.copy_(saved.tensors[f"weights/{name}"])
    for name, buffer in model.named_buffers():
        buffer.copy_(saved.tensors[f"buffers/{name}"])
    prefix = "optimiser/"
    optimiser.restore({
        name.removeprefix(prefix): tensor for name, tensor in saved.tensors.items() if name.startswith(prefix)
    })
    trained.steps.extend(Step(**each) for each in saved.document["steps"])
    trained.kept.extend(saved.document["kept"])
    set_random_states(saved.document["random"])


def _check_same(saved: Saved, optimiser: AdamW, batches: Batches, training: Training) -> None:
    """Refuse a checkpoint of another training, of other weights, or of other data."""
    before, now = saved.document["training"], training.recipe()
    differences = [
        f"{key} was {before.get(key)}, is {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    shapes = {
        name.removeprefix("weights/"): (tensor.shape, tensor.dtype)
        for name, tensor in saved.tensors.items()
        if name.startswith("weights/")
    }
    if shapes != {name: (weight.shape, weight.dtype) for name, weight in optimiser.weights.items()}:
        differences.append("the trained weights have other names, shapes or types")
    if not differences and saved.document["last_batch"] != batch_digest(_parts(batches, saved.step - 1, training)):
        differences.append(f"the rows of step {saved.step - 1} are others")
    if differences:
        raise CheckpointError(
            f"{saved.folder}: a checkpoint of another training: {'; '.join(differences)}; delete it to train anew"
        )


def batch_digest(parts: Sequence[Batch]) -> str:
    """Return a hash of batches, by which a checkpoint knows its data again."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        for tensor in (part.ids_BS, part.labels_BS):
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype} ".encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
