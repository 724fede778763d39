"""``modelassay fingerprint A B [C ...]``: a verdict per pair of models at hand, and the scores of all methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from polars.exceptions import PolarsError

from modelassay.commands.fingerprint.evidence import Pair, evidence_of, requantised
from modelassay.commands.fingerprint.printed import (
    Places,
    curves_json,
    derivation_lines,
    methods_table,
    numbering_tables,
    pair_json,
)
from modelassay.commands.fingerprint.subjects import (
    Examination,
    Subject,
    examine,
    fetched_line,
    pairs_of,
    read_subjects,
)
from modelassay.commands.view import View
from modelassay.errors import RecordError, UsageError
from modelassay.experiments.findings import MEANINGLESS
from modelassay.experiments.fingerprinting.analyse.pairs import gather
from modelassay.experiments.fingerprinting.analyse.printed import caveats, placement_table
from modelassay.experiments.fingerprinting.analyse.ratios import calibrations
from modelassay.experiments.fingerprinting.analyse.read import models_of, recorded_scores
from modelassay.fingerprints.background import Background, rank
from modelassay.fingerprints.disagreements import disagreements
from modelassay.fingerprints.evidence import Derivation, Requantised
from modelassay.fingerprints.evidence.folder import require_evidence_folder, write_evidence
from modelassay.fingerprints.lineage import Lineage, lineage
from modelassay.fingerprints.lineage.parents import Parents, parents
from modelassay.fingerprints.methods import BY_BEHAVIOUR, BY_NUMBERS, BY_WEIGHTS
from modelassay.fingerprints.placement import RANK_ALPHA, Placement, adjust, place_among
from modelassay.fingerprints.verdict import Remaking
from modelassay.models.checkpoints.overrides import read_overrides
from modelassay.models.reference import short_names
from modelassay.recording.tables import RunData
from modelassay.runs.directory import Run
from modelassay.statistics.lr import Calibration

PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
"""Formats that are no quantiser's: a copy in one of them is told by its values."""


