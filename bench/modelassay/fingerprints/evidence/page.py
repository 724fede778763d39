"""Evidence as a page: one A4 sheet on paper, text in any browser, nothing fetched from anywhere.

What may be long (files, tensors, methods, reasons) is cut with a count; `evidence.json` beside it holds all.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from html import escape

from modelassay.errors import printable
from modelassay.fingerprints.evidence import AgreementTier, Evidence, FileHash, ModelFiles, Requantised
from modelassay.fingerprints.verdict import shown_p

MAX_FILES = 3
"""Of one model."""
MAX_METHODS = 5
MAX_REASONS = 2
MAX_TEXT = 160
"""Characters of one text that others wrote: a reason, a name, a command."""

_STYLE = """
@page{size:A4;margin:9mm 12mm}
body{font:7pt/1.2 "Liberation Sans",Arial,Helvetica,sans-serif;color:#111;max-width:186mm;margin:0 auto;padding:0}
h1{font-size:11.5pt;margin:0 0 1mm}h2{font-size:8.2pt;margin:1.5mm 0 .5mm;border-bottom:.3pt solid #999}
p{margin:.4mm 0}ul{margin:.4mm 0;padding-left:4mm}li{margin:0}
table{border-collapse:collapse;margin:.4mm 0}
th,td{text-align:left;vertical-align:top;padding:.1mm 4mm .1mm 0;font-size:6.8pt}th{font-weight:600;border-bottom:.3pt solid #bbb}
.verdict{font-size:8.8pt;border-left:1.2mm solid #111;padding-left:2.5mm;margin:1.2mm 0}
code,.hash{font-family:"Liberation Mono",Consolas,monospace;font-size:6pt;overflow-wrap:anywhere}
"""


def page(evidence: Evidence, *, sha256: str) -> str:
    """Return the report as HTML; ``sha256`` is that of `evidence.json`, so that the page names the document it was made of."""
    a, b, verdict = evidence.a, evidence.b, evidence.verdict
    title = f"{_cut(a.name, 48)} and {_cut(b.name, 48)}"
    parts = [
        f"<h1>Evidence about {_text(title)}: {_text(verdict.word)}</h1>",
        f"<p class=verdict>{_text(verdict.sentence, 700)}</p>",
        f"<p>Level for &ldquo;inherited&rdquo;: p at most {verdict.level:g}. What each word means and does not mean: "
        f"<code>{_text(verdict.explained)}</code> of modelassay's repository.</p>",
        "<h2>Propositions</h2>",
        _list(f"<b>{_text(one.label)}</b> {_text(one.text, 300)}" for one in evidence.propositions),
        "<h2>Exact tests of H2: were the units numbered independently?</h2>",
        *_tests(evidence),
        "<h2>Other tests</h2>",
        _list(_others(evidence)),
        "<h2>Other methods (description, not a verdict)</h2>",
        *_methods(evidence),
        *_section("Not tested", evidence.not_tested),
        "<h2>What these tests cannot show</h2>",
        _list(_text(limit, 240) for limit in evidence.limits),
        "<h2>Files read (SHA-256)</h2>",
        *_files(a),
        *_files(b),
        "<h2>Origin</h2>",
        *_origin(evidence, sha256),
    ]
    body = "\n".join(parts)
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Evidence: {_text(title)}</title>'
            f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n")  # fmt: skip


def _tests(evidence: Evidence) -> Iterable[str]:
    corrected = evidence.corrected
    if corrected is None:
        return ["<p>None could be made.</p>"]
    rows = [
        (
            test.name,
            test.statistic,
            f"{test.count:,} of {test.of:,}",
            f"{test.expected:.3g}",
            f"{test.near_count:,} of {test.near_of:,} ({test.near_expected:.3g})",
            shown_p(test.log10_p),
        )  # fmt: skip
        for test in evidence.tests
    ]
    return [
        _table(("matched", "statistic", "count", "expected under H2", "among neighbours", "exact p under H2"), rows),
        f"<p>Over all tests: <b>{_text(corrected.shown)}</b> (the smallest times {corrected.num_tests} tests"
        f"{'' if corrected.num_candidates == 1 else f' and {corrected.num_candidates} candidates'}, {corrected.method}).</p>",
    ]


def _others(evidence: Evidence) -> Iterable[str]:
    equal = evidence.equal_tensors
    yield f"Equal tensors: {len(equal.names):,} of {equal.of:,} are the same bits."
    yield _agreement(evidence.agreement)
    yield _requantised(evidence.requantised)
    if (training := evidence.shared_training) is not None:
        excluded = "so more than initial weights is shared" if training.is_shared else "which does not tell H1 from H1'"
        yield f"Norms, which no seed draws: they differ by {100 * training.ratio:.1f} % of what training did to them, {excluded}."
    if evidence.derivation is not None:
        derivation = evidence.derivation
        parent = "" if derivation.parent is None else f", parent {_text(derivation.parent, 60)}"
        yield f"If one was made from the other: {_text(derivation.kind)}{parent}. {_text(derivation.evidence)}"


def _agreement(tier: AgreementTier | None) -> str:
    if tier is None:
        return "Agreement of two matchings: not asked, since the exact tests decide, or not possible."
    return (f"Agreement of two matchings: {tier.count:,} of {tier.of:,} neurons, {tier.expected:.3g} expected by chance; "
            f"{shown_p(tier.log10_p)} at {tier.rate:g} times that rate. {_text(tier.calibration, 240)}")  # fmt: skip


def _requantised(result: Requantised | None) -> str:
    if result is None:
        return "Quantised again: neither model is stored in fewer bits than the other, or this was not asked."
    text = (f"Quantised again: {result.matched:,} of {result.of:,} tensors of {_text(result.quantised, 60)} are "
            f"{_text(result.source, 60)} in {_text(', '.join(result.formats) or 'no format that can be redone')}, bit for bit; "
            f"they hold {100 * result.share:.0f} % of its weights")  # fmt: skip
    nearly = f"; {len(result.nearly)} only in part" if result.nearly else ""
    left = f"; {len(result.not_redone)} kinds could not be redone" if result.not_redone else ""
    return f"{text}{nearly}{left}."


def _methods(evidence: Evidence) -> Iterable[str]:
    methods, background = evidence.methods, evidence.background
    if not methods:
        return ["<p>None was asked.</p>"]
    rows = []
    for one in methods[:MAX_METHODS]:
        among = "no strangers" if one.among is None else (
            f"rank p {one.among.rank_p:.3f} among {one.among.num_strangers} strangers, median {one.among.median:.2f}, up to {one.among.max:.2f}"
            f"{'' if one.among.log10_lr is None else f'; log10 LR {one.among.log10_lr:+.2f}'}")  # fmt: skip
        rows.append((one.method, one.undefined or f"{one.score:.4f}", among))
    left = len(methods) - len(rows)
    more = f"And {left} more in evidence.json. " if left else ""
    words = "".join(f"<p>{_text(text, 240)}</p>" for text in (evidence.among_strangers, *evidence.disagreements[:2]))
    against = f"Strangers of {_text(background)}." if background else ""
    return [
        _table(("method", "score", "among unrelated pairs"), rows),
        *([f"<p>{more}{against}</p>"] if more or against else []),
        words,
    ]


def _section(title: str, texts: Sequence[str]) -> Iterable[str]:
    if not texts:
        return []
    left = len(texts) - MAX_REASONS
    shown = [_text(text) for text in texts[:MAX_REASONS]] + ([f"and {left} more in evidence.json"] if left > 0 else [])
    return [f"<h2>{title}</h2>", _list(shown)]


def _files(model: ModelFiles) -> Iterable[str]:
    commit = f" at commit <code>{_text(model.commit)}</code>" if model.commit else ""
    order = {"weights": 0, "configuration": 1, "tokenizer": 2}
    files = sorted(model.files, key=lambda file: order[file.role])
    rows = "".join(
        f"<tr><td>{_text(file.name, 60)}</td><td>{file.bytes:,} B</td><td class=hash>{file.sha256}{_of_hub(file)}</td></tr>"
        for file in files[:MAX_FILES]
    )
    left = len(files) - MAX_FILES
    more = f"<tr><td>and {left} more in evidence.json</td><td></td><td></td></tr>" if left > 0 else ""
    return [
        f"<p><b>{_text(model.name, 60)}</b>: <code>{_text(model.reference, 120)}</code>{commit}</p><table>{rows}{more}</table>"
    ]


def _of_hub(file: FileHash) -> str:
    if file.hub_sha256 is None:
        return ""
    return " (the Hub's own)" if file.hub_sha256 == file.sha256 else f" (the Hub says {file.hub_sha256})"


def _origin(evidence: Evidence, sha256: str) -> Iterable[str]:
    origin = evidence.origin
    commit = (
        "" if origin.commit is None else f", commit {_text(origin.commit)}{' with changes' if origin.modified else ''}"
    )
    libraries = ", ".join(
        f"{name} {version}" for name, version in origin.libraries.items() if name != "python" and version
    )
    return [
        f"<p>modelassay {_text(origin.modelassay)}{commit}, code {origin.code}; Python {_text(origin.python)}; {_text(libraries, 240)}. "
        f"{_text(origin.machine)}. {origin.time_utc}.</p>",
        f"<p>Called: <code>{_text(shlex.join(origin.command), 240)}</code></p>",
        f"<p>To repeat: <code>{_text(origin.repeat, 300)}</code>. {_text(origin.needs)}</p>",
        f"<p>evidence.json beside this page (<code>modelassay check evidence.json</code>): <span class=hash>SHA-256 {sha256}</span></p>",
    ]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _list(items: Iterable[str]) -> str:
    """Return a list of texts that are HTML already."""
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def _text(text: str, limit: int = MAX_TEXT) -> str:
    return escape(_cut(text, limit))


def _cut(text: str, limit: int) -> str:
    """Return a text that is no longer than ``limit`` and that no control character can disturb.

    >>> _cut("abcdef", 4), _cut("a b", 9)
    ('abc…', 'a b')
    """
    text = printable(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
