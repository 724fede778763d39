"""Evidence turned into findings and tables: each method scored like a diagnostic test, as a whole and by what makes it hard."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from modelassay.experiments.findings import Finding, Table
from modelassay.experiments.fingerprinting.analyse.pairs import Evidence, Pair, Which
from modelassay.experiments.fingerprinting.analyse.printed import shown
from modelassay.statistics.calibration import Uniformity, false_positive_rate, true_positive_rate, uniformity
from modelassay.statistics.classification import DRAWS, METRICS, Accuracy, accuracy, difference
from modelassay.statistics.estimate import Estimate, Range
from modelassay.statistics.intervals import student_mean
from modelassay.statistics.proportions import count_of, wilson

MIN_PAIRS = 3
"""Related and unrelated pairs below which a group gets no accuracy: two pairs separate by chance."""
SHOWN = {
    "auroc": "AUROC",
    "partial-auc": "pAUC, FPR ≤ 5 %",
    "tpr-at-fpr": "TPR at 1 % FPR",
    "ks": "KS",
    "mahalanobis": "Mahalanobis",
}
FEWER = 299
"""Resamples for parts of the pairs, whose intervals are printed to two digits, and for what is drawn."""
TRAINING = {"none": 0.0, "up to half": 0.5, "up to twice": 2.0}
"""Classes of training since the root, as a share of the root's own tokens, each up to its limit."""
COMPARED = (("corrected", "paper-exact"), ("corrected", "config-only"), ("corrected", "modeldna"), ("extended", "corrected"),
            ("invariant", "corrected"), ("aligned", "modeldna"), ("bottom-k corrected", "bottom-k exact"),
            ("bottom-k rbo", "bottom-k corrected"), ("bottom-k corrected", "aligned"))  # fmt: skip
"""Pairs of methods whose difference is given, fixed before the run."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Some of the pairs, by what they have in common."""

    name: str
    """As the label ``group`` of findings: ``all``, ``strangers: other text``, ``made by: lora``."""
    which: Which


def groups(evidence: Evidence) -> list[Group]:
    """Return all pairs, then by hardness, by what was done to the suspect, by size, and by training since the root.

    By hardness, all related pairs against strangers of one kind; otherwise the related and unrelated pairs of such
    suspects alone, so that what moves a suspect's scores moves both.
    """
    parts = [Group(name="all", which=lambda _pair: True)]

    def by(label: str, of: Callable[[Pair], Hashable | None], which: Callable[[Hashable], Which]) -> None:
        parts.extend(Group(name=f"{label}: {value}", which=which(value)) for value in evidence.groups(of))

    by("strangers", lambda pair: pair.hardness, lambda value: lambda pair: pair.hardness in (None, value))
    by("made by", lambda pair: None if pair.suspect.is_root else pair.suspect.made_by,
       lambda value: lambda pair: pair.suspect.made_by == value)  # fmt: skip
    by("training", lambda pair: None if pair.suspect.is_root else training(pair.suspect.training),
       lambda value: lambda pair: not pair.suspect.is_root and training(pair.suspect.training) == value)  # fmt: skip
    by("size", lambda pair: pair.suspect.size, lambda value: lambda pair: pair.suspect.size == value)
    return parts


def score_methods(evidence: Evidence) -> tuple[list[Finding], list[Table], list[str]]:
    """Return the findings, tables and caveats of a run's evidence; nothing where there are too few pairs of known ancestry.

    Findings: ``accuracy[method, metric, group]``, ``accuracy-difference[method, than, metric]``,
    ``detected[method, made_by]`` (share of related pairs whose rank p is at most alpha), ``related-score[method, made_by]``
    (their median score), ``margin[method, made_by]`` (how far they lie above strangers, a mean over roots), ``false-positives[method]`` and ``calibration[method, size]``.
    """
    if not _enough(evidence, groups(evidence)[0]):
        return [], [], []
    chosen = [group for group in groups(evidence) if _enough(evidence, group)]
    measured = {
        (method, group.name): accuracy(
            evidence.scored(method, group.which), draws=DRAWS if group.name == "all" else FEWER
        )
        for method in evidence.scores
        for group in chosen
    }
    differences = list(_differences(evidence))
    detected = list(_detected(evidence))
    spread = [*_related_scores(evidence), *_margins(evidence)]
    calibrated = list(_calibrated(evidence))
    findings = [
        *(_finding("accuracy", scores.metrics[metric], method=method, metric=metric, group=group)
          for (method, group), scores in measured.items() for metric in METRICS),
        *(_finding("accuracy-difference", estimate, method=method, than=than, metric="auroc")
          for method, than, estimate in differences),
        *(_finding("detected", _widened(rate, evidence.alpha), method=method, made_by=made_by)
          for method, made_by, rate in detected),
        *spread,
        *(_finding("false-positives", _widened(rate, evidence.alpha), method=method) for method, rate, _ in calibrated),
        *(_finding("calibration", _described(distance.ks), method=method, size=size)
          for method, _, by_size in calibrated for size, distance in by_size.items()),
    ]  # fmt: skip
    tables = [
        _overall_table(evidence, measured), _group_table(evidence, measured, chosen, "strangers"),
        _group_table(evidence, measured, chosen, "size"), _group_table(evidence, measured, chosen, "training"), _group_table(evidence, measured, chosen, "made by"),
        _survival_table(evidence, detected), _difference_table(differences), _calibration_table(evidence, calibrated),
    ]  # fmt: skip
    return (
        [finding for finding in findings if finding is not None],
        [table for table in tables if table.rows],
        _notes({method: measured[method, "all"].notes for method in evidence.scores}),
    )


