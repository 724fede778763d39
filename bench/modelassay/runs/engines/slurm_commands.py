"""Slurm's own commands, and what they answer where there is none."""

from __future__ import annotations

import shutil
import subprocess
from typing import Final

from modelassay.errors import HostError, printable

QUEUE: Final = ("squeue", "-h", "-r", "--me", "-t", "all", "-o", "%i|%T|%r|%N")

ENDED: Final = (
    "CANCELLED",
    "BOOT_FAIL",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)
"""How the states begin of elements that will not run any more."""


def call(*words: str, stdin: str | None = None) -> str:
    """Run one of Slurm's commands and return what it prints.

    Raises:
        HostError: it is not there, or says no.
    """
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        raise HostError(
            f"--on slurm needs {words[0]}, which is not here; run this on a machine that submits jobs"
        ) from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{words[0]} gave no answer within 60 s; is the controller up? `scontrol ping` tells") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"code {done.returncode}"
        raise HostError(f"{words[0]} refused: {printable(said.removeprefix(f'{words[0]}: ').removeprefix('error: '))}")
    return done.stdout


def require_slurm() -> None:
    """Refuse to begin on a machine that does not submit jobs.

    Raises:
        HostError: there is no sbatch, or no controller.
    """
    for name in ("sbatch", "squeue", "scancel"):
        if shutil.which(name) is None:
            raise HostError(f"--on slurm needs {name}, which is not here; run this on a machine that submits jobs")
    call(*QUEUE)
