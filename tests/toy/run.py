"""One toy cell."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from modelassay.errors import Diverged
from toy.params import TABLE, Params

if TYPE_CHECKING:
    from modelassay.recording.context import CellContext, Recorder

_STARTS = {"zoo:base": 0.0, "zoo:child": 1.0, "zoo:stranger": -5.0}


def run(params: Params, cell: CellContext) -> None:
    """Walk; the value after each step depends on everything before it, so a resumed walk shows if anything was lost."""
    semaphore = multiprocessing.RLock()  # progress bars of libraries hold one
    saved = cell.restore()
    if saved is None:
        random.seed(params.seed)
        at: dict[str, Any] = {"step": 0, "value": _STARTS[params.model] + sum(params.weights.values())}
        trouble = True
    else:
        at = saved.payload
        trouble = not params.only_first
    if params.staged_steps and saved is None:
        value = _prepare(params, cell)
        at["value"] += value
    value, kept = float(at["value"]), bytearray()
    low, high = params.walk.bounds
    for step in range(int(at["step"]) + 1, params.steps + 1):
        if trouble:
            kept += _trouble(params, step)
        if params.say:
            print(params.say, step, flush=True)
        with cell.microbatch("step", tokens=8):
            time.sleep(params.pause_ms / 1000)
            noise = sum(random.uniform(-1.0, 1.0) for _ in range(params.walk.width))
            value = min(high, max(low, value + params.walk.drift + params.rate * noise))
        cell.progress(step, params.steps, "steps")
        if step % params.eval_every == 0:
            cell.metric("value", value, step=step, verbose=params.verbose)
        if step % params.checkpoint_every == 0:
            cell.checkpoint({"step": step, "value": value})
    del semaphore


def _prepare(params: Params, cell: CellContext) -> float:
    """Build what cells with the same recipe share: the sum of the inputs, then two stages on top of one another."""
    base = cell.need(TABLE)
    total, products = 0.0, [base]
    for index in range(2):
        recipe = {"steps": params.staged_steps, "index": index, "seed": params.seed, "pause_ms": params.pause_ms}
        product = cell.stage(
            "sum", index, recipe=recipe, build=partial(_sum, params, index), inputs=products, generation=index
        )
        products = [product]
        total += float((product.path / "total.txt").read_text())
    cell.fact("prepared", {"total": total}, by="stages")
    return total


def _sum(params: Params, index: int, stage: Recorder) -> None:
    """Add one number a step; each step is checkpointed, so that a killed stage goes on."""
    saved = stage.restore()
    payload = {"step": 0, "total": 0.0} if saved is None else saved.payload
    for step in range(int(payload["step"]), params.staged_steps):
        with stage.microbatch("add"):
            time.sleep(params.pause_ms / 1000)
            payload = {"step": step + 1, "total": payload["total"] + stage.seed(f"{index}/{step}") % 1000 / 1000}
        stage.metric("partial", payload["total"], at=step)
        stage.progress(step + 1, params.staged_steps)
        stage.checkpoint(payload)
    (stage.folder / "total.txt").write_text(repr(payload["total"]))


def _trouble(params: Params, step: int) -> bytes:
    """Do what the parameters ask for at ``step``; return the memory to keep."""
    if step == params.diverge_at:
        raise Diverged(f"the walk left the world at step {step}")
    if step == params.fail_at:
        raise ValueError(f"asked to fail at step {step}")
    if step == params.exit_at:
        os._exit(9)
    return b"\x01" * (params.allocate_mib << 20) if step == params.allocate_at else b""
