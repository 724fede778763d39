"""``modelassay fingerprint A B [C ...]``: scores of all methods and a verdict for models at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from polars.exceptions import PolarsError

from modelassay.claims import MEANINGLESS, Table
from modelassay.errors import HostError, RecordError, UsageError
from modelassay.experiments.fingerprinting.analyse import caveats, models_of, verdict_table
from modelassay.experiments.fingerprinting.background import Background, Rank, rank
from modelassay.experiments.fingerprinting.curves import ROLES, Curves, Score
from modelassay.experiments.fingerprinting.derivation import Derivation, derivation
from modelassay.experiments.fingerprinting.evidence import recorded_scores
from modelassay.experiments.fingerprinting.figures import save_figure
from modelassay.experiments.fingerprinting.judge import Verdict, adjust, judge
from modelassay.experiments.fingerprinting.measure import numbers_of, open_model, short_names
from modelassay.experiments.fingerprinting.methods import BY_BEHAVIOUR, BY_NUMBERS, BY_WEIGHTS, Numbers
from modelassay.experiments.fingerprinting.methods.behaviour import Speaker, listen_to
from modelassay.experiments.fingerprinting.methods.weights import Weights, load_weights
from modelassay.record import Tables, encode_value
from modelassay.runner import Run
from modelassay.show import View
from modelassay.state import Store


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that was named on the command line."""

    reference: str
    numbers: Numbers
    weights: Weights | None
    """None where only the attention matrices were wanted."""
    speaker: Speaker | None
    """None where its behaviour was not asked for."""

    @property
    def curves(self) -> Curves:
        """Its curves."""
        return self.numbers.curves


Places = Mapping[str, tuple[Score, Rank | None]]
"""Method to the score of a pair, and where it stands among strangers; no rank where none are known."""


def fingerprint(models: Sequence[str], *, background: Run | None, figure: Path | None, alpha: float, attention_only: bool,
                behaviour: bool, report: Callable[[str], None]) -> View:  # fmt: skip
    """Judge every pair of ``models`` against the strangers of ``background``; draw them into ``figure``.

    ``attention_only`` reads nothing but the four attention matrices, and of the Hub fetches nothing else; methods that
    need more are then left out. ``behaviour`` loads the models whole, one at a time, and asks both of a pair with the prompts
    that each of them grows.

    Raises:
        UsageError: fewer than two models, one twice, a background of another suite, an alpha that is no level, an
            unknown kind of figure, or behaviour asked of the attention matrices alone.
        CheckpointError: a model cannot be read.
    """
    if not 0 < alpha < 1:  # NaN too
        raise UsageError(f"alpha: a level lies between 0 and 1, got {alpha}")
    if behaviour and attention_only:
        raise UsageError(
            "--behaviour runs whole models and --attention-only reads four matrices; leave one of them out"
        )
    tables = None if background is None else _tables_of(background)
    strangers = _strangers(background, tables)
    _check(models, figure)
    subjects = []
    for reference, name in zip(models, short_names(models), strict=True):
        report(f"{name}: reading")
        numbers = numbers_of(reference, name=name, family=None, store=Store(), whole=not attention_only)
        weights = None if attention_only else load_weights(reference, store=Store())
        speaker = Speaker(reference, store=Store()) if behaviour else None
        subjects.append(Subject(reference=reference, numbers=numbers, weights=weights, speaker=speaker))
    _listen(subjects, report)
    pairs = list(combinations(subjects, 2))
    places = [_places(a, b, strangers) for a, b in pairs]
    verdicts = adjust([
        judge(a.curves, b.curves, strangers, alpha=alpha, by_weights={name: score.value for name, (score, _) in place.items()})
        for (a, b), place in zip(pairs, places, strict=True)
    ])  # fmt: skip
    derived = [_derive(a, b) if verdict.word == "related" and not attention_only else None
               for (a, b), verdict in zip(pairs, verdicts, strict=True)]  # fmt: skip
    against, about = _described(background, tables)
    notes = [*about, *caveats(verdicts, strangers)]
    curves = [subject.curves for subject in subjects]
    if figure is not None:
        _draw(curves, verdicts, figure)
    return View(
        data={"alpha": alpha, "against": against, "models": [_curves_json(model) for model in curves],
              "pairs": [{**_verdict_json(verdict), "methods": _places_json(place), "derivation": _derivation_json(made, verdict)}
                        for verdict, place, made in zip(verdicts, places, derived, strict=True)], "caveats": notes},
        tables=[verdict_table(verdicts), _methods_table(verdicts, places)],
        lines=[*(verdict.sentence for verdict in verdicts), *_derivation_lines(verdicts, derived),
               *(f"note: {note}" for note in notes), *([] if figure is None else [f"figure: {figure}"])],
    )  # fmt: skip


