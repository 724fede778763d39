"""What a comparison of two models found, as the typed evidence of the pair."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from modelassay.fingerprints.background import Rank
from modelassay.fingerprints.curves import Score
from modelassay.fingerprints.evidence import (
    AgreementTier,
    Among,
    Conclusion,
    Correction,
    Derivation,
    EqualTensors,
    Evidence,
    ExactTest,
    MethodScore,
    ModelFiles,
    Origin,
    Proposition,
    Requantised,
    SharedTraining,
)
from modelassay.fingerprints.evidence.files import file_hashes
from modelassay.fingerprints.identical import SameBits
from modelassay.fingerprints.independence import Independence
from modelassay.fingerprints.independence.agreement import RATE
from modelassay.fingerprints.meaning import LIMITS, propositions
from modelassay.fingerprints.rederived import Rederivation
from modelassay.fingerprints.verdict import Verdict, shown_p
from modelassay.machine.code import SourceGraph
from modelassay.machine.environment import capture
from modelassay.machine.redact import masked
from modelassay.models.reference import Model

CALIBRATION = ("Calibrated, not exact: how often independent pairs agree, and on which models that was measured, stands in "
               "docs/methods/independence.md.")  # fmt: skip
DECIDING = (
    "modelassay.fingerprints.independence",
    "modelassay.fingerprints.identical",
    "modelassay.fingerprints.methods",
    "modelassay.models.checkpoints",
)
"""Modules whose import closure decides the numbers of a document."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What a comparison found about two models, as the command has it."""

    names: tuple[str, str]
    models: tuple[Model, Model]
    bits: SameBits
    result: Independence
    verdict: Verdict
    places: Mapping[str, tuple[Score, Rank | None]]
    """Method to the score, and where it stands among strangers."""
    ratios: Mapping[str, float]
    """Method to log10 of the likelihood ratio of its score by the families of the background; absent where there is none."""
    among_strangers: str
    """In words."""
    derivation: Derivation | None = None
    requantised: Requantised | None = None
    disagreements: Sequence[str] = ()
    not_tested: Sequence[str] = ()
    """What was left out beyond what `result` says, one sentence each."""


def evidence_of(
    pairs: Sequence[Pair], *, one_suspect: bool, background: str | None, options: Sequence[str]
) -> list[Evidence]:
    """Return the evidence of each pair, without secrets; every file that was read of its models is hashed once, whole.

    Args:
        pairs: what was found.
        one_suspect: the first model was compared with each of the others, and p is corrected for their number.
        background: the run whose strangers the scores were ranked among.
        options: the command line's options that decide the outcome, for the line that repeats it.

    Raises:
        CheckpointError: a model's files cannot be had any more.
    """
    files: dict[str, ModelFiles] = {}
    for pair in pairs:
        for name, model in zip(pair.names, pair.models, strict=True):
            if name not in files:
                files[name] = ModelFiles(
                    name=name, reference=model.reference, commit=model.files.revision, files=file_hashes(model)
                )
    references = [_pinned(model) for model in files.values()]
    named = ["--suspect", references[0], "--candidates", *references[1:]] if one_suspect else references
    surroundings = {
        **_surroundings(),
        "repeat": shlex.join(["modelassay", "fingerprint", *named, *options, "--evidence", "evidence"]),
    }
    return [_without_secrets(_evidence(pair, files, surroundings, background)) for pair in pairs]


