"""A finished run's tables sent to a tracker, each cell as a run of its own, never from a process that is timed.

What was sent is written beside the run, cell by cell, once the tracker has taken it: a call that was cut off is made again and
sends what is missing. The project is the suite's, whatever the environment says.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from modelassay.errors import AssayError, HostError
from modelassay.recording.tables import ENDED, RunData
from modelassay.storage.durable import disk_fault
from modelassay.storage.files import locked, require_folders

TRACKERS: Final = ("trackio", "wandb")

STEPS: Final = ("step", "generation")
"""Labels that are a tracker's axis; the first that a metric carries."""


class Tracker(Protocol):
    """What trackio and wandb have in common."""

    def init(self, **settings: Any) -> Any: ...  # noqa: D102
    def log(self, metrics: dict[str, Any], step: int | None = None) -> None: ...  # noqa: D102
    def finish(self) -> None: ...  # noqa: D102


def tracker_named(name: str) -> Tracker:
    """Import a tracker.

    Raises:
        HostError: it is not installed.
    """
    try:
        tracker: Tracker = importlib.import_module(name)
    except ImportError as error:
        raise HostError(f"--to {name}: {name} is not installed ({error}); pip install 'modelassay[{name}]'") from error
    return tracker


def upload(
    data: RunData, folder: Path, *, project: str, name: str, tracker: Tracker, report: Callable[[str], None]
) -> tuple[int, int]:
    """Send the cells that have ended and were not sent yet as they are now; return how many were sent, and how many were before.

    Args:
        data: the run's tables.
        folder: the run directory; what was sent is written into its folder ``uploads``.
        project: whose runs they become.
        name: the tracker's.
        tracker: its module.
        report: is told of each cell.

    Raises:
        AssayError: the tracker refused a cell; those before it are sent, and the next call goes on there.
        HostError: the run directory cannot be written, so that nobody would know what was sent.
    """
    ledger = folder / "uploads" / f"{name}.json"
    require_folders([ledger.parent])
    with locked(
        ledger.with_suffix(".lock")
    ):  # two at once would send each cell twice; a folder that cannot be written is told before any
        return _upload(data, folder, ledger, project=project, name=name, tracker=tracker, report=report)


def _upload(
    data: RunData,
    folder: Path,
    ledger: Path,
    *,
    project: str,
    name: str,
    tracker: Tracker,
    report: Callable[[str], None],
) -> tuple[int, int]:
    sent = _sent(ledger)
    parts = {str(key[0]): part for key, part in data.metrics.partition_by("cell", as_dict=True).items()}
    num_before = num_sent = 0
    for row in data.cells.iter_rows(named=True):
        cell = row["cell"]
        if row["outcome"] not in ENDED:
            continue
        steps = _steps(parts[cell].drop("cell").iter_rows(named=True)) if cell in parts else {}
        content = json.dumps([project, row, sorted(steps.items())], default=str, sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()
        if sent.get(cell) == digest:
            num_before += 1
            continue
        try:
            _send(tracker, steps, row, project=project, run=f"{folder.resolve().name}-{cell}-{digest[:6]}", name=name)
        except Exception as error:  # a tracker's own, of any kind
            raise AssayError(f"--to {name}: cell {cell} was not sent ({type(error).__name__}: {error}); {num_sent + num_before} are; "
                             "the same command again sends the others") from error  # fmt: skip
        sent[cell] = digest
        _write(ledger, sent)
        num_sent += 1
        report(f"{name}: sent {cell}")
    return num_sent, num_before


def _steps(rows: Any) -> dict[int, dict[str, float]]:
    """Return the metrics by step, each under its name and labels.

    >>> _steps([{"name": "loss", "value": 2.0, "step": 5, "language": "en", "role": None}])
    {5: {'loss/language=en': 2.0}}
    """
    steps: dict[int, dict[str, float]] = {}
    for row in rows:
        labels = {key: value for key, value in row.items() if key not in ("name", "value") and value is not None}
        axis = next((key for key in STEPS if isinstance(labels.get(key), int)), None)
        step = 0 if axis is None else labels.pop(axis)
        key = "/".join([row["name"], *(f"{label}={value}" for label, value in sorted(labels.items()))])
        steps.setdefault(step, {})[key] = row["value"]
    return dict(sorted(steps.items()))


def _send(
    tracker: Tracker,
    steps: Mapping[int, dict[str, float]],
    row: Mapping[str, Any],
    *,
    project: str,
    run: str,
    name: str,
) -> None:
    """Send one cell; what an earlier call left of it half sent is taken away or written over."""
    config = {key: value for key, value in row.items() if value is not None}
    if name == "trackio":
        _forget(tracker, project, run)
        tracker.init(project=project, name=run, config=config, auto_log_gpu=False, auto_log_cpu=False, embed=False)
    else:
        identity = hashlib.sha256(run.encode()).hexdigest()[:32]
        started = tracker.init(project=project, name=run, id=identity, resume="allow", config=config)
        if getattr(started, "disabled", False) is True:
            tracker.finish()
            raise RuntimeError("wandb is disabled, so that nothing would be sent; unset WANDB_MODE and WANDB_DISABLED")
    try:
        for step, metrics in steps.items():
            tracker.log(metrics, step=step)
    finally:
        tracker.finish()


def _forget(tracker: Any, project: str, run: str) -> None:
    """Remove what a call that was cut off left of ``run``; trackio would keep both."""
    if not hasattr(tracker, "Api"):
        return
    try:
        runs = list(tracker.Api().runs(project))
    except ValueError:  # it has no such project yet
        return
    for earlier in runs:
        if earlier.name == run:
            earlier.delete()


def _sent(ledger: Path) -> dict[str, str]:
    """Return cell -> digest of what was sent; a file that cannot be read says of none."""
    try:
        sent = json.loads(ledger.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(cell): str(digest) for cell, digest in sent.items()} if isinstance(sent, dict) else {}


def _write(ledger: Path, sent: Mapping[str, str]) -> None:
    part = ledger.with_name(f".{ledger.name}.part")
    try:
        ledger.parent.mkdir(exist_ok=True)
        part.write_text(json.dumps(sent, indent=1) + "\n", encoding="utf-8")
        part.replace(ledger)
    except OSError as error:
        raise disk_fault(error, ledger) from error
