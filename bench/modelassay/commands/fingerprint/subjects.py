"""The models that ``fingerprint`` was given, and the pairs of them that are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

from modelassay.errors import UsageError
from modelassay.fingerprints.bottom_k import PromptedModel, compute_responses
from modelassay.fingerprints.curves import Curves
from modelassay.fingerprints.identical import SameBits, same_bits
from modelassay.fingerprints.independence import Independence, ModelMatrices, independence, matrices_of
from modelassay.fingerprints.measure import summarise_model
from modelassay.fingerprints.methods import ModelSummary
from modelassay.fingerprints.rederived import rederived
from modelassay.fingerprints.verdict import Remaking, Verdict, conclude
from modelassay.fingerprints.weights import Weights, load_weights
from modelassay.models.checkpoints.architectures import Overrides
from modelassay.models.checkpoints.layers import layer_spans
from modelassay.models.checkpoints.prepare import need, prepare_spans
from modelassay.models.checkpoints.tensors import fetch_weights
from modelassay.models.reference import Model, short_names
from modelassay.storage.store import Store
from modelassay.zoo.resolve import resolve

Report = Callable[[str], None]
_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that was named on the command line."""

    model: Model
    summary: ModelSummary
    weights: Weights | None
    """None where only the attention matrices were asked for."""
    prompted: PromptedModel | None
    """None where its behaviour was not asked for."""
    matrices: ModelMatrices | None
    """What the tests of independent numbering read; None where only the attention matrices were asked for."""

    @property
    def curves(self) -> Curves:
        """Its curves."""
        return self.summary.curves


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What two checkpoints alone say of a pair."""

    bits: SameBits
    remaking: Remaking | None
    """None where neither is stored in fewer bits than the other."""
    result: Independence
    verdict: Verdict


Pairs = Sequence[tuple[Subject, Subject]]


def read_subjects(references: Sequence[str], *, attention_only: bool, behaviour: bool, report: Report, whole: bool = False,
                  rows: tuple[Overrides, ...] = ()) -> list[Subject]:  # fmt: skip
    """Read the models; with ``behaviour`` each answers the prompts of all. ``rows`` say where the parts of some model types lie.

    All are opened before weights of any are fetched, so that what cannot be read is told first. Of the Hub's the ranges of the
    matrices come together; ``whole`` fetches whole files, whose hashes somebody asks for.

    Raises:
        UsageError: one is named twice.
        CheckpointError: a model cannot be read.
    """
    if repeated := [model for model in dict.fromkeys(references) if references.count(model) > 1]:
        raise UsageError(f"{repeated[0]}: named twice; name each model once")
    store, subjects = Store(), []
    names = short_names(references)
    models = [resolve(reference, store=store) for reference in references]
    if rows:  # what was kept of a model was read without them
        models = [replace(model, rows=rows, identity=None) for model in models]
    for name, model in zip(names, models, strict=True):
        if (whole or behaviour) and not model.files.local:
            report(f"{name}: fetching whole files")
            fetch_weights(model.files)
        model.checkpoint()
    for name, model in zip(names, models, strict=True):
        report(f"{name}: reading")
        for note in model.checkpoint().notes:
            report(f"{name}: {note}")
        if not model.files.local:
            _fetch(name, model, attention_only=attention_only, report=report)
        subjects.append(Subject(
            model=model, summary=summarise_model(model, name=name, whole=not attention_only),
            weights=None if attention_only else load_weights(model, store=store),
            prompted=PromptedModel(model, store=store) if behaviour else None,
            matrices=None if attention_only else matrices_of(model),
        ))  # fmt: skip
    prompted = [subject.prompted for subject in subjects if subject.prompted is not None]
    for model_asked in prompted:
        report(f"{model_asked.reference}: answering")
        compute_responses(model_asked, prompted)
    return subjects


def _fetch(name: str, model: Model, *, attention_only: bool, report: Report) -> None:
    """Fetch what is read of every matrix, at once."""
    checkpoint = model.checkpoint()
    spans = [matrix.span for matrix in checkpoint.matrices]
    if not attention_only:
        checkpoint.tensors.open_files(checkpoint.tensors.names())
        spans.extend(span for layer in layer_spans(checkpoint) for group in layer.values() for span in group)
    state = need(spans)
    if state.missing_bytes:
        hint = "" if attention_only else "; --sampled tests the numbering by some thousandths of it"
        report(f"{name}: fetching {state.missing_bytes:,} of {model.files.weights_bytes():,} bytes of weights{hint}")
    prepare_spans(spans)


def fetched_line(subject: Subject) -> str | None:
    """Say how much of a model's weights was fetched in parts; None where nothing was."""
    files = subject.model.files
    if not (fetched := files.fetched_bytes()):
        return None
    total = files.weights_bytes()
    return f"{subject.curves.name}: {fetched:,} of {total:,} bytes of weights fetched ({fetched / total:.1%})"


def pairs_of(items: Sequence[_Item], *, one_suspect: bool) -> list[tuple[_Item, _Item]]:
    """Return the pairs of models, or of their names, to compare: all, or the first with each of the others."""
    return [(items[0], other) for other in items[1:]] if one_suspect else list(combinations(items, 2))


def examine(a: Subject, b: Subject, *, alpha: float, num_candidates: int, report: Report) -> Examination | None:
    """Test a pair by its two checkpoints; None where only the attention matrices were asked for."""
    if a.matrices is None or b.matrices is None:
        return None
    names = a.curves.name, b.curves.name
    report(f"{names[0]} and {names[1]}: were they numbered independently?")
    bits = same_bits(a.model.checkpoint(), b.model.checkpoint())
    remaking = None if bits.all_equal else _remade(a, b)
    result = independence(a.matrices, b.matrices, alpha=alpha / num_candidates)
    verdict = conclude(*names, bits, result, remaking=remaking, alpha=alpha, num_candidates=num_candidates)
    return Examination(bits=bits, remaking=remaking, result=result, verdict=verdict)


def _remade(a: Subject, b: Subject) -> Remaking | None:
    """Quantise each of a pair again and compare with the other: the order that gives its bits, else the first that could be tried."""
    attempts = []
    for source, copy in ((a, b), (b, a)):
        outcome = rederived(source.model, copy.model)
        if outcome is not None:
            attempts.append(Remaking(source=source.curves.name, copy=copy.curves.name, outcome=outcome))
    return max(attempts, key=lambda attempt: (attempt.outcome.is_rederived, len(attempt.outcome.matched)), default=None)
