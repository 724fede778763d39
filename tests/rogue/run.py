"""One rogue cell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from modelassay.models.hub import open_files

if TYPE_CHECKING:
    from modelassay.meter import Meter
    from modelassay.state import State
    from rogue.params import Params


def run(params: Params, meter: Meter, state: State) -> None:
    """Record one number, then do the deed."""
    meter.metric("number", 1.0)
    globals()[params.deed](meter, state)


def behave(_meter: Meter, _state: State) -> None:
    pass


def print_much(_meter: Meter, _state: State) -> None:
    print("said by the cell")
    print("complained by the cell", file=sys.stderr)
    os.system("echo said by a child of the cell")


def leave_a_thread(_meter: Meter, _state: State) -> None:
    threading.Thread(target=time.sleep, args=(600,)).start()


def leave_a_child(_meter: Meter, state: State) -> None:
    if (child := os.fork()) == 0:
        time.sleep(600)
    (state.artifacts / "child").write_text(str(child))


def leave_a_child_and_die(meter: Meter, state: State) -> None:
    leave_a_child(meter, state)
    os.kill(os.getpid(), signal.SIGKILL)


def leave_a_child_and_wait(meter: Meter, state: State) -> None:
    leave_a_child(meter, state)
    time.sleep(600)


def die_of_a_real_time_signal(_meter: Meter, _state: State) -> None:
    os.kill(os.getpid(), signal.SIGRTMIN + 3)


def leave_by_sys_exit(_meter: Meter, _state: State) -> None:
    sys.exit(0)


def interrupt(_meter: Meter, _state: State) -> None:
    raise KeyboardInterrupt


def complain_at_length(_meter: Meter, _state: State) -> None:
    raise ValueError("one line\nand another\n" * 1000)


def complain_of_a_path(_meter: Meter, _state: State) -> None:
    raise ValueError("no such file: caf\udce9")


def repeat_a_metric(meter: Meter, _state: State) -> None:
    meter.metric("number", 2.0)


class _LostDevice:
    """Stands in for a CUDA event after the device has failed."""

    def query(self) -> bool:
        raise RuntimeError("device lost")

    def synchronize(self) -> None:
        raise RuntimeError("device lost")


def lose_the_device(meter: Meter, _state: State) -> None:
    meter._pending.append(({}, _LostDevice(), _LostDevice()))


def fail_and_lose_the_device(meter: Meter, state: State) -> None:
    lose_the_device(meter, state)
    raise ValueError("the reason")


def damage_the_checkpoint(_meter: Meter, state: State) -> None:
    state.checkpoint({})
    (checkpoint,) = Path(state.artifacts.parent, "checkpoint").iterdir()
    (checkpoint / "state.json").write_text("")
    raise ValueError("now try again")


def tell(_meter: Meter, _state: State) -> None:
    """Say what the variables hold whose names TELL lists, and the text of SAY, in every way there is."""
    text = " ".join([*(os.environ[name] for name in os.environ.get("TELL", "").split()), os.environ.get("SAY", "")])
    print("python:", text, flush=True)
    warnings.warn(f"warning: {text}", stacklevel=1)
    os.write(2, f"native: {text}\n".encode())
    subprocess.run(["echo", f"child: {text}"], check=True)
    raise ValueError(f"error: {text}")


def print_and_be_killed(_meter: Meter, _state: State) -> None:
    """Print far more than a pipe holds, the last line without its end, and be gone."""
    for number in range(50_000):
        os.write(1, f"line {number}\n".encode())
    os.write(1, b"the last")
    os.kill(os.getpid(), signal.SIGKILL)


def ask_the_hub(_meter: Meter, _state: State) -> None:
    """Fetch a model's config.json."""
    print("fetched", open_files("hf:lab/model").get("config.json"))
