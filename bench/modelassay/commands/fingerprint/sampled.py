"""``modelassay fingerprint --sampled``: a verdict per pair from a few rows of each model, for thousandths of its bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modelassay.commands.fingerprint.subjects import pairs_of
from modelassay.commands.view import View
from modelassay.errors import UsageError
from modelassay.experiments.findings import Table
from modelassay.fingerprints.independence.blocks import SampledModel
from modelassay.fingerprints.independence.sampling import (
    LOOKS,
    SampledIndependence,
    SampledSigma,
    sampled_independence,
    sampled_sigmas,
)
from modelassay.fingerprints.verdict import NO_PROOF, counted, shown_p
from modelassay.models.checkpoints import checkpoint_of
from modelassay.models.hub import Files
from modelassay.models.reference import short_names
from modelassay.models.weights_only import WeightsOnly
from modelassay.recording.log import encode_value
from modelassay.storage.store import Store
from modelassay.zoo.resolve import resolve


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A model of which a few rows are read."""

    name: str
    files: Files
    model: SampledModel

    @property
    def size_bytes(self) -> int:
        """Of all its weights' files."""
        return self.files.weights_bytes()


def sampled(models: Sequence[str], *, suspect: str | None, alpha: float, report: Callable[[str], None]) -> View:
    """Test every pair of ``models``, or ``suspect`` with each of them, by as few rows as decide it at ``alpha``.

    With a suspect p is corrected for the number of candidates. What was read of models of the Hub stays in the cache: it is small.

    Raises:
        UsageError: fewer than two models, or one twice.
        CheckpointError: a model cannot be read.
        HostError: the Hub cannot be reached.
    """
    references = list(models) if suspect is None else [suspect, *models]
    if len(references) < 2:
        raise UsageError(f"fingerprint compares models: name at least two, got {len(references)}")
    if repeated := [model for model in dict.fromkeys(references) if references.count(model) > 1]:
        raise UsageError(f"{repeated[0]}: named twice; name each model once")
    store, samples = Store(), []
    for reference, name in zip(references, short_names(references), strict=True):
        report(f"{name}: opening")
        files = WeightsOnly(resolve(reference, store=store).files)
        samples.append(Sample(name=name, files=files, model=SampledModel(checkpoint_of(files))))
    num_candidates = 1 if suspect is None else len(models)
    pairs = pairs_of(samples, one_suspect=suspect is not None)
    results = []
    for a, b in pairs:
        report(f"{a.name} and {b.name}: reading {LOOKS[0]} rows of a few matrices, more while it is open")
        results.append(sampled_independence(a.model, b.model, alpha=alpha / num_candidates))
    num_rows = max((look.num_rows for result in results for look in result.looks), default=LOOKS[0])
    sigmas = [sampled_sigmas(sample.model, min(num_rows, LOOKS[0])) for sample in samples]
    sentences = [
        _sentence(a, b, result, alpha=alpha, num_candidates=num_candidates)
        for (a, b), result in zip(pairs, results, strict=True)
    ]
    return View(
        data={
            "alpha": alpha, "suspect": suspect, "sampled": True,
            "models": [_model_json(*parts) for parts in zip(samples, sigmas, strict=True)],
            "pairs": [{"a": a.name, "b": b.name, "verdict": _word(result, alpha, num_candidates), "sentence": sentence,
                       "log10_p": encode_value(min(0.0, result.log10_p + math.log10(num_candidates))),
                       "looks": [asdict(look) for look in result.looks], "not_tested": list(result.reasons)}
                      for (a, b), result, sentence in zip(pairs, results, sentences, strict=True)],
        },
        summary=sentences,
        tables=[_looks_table(pairs, results), _sigmas_table(samples, sigmas)],
        lines=[*_bytes_lines(samples, pairs, results),
               "note: only the numbering was tested, on blocks of rows; curves, scores, equal bits and derivation are with whole models: leave --sampled out"],
    )  # fmt: skip