def _evidence(pair: Pair, files: Mapping[str, ModelFiles], surroundings: Mapping[str, Any], background: str | None) -> Evidence:  # fmt: skip
    a, b = (files[name] for name in pair.names)
    result, agreement = pair.result, pair.result.agreement
    exact = min(0.0, result.log10_p + math.log10(pair.verdict.num_candidates))
    return Evidence(
        a=a, b=b, propositions=tuple(Proposition(label=label, text=text) for label, text in propositions(a.name, b.name)),
        verdict=Conclusion(word=pair.verdict.word, sentence=pair.verdict.sentence, level=pair.verdict.alpha),
        tests=tuple(ExactTest.model_validate(asdict(test)) for test in result.tests),
        corrected=None if not result.tests else Correction(
            method="Bonferroni", num_tests=4, num_candidates=pair.verdict.num_candidates, log10_p=exact,
            shown=shown_p(exact)),
        agreement=None if agreement is None else AgreementTier(**asdict(agreement), rate=RATE, calibration=CALIBRATION),
        shared_training=None if result.training is None else SharedTraining(
            ratio=result.training.ratio, num_values=result.training.num_values, is_shared=result.training.is_shared),
        equal_tensors=EqualTensors(names=pair.bits.equal, of=pair.bits.total),
        requantised=pair.requantised,
        methods=tuple(_method(name, score, place, pair.ratios.get(name)) for name, (score, place) in pair.places.items()),
        background=background, among_strangers=pair.among_strangers, disagreements=tuple(pair.disagreements), derivation=pair.derivation,
        not_tested=(*result.reasons, *pair.not_tested), limits=LIMITS,
        origin=Origin(**surroundings, needs=_needs((a, b), background)),
    )  # fmt: skip


def _method(name: str, score: Score, place: Rank | None, log10_lr: float | None) -> MethodScore:
    is_defined = bool(np.isfinite(score.value))
    among = None if place is None else Among(
        num_strangers=int(place.n), median=float(place.median), max=float(place.max), rank_p=float(place.p), min_p=float(place.min_p),
        log10_lr=log10_lr)  # fmt: skip
    return MethodScore(method=name, score=float(score.value) if is_defined else None, among=among,
                       undefined=None if is_defined else score.reason or "not defined for this pair")  # fmt: skip


def requantised(source: str, quantised: str, result: Rederivation) -> Requantised:
    """Return what quantising ``source`` again says of ``quantised``, for its evidence."""
    return Requantised(
        source=source, quantised=quantised, matched=len(result.matched), of=len(result.tensors), share=result.share, formats=tuple(result.formats),
        not_redone=result.not_redone, nearly=tuple(str(tensor) for tensor in result.partly),
    )  # fmt: skip


def _surroundings() -> dict[str, Any]:
    """Return what computes here, and when, as far as `Origin` holds it."""
    machine, graph = capture(), SourceGraph()
    git: Any = machine["git"] or {}
    processor: Any = machine["cpu"]
    system: Any = machine["os"]
    libraries, python = dict(graph.libraries(*DECIDING)), machine["python"]
    assert isinstance(python, dict)
    libraries.pop("python")
    code = json.dumps(graph.closure(*DECIDING)).encode()
    installed: Any = machine["libraries"]
    command: Any = machine["command"]
    return {
        "modelassay": installed["modelassay"], "commit": git.get("commit"), "modified": git.get("dirty"),
        "code": hashlib.blake2b(code, digest_size=8).hexdigest(), "python": python["version"], "libraries": libraries,
        "machine": f"{processor['model'] or 'unknown processor'}, {' '.join(str(part) for part in system.values() if part)}",
        "time_utc": machine["started_utc"], "command": tuple(command),
    }  # fmt: skip


def _pinned(model: ModelFiles) -> str:
    """Return a model's reference, of the Hub at the commit that was read."""
    return model.reference if model.commit is None else f"{model.reference.split('@')[0]}@{model.commit}"


def _needs(models: tuple[ModelFiles, ModelFiles], background: str | None) -> str:
    folders = [model.name for model in models if model.commit is None and not model.reference.startswith("zoo:")]
    text = "Anybody can who has this version of modelassay and the files with these hashes"
    if folders:
        text += f"; those of {' and '.join(folders)} lie in a folder and must be handed over"
    return text + ("." if background is None else f"; ranks also need the run {background}.")


def _without_secrets(evidence: Evidence) -> Evidence:
    """Mask every string, as all that is printed is masked; the document is checked again."""
    clean = _masked(evidence.model_dump(mode="json"))
    return Evidence.model_validate_json(json.dumps(clean), strict=True)


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: _masked(item) for key, item in value.items()}
    return [_masked(item) for item in value] if isinstance(value, list | tuple) else value
