"""One rogue cell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING

from modelassay.models.hub import open_files

if TYPE_CHECKING:
    from modelassay.recording.context import CellContext
    from rogue.params import Params


def run(params: Params, cell: CellContext) -> None:
    """Record one number, then do the deed."""
    cell.metric("number", 1.0)
    globals()[params.deed](cell)


def behave(_cell: CellContext) -> None:
    pass


def print_much(_cell: CellContext) -> None:
    print("said by the cell")
    print("complained by the cell", file=sys.stderr)
    os.system("echo said by a child of the cell")


def leave_a_thread(_cell: CellContext) -> None:
    threading.Thread(target=time.sleep, args=(600,)).start()


def leave_a_child(cell: CellContext) -> None:
    if (child := os.fork()) == 0:
        time.sleep(600)
    cell.artifact("child").write_text(str(child))


def leave_a_child_and_die(cell: CellContext) -> None:
    leave_a_child(cell)
    os.kill(os.getpid(), signal.SIGKILL)


def leave_a_child_and_wait(cell: CellContext) -> None:
    leave_a_child(cell)
    time.sleep(600)


def die_of_a_real_time_signal(_cell: CellContext) -> None:
    os.kill(os.getpid(), signal.SIGRTMIN + 3)


def leave_by_sys_exit(_cell: CellContext) -> None:
    sys.exit(0)


def interrupt(_cell: CellContext) -> None:
    raise KeyboardInterrupt


def complain_at_length(_cell: CellContext) -> None:
    raise ValueError("one line\nand another\n" * 1000)


def complain_of_a_path(_cell: CellContext) -> None:
    raise ValueError("no such file: caf\udce9")


def repeat_a_metric(cell: CellContext) -> None:
    cell.metric("number", 2.0)


class _LostDevice:
    """Stands in for a CUDA event after the device has failed."""

    def query(self) -> bool:
        raise RuntimeError("device lost")

    def synchronize(self) -> None:
        raise RuntimeError("device lost")


def lose_the_device(cell: CellContext) -> None:
    cell.meter._pending.append(("microbatch", {}, _LostDevice(), _LostDevice()))


def fail_and_lose_the_device(cell: CellContext) -> None:
    lose_the_device(cell)
    raise ValueError("the reason")


def damage_the_checkpoint(cell: CellContext) -> None:
    cell.checkpoint({})
    (checkpoint,) = (cell.folder / "checkpoint").iterdir()
    (checkpoint / "state.json").write_text("")
    raise ValueError("now try again")


def tell(_cell: CellContext) -> None:
    """Say what the variables hold whose names TELL lists, and the text of SAY, in every way there is."""
    text = " ".join([*(os.environ[name] for name in os.environ.get("TELL", "").split()), os.environ.get("SAY", "")])
    print("python:", text, flush=True)
    warnings.warn(f"warning: {text}", stacklevel=1)
    os.write(2, f"native: {text}\n".encode())
    subprocess.run(["echo", f"child: {text}"], check=True)
    raise ValueError(f"error: {text}")


def print_and_be_killed(_cell: CellContext) -> None:
    """Print far more than a pipe holds, the last line without its end, and be gone."""
    for number in range(50_000):
        os.write(1, f"line {number}\n".encode())
    os.write(1, b"the last")
    os.kill(os.getpid(), signal.SIGKILL)


def ask_the_hub(_cell: CellContext) -> None:
    """Fetch a model's config.json."""
    print("fetched", open_files("hf:lab/model").get("config.json"))