def _word(result: SampledIndependence, alpha: float, num_candidates: int) -> str:
    if not any(look.tests for look in result.looks):
        return "undecided"
    is_rejected = result.log10_p + math.log10(num_candidates) <= math.log10(alpha)
    return "inherited" if is_rejected else "not distinguishable from independent"


def _sentence(a: Sample, b: Sample, result: SampledIndependence, *, alpha: float, num_candidates: int) -> str:
    word, strongest = _word(result, alpha, num_candidates), result.strongest
    if strongest is None:
        return (f"{a.name} and {b.name}: undecided; no test could be made of rows of one number ({'; '.join(result.reasons)}); "
                "leave --sampled out")  # fmt: skip
    shown = shown_p(min(0.0, result.log10_p + math.log10(num_candidates)))
    over = f", corrected for {num_candidates} candidates," if num_candidates > 1 else ""
    read = f"of up to {result.looks[-1].num_rows} rows of each matrix of {len(a.model.layers)} layers"
    if word == "inherited":
        return (f"{a.name} and {b.name}: inherited; {counted(strongest)}, {shown}{over} if {b.name} had been numbered independently of "
                f"{a.name} ({read}). Weights, directly or through steps, or the same initial weights, or one pattern laid into both.")  # fmt: skip
    return (f"{a.name} and {b.name}: {word}; {counted(strongest)}, {shown}{over.rstrip(',')} ({read}). {NO_PROOF} Copies that were renumbered or "
            "rotated are found by whole models alone: leave --sampled out.")  # fmt: skip


def _model_json(sample: Sample, sigmas: Sequence[SampledSigma]) -> dict[str, Any]:
    return {"model": sample.name, "weights_bytes": sample.size_bytes, "fetched_bytes": sample.files.fetched_bytes(),
            "sigmas": [{"layer": one.layer, "role": one.role, **{key: encode_value(value) if isinstance(value, float) else value
                                                                 for key, value in asdict(one.sigma).items()}} for one in sigmas]}  # fmt: skip


def _looks_table(pairs: Sequence[tuple[Sample, Sample]], results: Sequence[SampledIndependence]) -> Table:
    rows = [
        (f"{a.name} · {b.name}", f"{look.num_rows}", test.name, f"{test.count} of {test.of} ({test.expected:.3g})",
         f"{test.near_count} of {test.near_of} ({test.near_expected:.3g})", shown_p(test.log10_p), shown_p(look.log10_p))
        for (a, b), result in zip(pairs, results, strict=True) for look in result.looks for test in look.tests
    ]  # fmt: skip
    columns = ("pair", "rows", "matched", "own number", "among neighbours", "p of the test", "p of the look")
    return Table(title="independent numbering, by rows read", columns=columns, rows=rows)


def _sigmas_table(samples: Sequence[Sample], sigmas: Sequence[Sequence[SampledSigma]]) -> Table:
    rows = [
        (sample.name, f"{one.layer}", one.role, f"{one.sigma.value:.5g}",
         f"{one.sigma.low:.5g} to {one.sigma.high:.5g}" if one.sigma.low is not None else "none", f"{one.sigma.n}")
        for sample, ones in zip(samples, sigmas, strict=True) for one in ones
    ]  # fmt: skip
    return Table(
        title="standard deviations of sampled matrices",
        columns=("model", "layer", "matrix", "sigma", "95 % interval", "rows"),
        rows=rows,
    )


def _bytes_lines(
    samples: Sequence[Sample], pairs: Sequence[tuple[Sample, Sample]], results: Sequence[SampledIndependence]
) -> list[str]:
    lines = []
    for sample in samples:
        needed = max((look.num_bytes[side] for pair, result in zip(pairs, results, strict=True) for look in result.looks
                      for side in (0, 1) if pair[side] is sample), default=0)  # fmt: skip
        share = needed / sample.size_bytes if sample.size_bytes else 0.0
        fetched = "" if sample.files.local else f"; {sample.files.fetched_bytes():,} bytes fetched now, headers too"
        lines.append(f"{sample.name}: {needed:,} bytes of {sample.size_bytes:,} needed ({share:.3%}){fetched}")
    return lines
