"""``modelassay fingerprint A B [C ...]``: scores of all methods and a verdict for models at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from polars.exceptions import PolarsError

from modelassay.commands.view import View
from modelassay.errors import RecordError, UsageError
from modelassay.experiments.findings import MEANINGLESS, Table
from modelassay.experiments.fingerprinting.analyse.printed import caveats, verdict_table
from modelassay.experiments.fingerprinting.analyse.read import models_of, recorded_scores
from modelassay.fingerprints.background import Background, Rank, rank
from modelassay.fingerprints.bottom_k import PromptedModel, compute_responses
from modelassay.fingerprints.curves import ROLES, Curves, Score
from modelassay.fingerprints.identical import SameBits, same_bits
from modelassay.fingerprints.independence import Independence, ModelMatrices, independence, matrices_of
from modelassay.fingerprints.independence.statement import Statement, shown_p, state
from modelassay.fingerprints.lineage import Lineage, lineage
from modelassay.fingerprints.measure import summarise_model
from modelassay.fingerprints.methods import BY_BEHAVIOUR, BY_NUMBERS, BY_WEIGHTS, ModelSummary
from modelassay.fingerprints.verdict import Verdict, adjust, judge
from modelassay.fingerprints.weights import Weights, load_weights
from modelassay.models.reference import Model, short_names
from modelassay.recording.log import encode_value
from modelassay.recording.tables import RunData
from modelassay.runs.directory import Run
from modelassay.storage.store import Store
from modelassay.zoo.resolve import resolve


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that was named on the command line."""

    model: Model
    summary: ModelSummary
    weights: Weights | None
    """None where only the attention matrices were wanted."""
    prompted: PromptedModel | None
    """None where its behaviour was not asked for."""
    matrices: ModelMatrices | None
    """What the tests of independent numbering read; None where only the attention matrices were wanted."""

    @property
    def curves(self) -> Curves:
        """Its curves."""
        return self.summary.curves


Places = Mapping[str, tuple[Score, Rank | None]]
"""Method to the score of a pair, and where it stands among strangers; no rank where none are known."""


