"""One toy cell."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, Any

from modelassay.errors import Diverged
from toy.params import Params

if TYPE_CHECKING:
    from modelassay.meter import Meter
    from modelassay.state import State

_STARTS = {"zoo:base": 0.0, "zoo:child": 1.0, "zoo:stranger": -5.0}


def run(params: Params, meter: Meter, state: State) -> None:
    """Walk; the value after each step depends on everything before it, so a resumed walk shows if anything was lost."""
    saved = state.restore()
    if saved is None:
        random.seed(params.seed)
        at: dict[str, Any] = {"step": 0, "value": _STARTS[params.model] + sum(params.weights.values())}
        trouble = True
    else:
        at = saved.payload
        trouble = not params.only_first
    if params.count_siblings and saved is None:
        meter.metric("siblings", len(state.siblings), seeds=sum(other.seed for other in state.siblings))
    value, kept = float(at["value"]), bytearray()
    low, high = params.walk.bounds
    for step in range(int(at["step"]) + 1, params.steps + 1):
        if trouble:
            kept += _trouble(params, step)
        if params.say:
            print(params.say, step, flush=True)
        with meter.microbatch("step", tokens=8):
            time.sleep(params.pause_ms / 1000)
            noise = sum(random.uniform(-1.0, 1.0) for _ in range(params.walk.width))
            value = min(high, max(low, value + params.walk.drift + params.rate * noise))
        if step % params.eval_every == 0:
            meter.metric("value", value, step=step, verbose=params.verbose)
        if step % params.checkpoint_every == 0:
            state.checkpoint({"step": step, "value": value})


def _trouble(params: Params, step: int) -> bytes:
    """Do what the parameters ask for at ``step``; return the memory to keep."""
    if step == params.diverge_at:
        raise Diverged(f"the walk left the world at step {step}")
    if step == params.fail_at:
        raise ValueError(f"asked to fail at step {step}")
    if step == params.exit_at:
        os._exit(9)
    return b"\x01" * (params.allocate_mib << 20) if step == params.allocate_at else b""