def fingerprint(models: Sequence[str], *, suspect: str | None, background: Run | None, figure: Path | None, alpha: float,
                attention_only: bool, behaviour: bool, evidence: Path | None, report: Callable[[str], None],
                keep_weights: bool = False, layout: Path | None = None) -> View:  # fmt: skip
    """Examine every pair of ``models``, or ``suspect`` with each of them, and place them among the strangers of ``background``.

    ``alpha`` is the level at which weights are called inherited; with a suspect, p is corrected for the number of candidates.
    ``attention_only`` reads nothing but the four attention matrices, and of the Hub fetches nothing else; what needs more, the verdict too,
    is then left out. ``behaviour`` loads the models whole, one at a time, and asks both of a pair with the prompts that each of them
    generates. What was fetched of weights on the Hub is removed at the end, all but headers, unless ``keep_weights``: of a call that
    fails it stays, and the next one goes on with it. ``layout`` is a file that says where the parts of some model types lie
    (`read_overrides`). The curves are drawn into ``figure``; of each pair `evidence.json` and a page are written into a folder of
    ``evidence``.

    Raises:
        UsageError: fewer than two models, one twice, a background of another suite, an alpha that is no level, an
            unknown kind of figure, behaviour or evidence asked of the attention matrices alone, or a folder of evidence that
            holds something else.
        CheckpointError: a model cannot be read.
    """
    _require_sense(alpha=alpha, behaviour=behaviour, attention_only=attention_only, figure=figure)
    references = list(models) if suspect is None else [suspect, *models]
    if len(references) < 2:
        raise UsageError(f"fingerprint compares models: name at least two, got {len(references)}")
    if evidence is not None:
        _require_evidence(evidence, references, one_suspect=suspect is not None, attention_only=attention_only)
    tables = None if background is None else _background_tables(background)
    strangers, fits = _strangers(background, tables)
    rows = () if layout is None else read_overrides(layout)
    subjects = read_subjects(references, attention_only=attention_only, behaviour=behaviour, whole=evidence is not None,
                             report=report, rows=rows)  # fmt: skip
    pairs = pairs_of(subjects, one_suspect=suspect is not None)
    num_candidates = 1 if suspect is None else len(models)
    examinations = [examine(a, b, alpha=alpha, num_candidates=num_candidates, report=report) for a, b in pairs]
    places = [_places(a, b, strangers) for a, b in pairs]
    ratios = [_ratios(place, fits) for place in places]
    placements = adjust([
        place_among(a.curves, b.curves, strangers, by_weights={name: score.value for name, (score, _) in place.items()})
        for (a, b), place in zip(pairs, places, strict=True)
    ])  # fmt: skip
    derivations = [_derive(a, b, examination) for (a, b), examination in zip(pairs, examinations, strict=True)]
    ancestors = None if suspect is None else _parents(pairs, examinations)
    contradictions = [
        [] if examination is None else disagreements(examination.verdict, placement, _behaviour(place))
        for examination, placement, place in zip(examinations, placements, places, strict=True)
    ]
    words = {frozenset((placement.a, placement.b)): examination.verdict.word
             for placement, examination in zip(placements, examinations, strict=True) if examination is not None}  # fmt: skip
    against, about = _described(background, tables)
    notes = [*about, *caveats(placements, strangers), *_multiplicity(pairs, suspect, alpha)]
    curves = [subject.curves for subject in subjects]
    if figure is not None:
        from modelassay.charts import write_figure  # here: most calls draw nothing
        from modelassay.fingerprints.figures import comparison_figure

        write_figure(comparison_figure(curves, placements), figure)
    folders: list[Path] = []
    if evidence is not None:
        report("hashing what was read, for the evidence")
        options = [*([] if background is None else ["--against", str(background.folder)]), "--alpha", f"{alpha:g}",
                   *(["--behaviour"] if behaviour else [])]  # fmt: skip
        proofs = [
            _pair(*parts)
            for parts in zip(pairs, examinations, places, ratios, placements, contradictions, derivations, strict=True)
        ]
        folders = write_evidence(evidence, evidence_of(
            proofs, one_suspect=suspect is not None, background=None if background is None else str(background.folder), options=options))  # fmt: skip
    fetched = [line for subject in subjects if (line := fetched_line(subject)) is not None]
    for subject in subjects if not keep_weights else ():
        subject.model.files.release()
    return View(
        data={"alpha": alpha, "suspect": suspect, "against": against, "models": [curves_json(model) for model in curves],
              "pairs": [pair_json(*parts) for parts in zip(placements, examinations, places, ratios, derivations, contradictions, strict=True)],
              "parents": None if ancestors is None else asdict(ancestors), "caveats": notes, "evidence": [str(folder) for folder in folders]},
        summary=[*(examination.verdict.sentence for examination in examinations if examination is not None),
                 *(sentence for sentences in contradictions for sentence in sentences), *derivation_lines(placements, derivations),
                 *([] if ancestors is None else [ancestors.sentence])],
        tables=[*numbering_tables(pairs, examinations), placement_table(placements, words), methods_table(placements, places, ratios)],
        lines=[*(placement.sentence for placement in placements), *fetched, *(f"note: {note}" for note in notes),
               *([] if figure is None else [f"figure: {figure}"]), *(f"evidence: {folder}" for folder in folders)],
    )  # fmt: skip


def _require_sense(*, alpha: float, behaviour: bool, attention_only: bool, figure: Path | None) -> None:
    """Refuse options that mean nothing, alone or together.

    Raises:
        UsageError: with the first of them.
    """
    if not 0 < alpha < 1:  # NaN too
        raise UsageError(f"alpha: a level lies between 0 and 1, got {alpha}")
    if behaviour and attention_only:
        raise UsageError(
            "--behaviour runs whole models and --attention-only reads four matrices; leave one of them out"
        )
    if figure is not None and figure.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"{figure}: a figure ends in .png, .svg or .pdf, got {figure.suffix or 'no ending'}")


def _require_evidence(folder: Path, references: Sequence[str], *, one_suspect: bool, attention_only: bool) -> None:
    """Refuse at once what could only fail after all models were read."""
    if attention_only:
        raise UsageError(
            "--evidence needs the tests of whole models and --attention-only reads four matrices; leave one of them out"
        )
    require_evidence_folder(folder, pairs_of(short_names(references), one_suspect=one_suspect))


def _pair(pair: tuple[Subject, Subject], examination: Examination | None, place: Places, ratios: Mapping[str, float], placement: Placement,
          contradictions: Sequence[str], relation: Lineage | None) -> Pair:  # fmt: skip
    """Return what was learnt of a pair, for its evidence."""
    assert examination is not None  # --evidence is refused where none is made
    a, b = pair
    names = a.curves.name, b.curves.name
    parent = None if relation is None or relation.parent is None else names[0 if relation.parent == "a" else 1]
    derivation = None if relation is None else Derivation(
        kind=relation.kind, steps=tuple(relation.steps), parent=parent, evidence=relation.evidence)  # fmt: skip
    return Pair(names=names, models=(a.model, b.model), bits=examination.bits, result=examination.result, verdict=examination.verdict,
                requantised=_requantised(examination.remaking), places=place, ratios=ratios, among_strangers=placement.sentence, derivation=derivation, disagreements=contradictions,
                not_tested=[] if a.prompted is not None else ["behaviour: not asked; --behaviour asks the models"])  # fmt: skip