def fingerprint(models: Sequence[str], *, background: Run | None, figure: Path | None, alpha: float, attention_only: bool,
                behaviour: bool, report: Callable[[str], None]) -> View:  # fmt: skip
    """Judge every pair of ``models`` against the strangers of ``background``; draw them into ``figure``.

    ``attention_only`` reads nothing but the four attention matrices, and of the Hub fetches nothing else; methods that
    need more are then left out. ``behaviour`` loads the models whole, one at a time, and asks both of a pair with the prompts
    that each of them generates.

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
    tables = None if background is None else _background_tables(background)
    strangers = _strangers(background, tables)
    _check(models, figure)
    store, subjects = Store(), []
    for reference, name in zip(models, short_names(models), strict=True):
        report(f"{name}: reading")
        model = resolve(reference, store=store)
        summary = summarise_model(model, name=name, whole=not attention_only)
        weights = None if attention_only else load_weights(model, store=store)
        prompted = PromptedModel(model, store=store) if behaviour else None
        matrices = None if attention_only else matrices_of(model)
        subjects.append(Subject(model=model, summary=summary, weights=weights, prompted=prompted, matrices=matrices))
    _respond(subjects, report)
    pairs = list(combinations(subjects, 2))
    numbered = [_numbering(a, b, report) for a, b in pairs]
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
        from modelassay.charts import write_figure  # here: most calls draw nothing
        from modelassay.fingerprints.figures import comparison_figure

        write_figure(comparison_figure(curves, verdicts), figure)
    return View(
        data={"alpha": alpha, "against": against, "models": [_curves_json(model) for model in curves],
              "pairs": [{**_verdict_json(verdict), "independence": None if numbering is None else numbering.json(),
                         "methods": _places_json(place), "derivation": _derivation_json(relation, verdict)}
                        for verdict, numbering, place, relation in zip(verdicts, numbered, places, derived, strict=True)], "caveats": notes},
        tables=[*_numbering_tables(pairs, numbered), verdict_table(verdicts), _methods_table(verdicts, places)],
        lines=[*(numbering.statement.sentence for numbering in numbered if numbering is not None),
               *(verdict.sentence for verdict in verdicts), *_derivation_lines(verdicts, derived),
               *(f"note: {note}" for note in notes), *([] if figure is None else [f"figure: {figure}"])],
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Numbering:
    """What two checkpoints alone say of a pair."""

    bits: SameBits
    result: Independence
    statement: Statement

    def json(self) -> dict[str, Any]:
        """Return it as the JSON of a pair."""
        agreement = self.result.agreement
        return {
            "word": self.statement.word, "sentence": self.statement.sentence, "alpha": self.statement.alpha,
            "log10_p": self.result.log10_p, "tests": [asdict(test) for test in self.result.tests],
            "agreement": None if agreement is None else asdict(agreement), "not_tested": list(self.result.reasons),
            "equal_tensors": list(self.bits.equal), "tensors": self.bits.total,
        }  # fmt: skip


def _numbering(a: Subject, b: Subject, report: Callable[[str], None]) -> Numbering | None:
    """Test a pair by its two checkpoints; None where only the attention matrices were wanted."""
    if a.matrices is None or b.matrices is None:
        return None
    names = a.curves.name, b.curves.name
    report(f"{names[0]} and {names[1]}: were they numbered independently?")
    bits, result = same_bits(a.model.checkpoint(), b.model.checkpoint()), independence(a.matrices, b.matrices)
    return Numbering(bits=bits, result=result, statement=state(*names, bits, result))


def _numbering_tables(pairs: Sequence[tuple[Subject, Subject]], numbered: Sequence[Numbering | None]) -> list[Table]:
    rows: list[tuple[str, ...]] = []
    for (a, b), numbering in zip(pairs, numbered, strict=True):
        if numbering is not None:
            pair = f"{a.curves.name} · {b.curves.name}"
            rows.extend((pair, test.name, test.statistic, f"{test.count} of {test.of}", f"{test.expected:.3g}", shown_p(test.log10_p))
                        for test in numbering.result.tests)  # fmt: skip
    columns = ("pair", "matched", "statistic", "count", "expected", "p of the test")
    return [Table(title="independent numbering", columns=columns, rows=rows)] if rows else []


def _check(models: Sequence[str], figure: Path | None) -> None:
    if len(models) < 2:
        raise UsageError(f"fingerprint compares models: name at least two, got {len(models)}")
    if repeated := [model for model in dict.fromkeys(models) if models.count(model) > 1]:
        raise UsageError(f"{repeated[0]}: named twice; name each model once")
    if figure is not None and figure.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"{figure}: a figure ends in .png, .svg or .pdf, got {figure.suffix or 'no ending'}")


def _background_tables(run: Run) -> RunData:
    if run.suite.experiment.name != "fingerprinting":
        raise UsageError(f"{run.folder}: a run of {run.suite.name} holds no sigma-curves; give one of fingerprinting")
    return run.data()


def _strangers(run: Run | None, tables: RunData | None) -> Background:
    if run is None or tables is None:
        return Background.from_models([])
    try:
        models = models_of(tables)
        recorded = recorded_scores(tables, {reference: model.curves.name for reference, model in models.items()})
        return Background.from_models(models.values(), recorded)
    except (PolarsError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise RecordError(f"{run.folder}: its records are not those of measured models ({type(error).__name__}: {error}); "
                          "give a run that modelassay wrote") from error  # fmt: skip


def _described(run: Run | None, tables: RunData | None) -> tuple[dict[str, Any] | None, list[str]]:
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


def _respond(subjects: Sequence[Subject], report: Callable[[str], None]) -> None:
    """Let each model that is to be asked answer the prompts of all."""
    models = [subject.prompted for subject in subjects if subject.prompted is not None]
    for model in models:
        report(f"{model.reference}: answering")
        compute_responses(model, models)


def _places(a: Subject, b: Subject, strangers: Background) -> Places:
    """Return what each method says of a pair, and its rank among the strangers that may judge it."""
    scores = {name: (name, method.score(a.summary, b.summary)) for name, method in BY_NUMBERS.items()}
    if a.weights is not None and b.weights is not None:
        scores |= {name: (name, method.score(a.weights, b.weights)) for name, method in BY_WEIGHTS.items()}
    for suspect, base in ((a, b), (b, a)):
        if suspect.prompted is not None and base.prompted is not None:
            scores |= {f"{name}, {base.curves.name} grows": (name, method.score(suspect.prompted, base.prompted))
                       for name, method in BY_BEHAVIOUR.items()}  # fmt: skip
    same_shape = strangers.against(a.curves, b.curves)
    alike = strangers.against_behaviour(a.curves, b.curves)
    return {
        shown: (score, rank(score.value, (pair.scores.get(name, np.nan) for pair in (alike if name in BY_BEHAVIOUR else same_shape))))
        for shown, (name, score) in scores.items()
    }  # fmt: skip


def _derive(a: Subject, b: Subject) -> Lineage:
    return lineage(a.model.checkpoint(), b.model.checkpoint())


def _methods_table(verdicts: Sequence[Verdict], places: Sequence[Places]) -> Table:
    rows = []
    for verdict, place in zip(verdicts, places, strict=True):
        for method, (score, place_rank) in place.items():
            shown = "undefined" if score.reason else f"{score.value:.4f}"
            chances = ("none", "none", "no background") if place_rank is None else (
                f"{place_rank.p:.3f}", f"{place_rank.min_p:.3f}", f"{place_rank.n}, median {place_rank.median:.2f}, up to {place_rank.max:.2f}")  # fmt: skip
            rows.append((f"{verdict.a} · {verdict.b}", method, shown, *chances, score.reason or ""))
    return Table(
        title="methods", columns=("pair", "method", "score", "rank p", "min p", "strangers", "why undefined"), rows=rows
    )


def _derivation_lines(verdicts: Sequence[Verdict], derived: Sequence[Lineage | None]) -> list[str]:
    """Say of related pairs how the one was made of the other, if they are parent and child: siblings can look the same."""
    lines = []
    for verdict, relation in zip(verdicts, derived, strict=True):
        if relation is not None:
            parent = {"a": verdict.a, "b": verdict.b, None: "unknown"}[relation.parent]
            lines.append(f"{verdict.a} and {verdict.b}, if one was made from the other: {relation.kind}"
                         f"{' (' + ', '.join(relation.steps) + ')' if len(relation.steps) > 1 else ''}, parent {parent}. {relation.evidence}")  # fmt: skip
    return lines


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
        "phase": None if phase is None else {"p": phase.p, "min_p": phase.min_p, "free_phases": phase.free_phases,
                                             "draws": phase.draws, "copy_p": phase.copy_p},
        "p_adjusted": verdict.p_adjusted, "stratum": verdict.stratum,
    }  # fmt: skip


def _places_json(places: Places) -> dict[str, Any]:
    return {
        name: {**_score_json(score), "background": _rank_json(place_rank)}
        for name, (score, place_rank) in places.items()
    }


def _rank_json(place: Rank | None) -> dict[str, float] | None:
    if place is None:
        return None
    return {
        "n": place.n,
        "median": place.median,
        "q95": place.q95,
        "max": place.max,
        "p": place.p,
        "min_p": place.min_p,
    }


def _derivation_json(relation: Lineage | None, verdict: Verdict) -> dict[str, Any] | None:
    if relation is None:
        return None
    parent = None if relation.parent is None else {"a": verdict.a, "b": verdict.b}[relation.parent]
    return {"kind": relation.kind, "steps": list(relation.steps), "parent": parent, "evidence": relation.evidence,
            "measures": {name: encode_value(value) for name, value in relation.measures.items()}}  # fmt: skip


def _score_json(score: Score) -> dict[str, Any]:
    return {"value": encode_value(score.value), "per_role": {role: encode_value(r) for role, r in score.per_role.items()},
            "alignment": score.alignment, "reason": score.reason}  # fmt: skip
