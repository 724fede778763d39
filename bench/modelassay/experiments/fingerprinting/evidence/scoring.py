"""Evidence turned into findings and tables: each method scored like a diagnostic test, as a whole and by what makes it hard."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modelassay.accuracy import DRAWS, METRICS, Accuracy, Estimate, accuracy, difference
from modelassay.calibration import CallRate, Uniformity, false_positive_rate, true_positive_rate, uniformity
from modelassay.claims import Finding, Table
from modelassay.experiments.fingerprinting.evidence import Evidence, Pair, Which

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
    found = [Group(name="all", which=lambda _pair: True)]

    def by(label: str, of: Callable[[Pair], Hashable | None], which: Callable[[Hashable], Which]) -> None:
        found.extend(Group(name=f"{label}: {value}", which=which(value)) for value in evidence.groups(of))

    by("strangers", lambda pair: pair.hardness, lambda value: lambda pair: pair.hardness in (None, value))
    by("made by", lambda pair: None if pair.suspect.is_root else pair.suspect.made_by,
       lambda value: lambda pair: pair.suspect.made_by == value)  # fmt: skip
    by("training", lambda pair: None if pair.suspect.is_root else training(pair.suspect.training),
       lambda value: lambda pair: not pair.suspect.is_root and training(pair.suspect.training) == value)  # fmt: skip
    by("size", lambda pair: pair.suspect.size, lambda value: lambda pair: pair.suspect.size == value)
    return found


def score_methods(evidence: Evidence) -> tuple[list[Finding], list[Table], list[str]]:
    """Return the findings, tables and caveats of a run's evidence; nothing where there are too few pairs of known ancestry.

    Findings: ``accuracy[method, metric, group]``, ``accuracy-difference[method, than, metric]``,
    ``detected[method, made_by]`` (share of related pairs whose rank p is at most alpha), ``related-score[method, made_by]``
    (their median score), ``false-positives[method]`` and ``calibration[method, size]``.
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
    spread = list(_related_scores(evidence))
    calibrated = list(_calibrated(evidence))
    findings = [
        *(_finding("accuracy", found.metrics[metric], method=method, metric=metric, group=group)
          for (method, group), found in measured.items() for metric in METRICS),
        *(_finding("accuracy-difference", estimate, method=method, than=than, metric="auroc")
          for method, than, estimate in differences),
        *(_rate("detected", rate, method=method, made_by=made_by) for method, made_by, rate in detected),
        *spread,
        *(_rate("false-positives", rate, method=method) for method, rate, _ in calibrated),
        *(Finding(name="calibration", value=found.ks, labels={"method": method, "size": size},
                  note=f"{found.n} stranger pairs, p = {'none' if found.p_value is None else f'{found.p_value:.3f}'}; {found.note}")
          for method, _, by_size in calibrated for size, found in by_size.items()),
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
    for method, mine in notes.items():
        for note in mine:
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


def _detected(evidence: Evidence) -> Iterator[tuple[str, str, CallRate]]:
    made = list(evidence.groups(lambda pair: pair.suspect.made_by if pair.related else None))
    for method in evidence.scores:
        for made_by in made:
            ranks = evidence.ranks_of_decidable(method, made_by)
            if ranks.p.size:
                yield method, str(made_by), true_positive_rate(ranks, alpha=evidence.alpha, draws=FEWER)


def _related_scores(evidence: Evidence) -> Iterator[Finding]:
    """Yield the median score of related pairs by what was done to the suspect, with the lowest and the highest as its ends."""
    for made_by in evidence.groups(lambda pair: pair.suspect.made_by if pair.related else None):
        chosen = np.array([pair.related and pair.suspect.made_by == made_by for pair in evidence.pairs])
        for method, scores in evidence.scores.items():
            mine = scores[chosen]
            mine = mine[np.isfinite(mine)]
            if mine.size:
                yield Finding(name="related-score", value=float(np.median(mine)), low=float(mine.min()), high=float(mine.max()),
                              labels={"method": method, "made_by": str(made_by)},
                              note=f"median of {mine.size} pairs, from the lowest to the highest")  # fmt: skip


def _calibrated(evidence: Evidence) -> Iterator[tuple[str, CallRate, dict[str, Uniformity]]]:
    """Yield for each method how often unrelated suspects are called, and how uniform the p of roots among roots are."""
    strata = dict.fromkeys((pair.suspect.size, pair.suspect.stratum) for pair in evidence.pairs if pair.suspect.is_root)
    for method in evidence.scores:
        unrelated = evidence.ranks_of_unrelated(method)
        by_size: dict[str, Uniformity] = {}
        for size, stratum in strata:
            ranks = evidence.stranger_ranks(method, stratum)
            found = uniformity(ranks) if np.isfinite(ranks.p).any() else None
            if found and (size not in by_size or found.n > by_size[size].n):  # strata may differ in tokenizers alone
                by_size[size] = found
        yield method, false_positive_rate(unrelated, alpha=evidence.alpha), by_size


def _finding(name: str, estimate: Estimate, **labels: str) -> Finding | None:
    if estimate.value is None:
        return None
    low, high = (None, None) if estimate.interval is None else (estimate.interval.low, estimate.interval.high)
    return Finding(name=name, value=estimate.value, low=low, high=high, labels=labels, note=estimate.note)


def _rate(name: str, rate: CallRate, **labels: str) -> Finding | None:
    if rate.share is None:
        return None
    low, high = (rate.share.low, rate.share.high) if rate.interval is None else (rate.interval.low, rate.interval.high)
    return Finding(name=name, value=rate.share.value, low=float(np.fmin(low, rate.share.low)),
                   high=float(np.fmax(high, rate.share.high)),
                   labels={**labels}, note=f"{rate.share.count} of {rate.share.total} at alpha = {rate.alpha:g}; the wider "
                   f"of Wilson's interval and one over roots; {rate.note}".rstrip("; "))  # fmt: skip


def _brief(estimate: Estimate) -> str:
    """As `_shown`, in fewer characters."""
    if estimate.value is None or estimate.interval is None or np.isnan(estimate.interval.low):
        return _shown(estimate)
    low, high = (f"{end:.2f}".removeprefix("0") for end in (estimate.interval.low, estimate.interval.high))
    return f"{estimate.value:.3f} ({low}-{high})"


def _shown(estimate: Estimate) -> str:
    if estimate.value is None:
        return "not testable"
    interval = estimate.interval
    if interval is None or np.isnan(interval.low):
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _overall_table(evidence: Evidence, measured: dict[tuple[str, str], Accuracy]) -> Table:
    first = measured[next(iter(evidence.scores)), "all"]
    rows = []
    for method in evidence.scores:
        found = measured[method, "all"]
        rows.append((method, f"{found.compared:.0%}", *(_shown(found.metrics[metric]) for metric in SHOWN)))
    title = (f"methods, scored on {first.num_related} related and {first.num_unrelated} unrelated pairs of {first.num_roots} roots "
             f"({first.num_related_roots} with descendants)")  # fmt: skip
    return Table(title=title, columns=("method", "compared", *SHOWN.values()), rows=rows)


def _group_table(
    evidence: Evidence, measured: dict[tuple[str, str], Accuracy], chosen: Sequence[Group], label: str
) -> Table:
    """AUROC of each method by group: a row per group."""
    rows = []
    for group in chosen:
        if group.name.startswith(f"{label}: "):
            counted = measured[next(iter(evidence.scores)), group.name]
            rows.append((group.name.removeprefix(f"{label}: "), f"{counted.num_related} / {counted.num_unrelated}",
                         *(_brief(measured[method, group.name].metrics["auroc"]) for method in evidence.scores)))  # fmt: skip
    title = {"strangers": "AUROC by what strangers differ in", "size": "AUROC by size (layers x width)",
             "training": "AUROC by training since the root, as a share of the root's own tokens",
             "made by": "AUROC by what was done to the suspect"}[label]  # fmt: skip
    return Table(title=title, columns=(label, "pairs", *evidence.scores), rows=rows)


def _survival_table(evidence: Evidence, detected: Sequence[tuple[str, str, CallRate]]) -> Table:
    """Which transformation defeats which method: related pairs called related, of those that could have been."""
    by_method = {(made_by, method): rate for method, made_by, rate in detected}
    rows = []
    for made_by in dict.fromkeys(made_by for _, made_by, _ in detected):
        cells = []
        for method in evidence.scores:
            share = by_method[made_by, method].share
            cells.append("cannot compare" if share is None else f"{share.count} of {share.total}")
        rows.append((made_by, *cells))
    return Table(title=f"survival: related pairs called related (rank p ≤ {evidence.alpha:g} among strangers of their strata)",
                 columns=("made by", *evidence.scores), rows=rows)  # fmt: skip


def _difference_table(differences: Sequence[tuple[str, str, Estimate]]) -> Table:
    rows = [(f"{method} minus {than}", _shown(estimate), estimate.note) for method, than, estimate in differences]
    return Table(
        title="difference of AUROC over the same resampled roots", columns=("methods", "AUROC", "note"), rows=rows
    )


def _calibration_table(evidence: Evidence, calibrated: Sequence[tuple[str, CallRate, dict[str, Uniformity]]]) -> Table:
    sizes = list(dict.fromkeys(size for _, _, by_size in calibrated for size in by_size))
    rows = []
    for method, rate, by_size in calibrated:
        if rate.share is None:
            shown = rate.note
        else:
            interval = (
                ""
                if rate.interval is None or np.isnan(rate.interval.low)
                else f" [{rate.interval.low:.3f}, {rate.interval.high:.3f}]"
            )
            shown = f"{rate.share.value:.3f}{interval}, {rate.share.count} of {rate.share.total}"
        rows.append((method, shown, *(_uniform(by_size.get(size)) for size in sizes)))
    columns = (
        "method",
        f"unrelated called related at {evidence.alpha:g}",
        *(f"KS of strangers' p, {size}" for size in sizes),
    )
    return Table(title="calibration", columns=columns, rows=rows)


def _uniform(found: Uniformity | None) -> str:
    if found is None:
        return "none"
    return f"{found.ks:.3f}, p = {'none' if found.p_value is None else f'{found.p_value:.2f}'}, n = {found.n}"