def _notes(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return each note once, behind the methods it is about unless that is all."""
    about: dict[str, list[str]] = {}
    for method, lines in notes.items():
        for note in lines:
            about.setdefault(note, []).append(method)
    return [note if len(methods) == len(notes) else f"{', '.join(methods)}: {note}" for note, methods in about.items()]


def training(share: float | None) -> str | None:
    """Return the class of a training distance, the tokens since the root over the root's own.

    >>> training(0), training(0.3), training(4.0), training(None)
    ('none', 'up to half', 'over twice', None)
    """
    if share is None:
        return None
    return next((name for name, limit in TRAINING.items() if share <= limit), "over twice")


def _enough(evidence: Evidence, group: Group) -> bool:
    related = [pair.related for pair in evidence.pairs if group.which(pair)]
    return min(sum(related), len(related) - sum(related)) >= MIN_PAIRS


def _differences(evidence: Evidence) -> Iterator[tuple[str, str, Estimate]]:
    for method, than in COMPARED:
        if method in evidence.scores and than in evidence.scores:
            yield method, than, difference(evidence.scored(method), evidence.scored(than), "auroc")


def _detected(evidence: Evidence) -> Iterator[tuple[str, str, Estimate]]:
    transformations = list(evidence.groups(lambda pair: pair.suspect.made_by if pair.related else None))
    for method in evidence.scores:
        for made_by in transformations:
            ranks = evidence.ranks_of_decidable(method, made_by)
            if ranks.p.size:
                yield method, str(made_by), true_positive_rate(ranks, alpha=evidence.alpha, draws=FEWER)


def _related_scores(evidence: Evidence) -> Iterator[Finding]:
    """Yield the median score of related pairs by what was done to the suspect, with the range of their scores."""
    for made_by in evidence.groups(lambda pair: pair.suspect.made_by if pair.related else None):
        chosen = np.array([pair.related and pair.suspect.made_by == made_by for pair in evidence.pairs])
        for method, scores in evidence.scores.items():
            finite = scores[chosen][np.isfinite(scores[chosen])]
            if finite.size:
                spread = Range(value=float(np.median(finite)), low=float(finite.min()), high=float(finite.max()), n=finite.size,
                               note=f"median of {finite.size} pairs, from the lowest to the highest")  # fmt: skip
                yield Finding(name="related-score", labels={"method": method, "made_by": str(made_by)}, estimate=spread)


def _margins(evidence: Evidence) -> Iterator[Finding]:
    """Yield how far related pairs score above the median pair of strangers of their stratum: the mean over roots, one value a root."""
    for made_by in evidence.groups(lambda pair: pair.suspect.made_by if pair.related else None):
        for method, scores in evidence.scores.items():
            by_root: dict[str, list[float]] = {}
            for pair, score in zip(evidence.pairs, scores, strict=True):
                if pair.related and pair.suspect.made_by == made_by and np.isfinite(score):
                    strangers = evidence.stranger_scores(method, pair.root.stratum)
                    if strangers.size:
                        by_root.setdefault(pair.root.name, []).append(float(score - np.median(strangers)))
            if by_root:
                mean = student_mean([float(np.mean(values)) for values in by_root.values()])
                note = f"above the median of strangers of the stratum, {len(by_root)} roots"
                yield Finding(name="margin", labels={"method": method, "made_by": str(made_by)},
                              estimate=replace(mean, note="; ".join(filter(None, (note, mean.note)))))  # fmt: skip


def _calibrated(evidence: Evidence) -> Iterator[tuple[str, Estimate, dict[str, Uniformity]]]:
    """Yield for each method how often unrelated suspects are called, and how uniform the p of roots among roots are."""
    strata = dict.fromkeys((pair.suspect.size, pair.suspect.stratum) for pair in evidence.pairs if pair.suspect.is_root)
    for method in evidence.scores:
        unrelated = evidence.ranks_of_unrelated(method)
        by_size: dict[str, Uniformity] = {}
        for size, stratum in strata:
            ranks = evidence.stranger_ranks(method, stratum)
            if not np.isfinite(ranks.p).any():
                continue
            distance = uniformity(ranks)
            if (
                size not in by_size or distance.observed.size > by_size[size].observed.size
            ):  # strata may differ in tokenizers alone
                by_size[size] = distance
        yield method, false_positive_rate(unrelated, alpha=evidence.alpha), by_size


def _finding(name: str, estimate: Estimate, **labels: str) -> Finding | None:
    return Finding(name=name, labels=labels, estimate=estimate) if estimate.defined else None


def _widened(rate: Estimate, alpha: float) -> Estimate:
    """Return a rate with the wider of its interval over roots and Wilson's, which alone knows how little no call says."""
    if rate.n is None or not rate.defined:
        return rate
    share = wilson(count_of(rate), rate.n)
    ends = (
        [share.low, share.high]
        if rate.low is None or rate.high is None
        else [min(rate.low, share.low or 0.0), max(rate.high, share.high or 0.0)]
    )
    note = f"{share.note} at alpha = {alpha:g}; the wider of Wilson's interval and one over roots; {rate.note}".rstrip(
        "; "
    )
    return replace(share, low=ends[0], high=ends[1], method="Wilson or percentile", note=note)


def _described(ks: Estimate) -> Estimate:
    return replace(ks, note=f"{ks.n} unrelated pairs, p = {'none' if ks.p is None else f'{ks.p:.3f}'}; {ks.note}")


def _brief(estimate: Estimate) -> str:
    """As `shown`, in fewer characters."""
    if estimate.low is None or estimate.high is None:
        return shown(estimate)
    low, high = (f"{end:.2f}".removeprefix("0") for end in (estimate.low, estimate.high))
    return f"{estimate.value:.3f} ({low}-{high})"


def _overall_table(evidence: Evidence, measured: dict[tuple[str, str], Accuracy]) -> Table:
    first = measured[next(iter(evidence.scores)), "all"]
    rows = []
    for method in evidence.scores:
        scores = measured[method, "all"]
        rows.append((method, f"{scores.compared:.0%}", *(shown(scores.metrics[metric]) for metric in SHOWN)))
    title = (f"methods, scored on {first.num_positive} related and {first.num_negative} unrelated pairs of {first.num_groups} roots "
             f"({first.num_positive_groups} with descendants)")  # fmt: skip
    return Table(title=title, columns=("method", "compared", *SHOWN.values()), rows=rows)


def _group_table(
    evidence: Evidence, measured: dict[tuple[str, str], Accuracy], chosen: Sequence[Group], label: str
) -> Table:
    """AUROC of each method by group: a row per group."""
    rows = []
    for group in chosen:
        if group.name.startswith(f"{label}: "):
            counted = measured[next(iter(evidence.scores)), group.name]
            rows.append((group.name.removeprefix(f"{label}: "), f"{counted.num_positive} / {counted.num_negative}",
                         *(_brief(measured[method, group.name].metrics["auroc"]) for method in evidence.scores)))  # fmt: skip
    title = {"strangers": "AUROC by what strangers differ in", "size": "AUROC by size (layers x width)",
             "training": "AUROC by training since the root, as a share of the root's own tokens",
             "made by": "AUROC by what was done to the suspect"}[label]  # fmt: skip
    return Table(title=title, columns=(label, "pairs", *evidence.scores), rows=rows)


def _survival_table(evidence: Evidence, detected: Sequence[tuple[str, str, Estimate]]) -> Table:
    """Which transformation defeats which method: related pairs called related, of those that could have been."""
    by_method = {(made_by, method): rate for method, made_by, rate in detected}
    rows = []
    for made_by in dict.fromkeys(made_by for _, made_by, _ in detected):
        cells = []
        for method in evidence.scores:
            rate = by_method[made_by, method]
            cells.append(f"{count_of(rate)} of {rate.n}" if rate.defined else "cannot compare")
        rows.append((made_by, *cells))
    return Table(title=f"survival: related pairs called related (rank p ≤ {evidence.alpha:g} among strangers of their strata)",
                 columns=("made by", *evidence.scores), rows=rows)  # fmt: skip


def _difference_table(differences: Sequence[tuple[str, str, Estimate]]) -> Table:
    rows = [(f"{method} minus {than}", shown(estimate), estimate.note) for method, than, estimate in differences]
    return Table(
        title="difference of AUROC over the same resampled roots", columns=("methods", "AUROC", "note"), rows=rows
    )


def _calibration_table(evidence: Evidence, calibrated: Sequence[tuple[str, Estimate, dict[str, Uniformity]]]) -> Table:
    sizes = list(dict.fromkeys(size for _, _, by_size in calibrated for size in by_size))
    rows = []
    for method, rate, by_size in calibrated:
        called = f"{shown(rate)}, {count_of(rate)} of {rate.n}" if rate.defined else rate.note
        rows.append((method, called, *(_uniform(by_size.get(size)) for size in sizes)))
    columns = (
        "method",
        f"unrelated called related at {evidence.alpha:g}",
        *(f"KS of strangers' p, {size}" for size in sizes),
    )
    return Table(title="calibration", columns=columns, rows=rows)


def _uniform(distance: Uniformity | None) -> str:
    if distance is None:
        return "none"
    ks = distance.ks
    return f"{ks.value:.3f}, p = {'none' if ks.p is None else f'{ks.p:.2f}'}, n = {ks.n}"
