"""``modelassay fingerprint A B [C ...]``: curves, scores and verdicts of models at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from modelassay.claims import MEANINGLESS
from modelassay.errors import HostError, UsageError
from modelassay.experiments.fingerprinting.analyse import caveats, models_of, verdict_table
from modelassay.experiments.fingerprinting.background import Background
from modelassay.experiments.fingerprinting.curves import ROLES, Curves, Score
from modelassay.experiments.fingerprinting.figures import save_figure
from modelassay.experiments.fingerprinting.judge import Verdict, adjust, judge
from modelassay.experiments.fingerprinting.measure import numbers_of, short_names
from modelassay.record import encode_value
from modelassay.runner import Run
from modelassay.show import View
from modelassay.state import Store


def fingerprint(models: Sequence[str], *, background: Run | None, figure: Path | None, alpha: float,
                report: Callable[[str], None]) -> View:  # fmt: skip
    """Judge every pair of ``models`` against the strangers of ``background``; draw them into ``figure``.

    Raises:
        UsageError: fewer than two models, one twice, a background of another suite, an alpha that is no level, or an
            unknown kind of figure.
        CheckpointError: a model cannot be read.
    """
    if not 0 < alpha < 1:  # NaN too
        raise UsageError(f"alpha: a level lies between 0 and 1, got {alpha}")
    strangers = _strangers(background)
    _check(models, figure)
    curves = []
    for reference, name in zip(models, short_names(models), strict=True):
        report(f"{name}: reading")
        curves.append(numbers_of(reference, name=name, family=None, store=Store()).curves)
    verdicts = adjust([judge(a, b, strangers, alpha=alpha) for a, b in combinations(curves, 2)])
    against, about = _described(background)
    notes = [*about, *caveats(verdicts, strangers)]
    if figure is not None:
        _draw(curves, verdicts, figure)
    return View(
        data={"alpha": alpha, "against": against, "models": [_curves_json(model) for model in curves],
              "pairs": [_verdict_json(verdict) for verdict in verdicts], "caveats": notes},
        tables=[verdict_table(verdicts)],
        lines=[*(verdict.sentence for verdict in verdicts), *(f"note: {note}" for note in notes),
               *([] if figure is None else [f"figure: {figure}"])],
    )  # fmt: skip


def _check(models: Sequence[str], figure: Path | None) -> None:
    if len(models) < 2:
        raise UsageError(f"fingerprint compares models: name at least two, got {len(models)}")
    if repeated := [model for model in dict.fromkeys(models) if models.count(model) > 1]:
        raise UsageError(f"{repeated[0]}: named twice; name each model once")
    if figure is not None and figure.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"{figure}: a figure ends in .png, .svg or .pdf, got {figure.suffix or 'no ending'}")


def _strangers(run: Run | None) -> Background:
    if run is None:
        return Background.from_models([])
    if run.suite.experiment.name != "fingerprinting":
        raise UsageError(f"{run.folder}: a run of {run.suite.name} holds no sigma-curves; give one of fingerprinting")
    return Background.from_models(models_of(run.tables()).values())


def _described(run: Run | None) -> tuple[dict[str, Any] | None, list[str]]:
    """Return which run the background is, for JSON, and what of it a reader must know before quoting a p-value."""
    if run is None:
        return None, []
    outcomes = run.tables().cells["outcome"].to_list()
    num_open = sum(outcome not in ("done", "diverged") for outcome in outcomes)
    notes = [f"{run.folder}: {MEANINGLESS}, nor do p-values against them"] if run.suite.profile == "smoke" else []
    if num_open:
        notes.append(
            f"{run.folder}: {num_open} of {len(outcomes)} cells are not complete: not all its strangers are there"
        )
    return {"run": str(run.folder), "profile": run.suite.profile, "complete": not num_open}, notes


def _draw(curves: Sequence[Curves], verdicts: Sequence[Verdict], path: Path) -> None:
    aside = path.with_name(f".{path.name}.new{path.suffix}")
    try:
        save_figure(curves, verdicts, aside)
        aside.rename(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise HostError(f"{path}: the figure cannot be written: {error.strerror}") from error


def _curves_json(model: Curves) -> dict[str, Any]:
    return {
        "model": model.name,
        "num_layers": model.num_layers,
        "sigma": {role: model.sigma[role].tolist() for role in ROLES},
    }


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    place, phase, interval = verdict.background, verdict.phase, verdict.interval
    return {
        "a": verdict.a, "b": verdict.b, "verdict": verdict.word, "sentence": verdict.sentence,
        "paper_exact": _score_json(verdict.paper_exact), "corrected": _score_json(verdict.corrected),
        "layers_redrawn": None if interval is None else {"low": interval.low, "high": interval.high},
        "background": None if place is None else {"n": place.n, "median": place.median, "q95": place.q95, "max": place.max,
                                                  "p": place.p, "floor": place.floor},
        "phase": None if phase is None else {"p": phase.p, "floor": phase.floor, "free_phases": phase.free_phases,
                                             "draws": phase.draws, "copy_p": phase.copy_p},
        "p_adjusted": verdict.p_adjusted, "stratum": verdict.stratum,
    }  # fmt: skip


def _score_json(score: Score) -> dict[str, Any]:
    return {"value": encode_value(score.value), "per_role": {role: encode_value(r) for role, r in score.per_role.items()},
            "alignment": score.alignment, "reason": score.reason}  # fmt: skip
