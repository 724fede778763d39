"""The script of an array job, of which each element is a worker.

Slurm requeues an element whose node fails. One that reaches its time limit is asked to stop two minutes earlier, gives its cell
back and goes to the end of the queue by itself; one that was cancelled does not. The script writes what workers print into
``RUN/slurm/``; paths are quoted in it for the shell and never stand in a line of ``#SBATCH``, where Slurm reads a ``%`` as its own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from modelassay.errors import UsageError, printable
from modelassay.runs.engines import Image, Job
from modelassay.suite import Resources

FOLDER: Final = "slurm"
"""Of a run: its scripts, the jobs that were submitted, and what workers printed."""

OWN: Final = frozenset({
    "array",
    "chdir",
    "error",
    "nodes",
    "ntasks",
    "open-mode",
    "output",
    "parsable",
    "requeue",
    "signal",
    "wait",
    "wrap",
})
"""Options of sbatch that the script sets."""

_OPTION: Final = re.compile(r"[a-z][a-z-]{0,40}")
_SCRIPT: Final = """
# A worker of a run of modelassay for each element; `modelassay run RUN --on slurm` submits it.
exec >>{folder}/"${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}.out" 2>&1
{start}stopped=
srun --ntasks=1 --kill-on-bad-exit "${{start[@]}}" </dev/null &
pid=$!
trap 'stopped=1; kill -TERM "$pid"' TERM
wait "$pid"; code=$?
while kill -0 "$pid" 2>/dev/null; do wait "$pid"; code=$?; done
# Stopped while Slurm still counts it as running: its time is nearly over. When it is cancelled its state says so already.
if [ "$stopped" ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
  sleep 60
fi
exit "$code"
"""
_IMAGE: Final = """\
{exports}if srun --help 2>/dev/null | grep -q -e --container-image; then
  start=({pyxis} --container-mounts={mounts} --no-container-mount-home {command})
elif command -v apptainer >/dev/null; then
  start=(apptainer exec {nv}--contain --no-home --bind {mounts} {reference} {command})
else
  echo "$(hostname) has neither pyxis nor Apptainer; leave --in container out, or install one"
  exit 6
fi
"""


def parse_options(texts: Sequence[str]) -> dict[str, str]:
    """Return ``KEY=VALUE`` texts as options of sbatch; without ``=`` an option that takes no value.

    Raises:
        UsageError: not such a text, or an option that the script sets itself.

    >>> parse_options(["partition=gpu", "exclusive"])
    {'partition': 'gpu', 'exclusive': ''}
    """
    options = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not _OPTION.fullmatch(key) or not value.isprintable():
            raise UsageError(
                f"--slurm {printable(text)}: must be an option of sbatch without its dashes, as partition=gpu"
            )
        if key in OWN:
            more = "; --workers says how many there are" if key == "array" else ""
            raise UsageError(f"--slurm {printable(text)}: {key} is set by modelassay{more}")
        options[key] = value
    return options


@dataclass(frozen=True, kw_only=True)
class Script:
    """The script of a run's workers."""

    job: Job
    options: Mapping[str, str] = field(default_factory=dict)
    """Of sbatch; each stands in the place of what the suite's resources say."""
    image: Image | None = None
    """What a worker runs in; None: this Python, which the nodes have at the same place."""

    def text(self, count: int) -> str:
        """Return it for ``count`` workers."""
        suite = self.job.run.suite
        own = {"job-name": f"modelassay-{suite.name}", "array": f"0-{count - 1}", "nodes": "1", "ntasks": "1", "requeue": "",
               "signal": "B:TERM@120", "open-mode": "append", "output": "/dev/null", "chdir": "/"}  # fmt: skip
        lines = {**own, **_requests(suite.resources), **self.options}
        head = "".join(f"#SBATCH --{key}{f'={_quoted(value)}' if value else ''}\n" for key, value in lines.items())
        folder = shlex.quote(str(self.job.run.folder.absolute() / FOLDER))
        start = (
            f"start=({shlex.join(self.job.command)})\n"
            if self.image is None
            else _in_image(self.image, self.job.worker)
        )
        return f"#!/bin/bash\n{head}{_SCRIPT.format(folder=folder, start=start)}"


def _in_image(image: Image, worker: Sequence[str]) -> str:
    """Return how a worker is started in ``image``: by pyxis where srun has it, else by Apptainer."""
    mounts = ",".join(f"{path}:{path}{'' if writable else ':ro'}" for path, writable in image.mounts)
    if odd := [path for path, _ in image.mounts if re.search(r"[,:\\]", path)]:
        raise UsageError(
            f"{printable(odd[0])}: a comma, a colon or a backslash in a path that a container is to see; rename it"
        )
    registry, _, rest = image.reference.partition("/")
    command = shlex.join(["modelassay", *worker])
    return _IMAGE.format(
        exports="".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(image.environment.items())),
        pyxis=shlex.quote(f"--container-image={registry}#{rest}"), mounts=shlex.quote(mounts), command=command,
        reference=shlex.quote(f"docker://{image.reference}"), nv="--nv " if image.gpus else "",
    )  # fmt: skip


def _requests(resources: Resources) -> dict[str, str]:
    """Return what a worker asks of its node as options of sbatch."""
    kind = f"{resources.gpu_type}:" if resources.gpu_type else ""
    asked = {
        "cpus-per-task": resources.cpus,
        "gpus-per-node": f"{kind}{resources.gpus}" if resources.gpus else None,
        "mem": None if resources.memory_bytes is None else f"{resources.memory_bytes >> 20}M",
        "time": resources.minutes,
    }
    return {key: str(value) for key, value in asked.items() if value is not None}


def _quoted(value: str) -> str:
    """Return a value as a line of ``#SBATCH`` holds it: in it only double quotes and backslashes mean something."""
    if re.fullmatch(r"[\w.,:|&@%+/=\[\]()*-]+", value, re.ASCII):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