def _check(models: Sequence[str], figure: Path | None) -> None:
    if len(models) < 2:
        raise UsageError(f"fingerprint compares models: name at least two, got {len(models)}")
    if repeated := [model for model in dict.fromkeys(models) if models.count(model) > 1]:
        raise UsageError(f"{repeated[0]}: named twice; name each model once")
    if figure is not None and figure.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"{figure}: a figure ends in .png, .svg or .pdf, got {figure.suffix or 'no ending'}")


def _tables_of(run: Run) -> Tables:
    if run.suite.experiment.name != "fingerprinting":
        raise UsageError(f"{run.folder}: a run of {run.suite.name} holds no sigma-curves; give one of fingerprinting")
    return run.tables()


def _strangers(run: Run | None, tables: Tables | None) -> Background:
    if run is None or tables is None:
        return Background.from_models([])
    try:
        models = models_of(tables)
        recorded = recorded_scores(tables, {reference: model.curves.name for reference, model in models.items()})
        return Background.from_models(models.values(), recorded)
    except (PolarsError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise RecordError(f"{run.folder}: its records are not those of measured models ({type(error).__name__}: {error}); "
                          "give a run that modelassay wrote") from error  # fmt: skip


def _described(run: Run | None, tables: Tables | None) -> tuple[dict[str, Any] | None, list[str]]:
    """Return which run the background is, for JSON, and what of it a reader must know before quoting a p-value."""
    if run is None or tables is None:
        return None, []
    outcomes = tables.cells["outcome"].to_list()
    num_open = sum(outcome not in ("done", "diverged") for outcome in outcomes)
    notes = [f"{run.folder}: {MEANINGLESS}, nor do p-values against them"] if run.suite.profile == "smoke" else []
    if num_open:
        notes.append(
            f"{run.folder}: {num_open} of {len(outcomes)} cells are not complete: not all its strangers are there"
        )
    return {"run": str(run.folder), "profile": run.suite.profile, "complete": not num_open}, notes


def _listen(subjects: Sequence[Subject], report: Callable[[str], None]) -> None:
    """Let each model that is to be asked answer the prompts of all."""
    speakers = [subject.speaker for subject in subjects if subject.speaker is not None]
    for speaker in speakers:
        report(f"{speaker.reference}: answering")
        listen_to(speaker, speakers)


def _places(a: Subject, b: Subject, strangers: Background) -> Places:
    """Return what each method says of a pair, and its rank among the strangers that may judge it."""
    scores = {name: (name, method.score(a.numbers, b.numbers)) for name, method in BY_NUMBERS.items()}
    if a.weights is not None and b.weights is not None:
        scores |= {name: (name, method.score(a.weights, b.weights)) for name, method in BY_WEIGHTS.items()}
    for asked, grower in ((a, b), (b, a)):
        if asked.speaker is not None and grower.speaker is not None:
            scores |= {f"{name}, {grower.curves.name} grows": (name, method.score(asked.speaker, grower.speaker))
                       for name, method in BY_BEHAVIOUR.items()}  # fmt: skip
    known = strangers.against(a.curves, b.curves)
    alike = known or strangers.of_tokenizer(a.curves, b.curves)
    return {
        shown: (score, rank(score.value, (pair.scores.get(name, np.nan) for pair in (alike if name in BY_BEHAVIOUR else known))))
        for shown, (name, score) in scores.items()
    }  # fmt: skip


def _derive(a: Subject, b: Subject) -> Derivation:
    return derivation(open_model(a.reference, store=Store()), open_model(b.reference, store=Store()))


def _methods_table(verdicts: Sequence[Verdict], places: Sequence[Places]) -> Table:
    rows = []
    for verdict, place in zip(verdicts, places, strict=True):
        for method, (score, found) in place.items():
            shown = "undefined" if score.reason else f"{score.value:.4f}"
            chances = ("none", "none", "no background") if found is None else (
                f"{found.p:.3f}", f"{found.floor:.3f}", f"{found.n}, median {found.median:.2f}, up to {found.max:.2f}")  # fmt: skip
            rows.append((f"{verdict.a} · {verdict.b}", method, shown, *chances, score.reason or ""))
    return Table(
        title="methods", columns=("pair", "method", "score", "rank p", "floor", "strangers", "why undefined"), rows=rows
    )


def _derivation_lines(verdicts: Sequence[Verdict], derived: Sequence[Derivation | None]) -> list[str]:
    """Say of related pairs how the one was made of the other, if they are parent and child: siblings can look the same."""
    lines = []
    for verdict, made in zip(verdicts, derived, strict=True):
        if made is not None:
            parent = {"a": verdict.a, "b": verdict.b, None: "not told"}[made.parent]
            lines.append(f"{verdict.a} and {verdict.b}, if one was made from the other: {made.kind}"
                         f"{' (' + ', '.join(made.steps) + ')' if len(made.steps) > 1 else ''}, parent {parent}. {made.evidence}")  # fmt: skip
    return lines


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
        "weights": model.weights_key,
    }


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    phase, interval = verdict.phase, verdict.interval
    return {
        "a": verdict.a, "b": verdict.b, "verdict": verdict.word, "sentence": verdict.sentence,
        "paper_exact": _score_json(verdict.paper_exact), "corrected": _score_json(verdict.corrected),
        "layers_redrawn": None if interval is None else {"low": interval.low, "high": interval.high},
        "primary": verdict.primary, "score": encode_value(verdict.score), "background": _rank_json(verdict.background),
        "phase": None if phase is None else {"p": phase.p, "floor": phase.floor, "free_phases": phase.free_phases,
                                             "draws": phase.draws, "copy_p": phase.copy_p},
        "p_adjusted": verdict.p_adjusted, "stratum": verdict.stratum,
    }  # fmt: skip


def _places_json(places: Places) -> dict[str, Any]:
    return {name: {**_score_json(score), "background": _rank_json(found)} for name, (score, found) in places.items()}


def _rank_json(place: Rank | None) -> dict[str, float] | None:
    if place is None:
        return None
    return {
        "n": place.n,
        "median": place.median,
        "q95": place.q95,
        "max": place.max,
        "p": place.p,
        "floor": place.floor,
    }


def _derivation_json(made: Derivation | None, verdict: Verdict) -> dict[str, Any] | None:
    if made is None:
        return None
    parent = None if made.parent is None else {"a": verdict.a, "b": verdict.b}[made.parent]
    return {"kind": made.kind, "steps": list(made.steps), "parent": parent, "evidence": made.evidence,
            "measures": {name: encode_value(value) for name, value in made.measures.items()}}  # fmt: skip


def _score_json(score: Score) -> dict[str, Any]:
    return {"value": encode_value(score.value), "per_role": {role: encode_value(r) for role, r in score.per_role.items()},
            "alignment": score.alignment, "reason": score.reason}  # fmt: skip