def _requantised(remaking: Remaking | None) -> Requantised | None:
    return None if remaking is None else requantised(remaking.source, remaking.copy, remaking.outcome)


def _background_tables(run: Run) -> RunData:
    if run.suite.experiment.name != "fingerprinting":
        raise UsageError(f"{run.folder}: a run of {run.suite.name} holds no sigma-curves; give one of fingerprinting")
    return run.data()


def _strangers(run: Run | None, tables: RunData | None) -> tuple[Background, Mapping[str, Calibration]]:
    """Return the strangers of a run, and what its pairs of known ancestry make of a method's score."""
    if run is None or tables is None:
        return Background.from_models([]), {}
    try:
        models = models_of(tables)
        recorded = recorded_scores(tables, {reference: model.curves.name for reference, model in models.items()})
        background = Background.from_models(models.values(), recorded)
        return background, calibrations(gather(models, recorded, background, alpha=RANK_ALPHA))
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


def _places(a: Subject, b: Subject, strangers: Background) -> Places:
    """Return what each method says of a pair, and its rank among the strangers that may judge it."""
    scores = {name: (name, method.score(a.summary, b.summary)) for name, method in BY_NUMBERS.items()}
    if a.weights is not None and b.weights is not None:
        scores |= {name: (name, method.score(a.weights, b.weights)) for name, method in BY_WEIGHTS.items()}
    for asked, base in ((a, b), (b, a)):
        if asked.prompted is not None and base.prompted is not None:
            scores |= {f"{name}, {base.curves.name} grows": (name, method.score(asked.prompted, base.prompted))
                       for name, method in BY_BEHAVIOUR.items()}  # fmt: skip
    same_shape = strangers.against(a.curves, b.curves)
    alike = strangers.against_behaviour(a.curves, b.curves)
    return {
        shown: (score, rank(score.value, (pair.scores.get(name, np.nan) for pair in (alike if name in BY_BEHAVIOUR else same_shape))))
        for shown, (name, score) in scores.items()
    }  # fmt: skip


def _ratios(place: Places, fits: Mapping[str, Calibration]) -> dict[str, float]:
    """Return log10 of the likelihood ratio of each score that has strangers to stand among."""
    methods = {shown: shown.split(",")[0] for shown in place}
    return {shown: fits[methods[shown]].log10(score.value) for shown, (score, rank) in place.items()
            if rank is not None and methods[shown] in fits}  # fmt: skip


def _behaviour(place: Places) -> list[tuple[float, Any]]:
    """Return the scores of behaviour with their ranks."""
    return [(score.value, rank) for name, (score, rank) in place.items() if name.split(",")[0] in BY_BEHAVIOUR]


def _derive(a: Subject, b: Subject, examination: Examination | None) -> Lineage | None:
    """Return how one of a pair was made of the other, where weights are shared at all."""
    if examination is None or examination.verdict.word not in ("inherited", "re-derived"):
        return None
    remaking = examination.remaking
    if examination.verdict.word == "re-derived" and remaking is not None and not set(remaking.outcome.formats) <= PLAIN:
        return Lineage(kind="rounded", steps=("rounded",), parent=None, measures={}, evidence=(
            f"{remaking.copy} is {remaking.source} stored again as {', '.join(remaking.outcome.formats)}, to the bit, so that no other change "
            "is looked for; which of the two came first is not told"))  # fmt: skip
    return lineage(a.model.checkpoint(), b.model.checkpoint())


def _parents(pairs: Sequence[tuple[Subject, Subject]], examinations: Sequence[Examination | None]) -> Parents | None:
    """Return which candidates the suspect's weights are made of; None where none shares its numbering."""
    inherited = [candidate.model.checkpoint() for (_, candidate), examination in zip(pairs, examinations, strict=True)
                 if examination is not None and examination.verdict.word in ("identical", "re-derived", "inherited")]  # fmt: skip
    return parents(pairs[0][0].model.checkpoint(), inherited) if inherited else None


def _multiplicity(pairs: Sequence[tuple[Subject, Subject]], suspect: str | None, alpha: float) -> list[str]:
    """Say what p-values of several pairs are corrected for."""
    if len(pairs) == 1 or suspect is not None or pairs[0][0].matrices is None:
        return []
    return [
        f"each of {len(pairs)} pairs is tested at {alpha:g} for itself; of one model against candidates: --suspect A --candidates B C"
    ]
