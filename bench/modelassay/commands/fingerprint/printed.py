"""What ``fingerprint`` prints of each pair: tables, lines, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from modelassay.commands.fingerprint.subjects import Examination, Pairs
from modelassay.experiments.findings import Table
from modelassay.fingerprints.background import Rank
from modelassay.fingerprints.curves import Curves, Score
from modelassay.fingerprints.lineage import Lineage
from modelassay.fingerprints.placement import Placement
from modelassay.fingerprints.verdict import Remaking, shown_p
from modelassay.recording.log import encode_value

Places = Mapping[str, tuple[Score, Rank | None]]
"""Method to the score of a pair, and where it stands among strangers; no rank where none are known."""


def numbering_tables(pairs: Pairs, examinations: Sequence[Examination | None]) -> list[Table]:
    """Return the table of all tests of independent numbering; none where none was made."""
    rows: list[tuple[str, ...]] = []
    for (a, b), examination in zip(pairs, examinations, strict=True):
        if examination is not None:
            pair = f"{a.curves.name} · {b.curves.name}"
            rows.extend((pair, test.name, test.statistic, f"{test.count} of {test.of}", f"{test.expected:.3g}",
                         f"{test.near_count} of {test.near_of} ({test.near_expected:.3g})", shown_p(test.log10_p))
                        for test in examination.result.tests)  # fmt: skip
    columns = ("pair", "matched", "statistic", "count", "expected", "among neighbours", "p of the test")
    return [Table(title="independent numbering", columns=columns, rows=rows)] if rows else []


def methods_table(
    placements: Sequence[Placement], places: Sequence[Places], ratios: Sequence[Mapping[str, float]]
) -> Table:
    """Return a row per pair and method: its score, where it stands among strangers, and log10 of its likelihood ratio."""
    rows = []
    for placement, place, ratio in zip(placements, places, ratios, strict=True):
        for method, (score, rank) in place.items():
            shown = "undefined" if score.reason else f"{score.value:.4f}"
            chances = ("none", "none", "no background") if rank is None else (
                f"{rank.p:.3f}", f"{rank.min_p:.3f}", f"{rank.n}, median {rank.median:.2f}, up to {rank.max:.2f}")  # fmt: skip
            rows.append((
                f"{placement.a} · {placement.b}",
                method,
                shown,
                *chances,
                f"{ratio[method]:+.2f}" if method in ratio else "none",
                score.reason or "",
            ))
    return Table(
        title="methods",
        columns=("pair", "method", "score", "rank p", "min p", "strangers", "log10 LR", "why undefined"),
        rows=rows,
    )


def derivation_lines(placements: Sequence[Placement], derivations: Sequence[Lineage | None]) -> list[str]:
    """Say of inherited pairs how the one was made of the other, if they are parent and child: siblings can look the same."""
    lines = []
    for placement, relation in zip(placements, derivations, strict=True):
        if relation is not None:
            parent = {"a": placement.a, "b": placement.b, None: "unknown"}[relation.parent]
            steps = f" ({', '.join(relation.steps)})" if len(relation.steps) > 1 else ""
            lines.append(
                f"{placement.a} and {placement.b}, if one was made from the other: {relation.kind}{steps}, parent {parent}. {relation.evidence}"
            )
    return lines


def pair_json(placement: Placement, examination: Examination | None, places: Places, ratios: Mapping[str, float], relation: Lineage | None,
              disagreements: Sequence[str]) -> dict[str, Any]:  # fmt: skip
    """Return all that is known of a pair."""
    return {
        "a": placement.a, "b": placement.b, "verdict": None if examination is None else examination.verdict.word,
        "sentence": None if examination is None else examination.verdict.sentence,
        "checkpoints": None if examination is None else _examination_json(examination),
        "among_strangers": _placement_json(placement), "disagreements": list(disagreements),
        "methods": {name: {**_score_json(score), "background": _rank_json(rank), "log10_lr": ratios.get(name)}
                    for name, (score, rank) in places.items()},
        "derivation": _derivation_json(relation, placement),
    }  # fmt: skip


def curves_json(model: Curves) -> dict[str, Any]:
    """Return the curves of a model."""
    sigma = {role: curve.tolist() for role, curve in model.sigma.items()}
    return {"model": model.name, "num_layers": model.num_layers, "sigma": sigma, "weights": model.weights_key,
            **({"faults": dict(model.faults)} if model.faults else {})}  # fmt: skip


def _examination_json(examination: Examination) -> dict[str, Any]:
    verdict, result, bits = examination.verdict, examination.result, examination.bits
    return {
        "alpha": verdict.alpha,
        "candidates": verdict.num_candidates, "log10_p": encode_value(verdict.log10_p), "tests": [asdict(test) for test in result.tests],
        "agreement": None if result.agreement is None else asdict(result.agreement),
        "training": None if result.training is None else asdict(result.training), "not_tested": list(result.reasons),
        "requantised": _remaking_json(examination.remaking), "equal_tensors": list(bits.equal), "tensors": bits.total,
    }  # fmt: skip


def _remaking_json(remaking: Remaking | None) -> dict[str, Any] | None:
    if remaking is None:
        return None
    outcome = remaking.outcome
    return {"source": remaking.source, "copy": remaking.copy, "formats": outcome.formats, "matched": [tensor.name for tensor in outcome.matched],
            "of": len(outcome.tensors), "not_redone": list(outcome.not_redone)}  # fmt: skip


def _placement_json(placement: Placement) -> dict[str, Any]:
    phase, interval = placement.phase, placement.interval
    return {
        "word": placement.word, "sentence": placement.sentence, "alpha": placement.alpha,
        "paper_exact": _score_json(placement.paper_exact), "corrected": _score_json(placement.corrected),
        "layers_redrawn": None if interval is None else {"low": interval.low, "high": interval.high},
        "primary": placement.primary, "score": encode_value(placement.score), "effect": encode_value(placement.effect),
        "background": _rank_json(placement.background),
        "phase": None if phase is None else {"p": phase.p, "min_p": phase.min_p, "free_phases": phase.free_phases,
                                             "draws": phase.draws, "copy_p": phase.copy_p},
        "p_adjusted": placement.p_adjusted, "stratum": placement.stratum,
    }  # fmt: skip


def _rank_json(rank: Rank | None) -> dict[str, float] | None:
    return None if rank is None else asdict(rank)


def _derivation_json(relation: Lineage | None, placement: Placement) -> dict[str, Any] | None:
    if relation is None:
        return None
    parent = None if relation.parent is None else {"a": placement.a, "b": placement.b}[relation.parent]
    return {"kind": relation.kind, "steps": list(relation.steps), "parent": parent, "evidence": relation.evidence,
            "measures": {name: encode_value(value) for name, value in relation.measures.items()}}  # fmt: skip


def _score_json(score: Score) -> dict[str, Any]:
    return {"value": encode_value(score.value), "per_role": {role: encode_value(r) for role, r in score.per_role.items()},
            "alignment": score.alignment, "reason": score.reason}  # fmt: skip
