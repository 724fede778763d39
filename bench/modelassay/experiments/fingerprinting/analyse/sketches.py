"""How well sketches find relatives, on models of known ancestry; and what an index of a million models would cost."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

from modelassay.experiments.findings import Finding, Findings, Table
from modelassay.experiments.fingerprinting.sketches import SKETCH, sketch_from
from modelassay.fingerprints.independence.sketch import Sketch, alike
from modelassay.recording.tables import RunData
from modelassay.statistics.estimate import Estimate, Range
from modelassay.statistics.proportions import clopper_pearson
from modelassay.zoo.ancestry import PREFIX, is_zoo, member
from modelassay.zoo.resolve import connection_of, family_of

LEVEL = 1e-6
"""Of one pair, as of a verdict from two checkpoints."""
MANY = 1_000_000


def sketches_of(tables: RunData) -> dict[str, Sketch]:
    """Return the sketches of the cells that ended, by reference."""
    of_cell = {row["cell"]: row["model"] for row in tables.cells.iter_rows(named=True) if row["outcome"] == "done"}
    found = {}
    for fact in tables.facts(SKETCH):
        if fact["cell"] in of_cell and (sketch := sketch_from(fact["value"])) is not None:
            found[of_cell[fact["cell"]]] = sketch
    return found


def score_sketches(tables: RunData) -> tuple[list[Finding], list[Table]]:
    """Return ``sketch_recall[step]`` of descendants and their own root, and ``sketch_false``, of roots of different families, at a level of 1e-6.

    With exact (Clopper-Pearson) bounds; a table of what is found by what was done to it last.
    """
    sketches = sketches_of(tables)
    families = {row["model"]: family_of(row["model"], row["family"]) for row in tables.cells.iter_rows(named=True)}
    found: Counter[str] = Counter()
    tested: Counter[str] = Counter()
    for a, b in combinations([name for name in sketches if families[name] is not None], 2):
        kind = _kind(a, b, families)
        if kind is None or (result := alike(sketches[a], sketches[b])) is None:
            continue
        tested[kind] += 1
        found[kind] += result.log10_p <= math.log10(LEVEL)
    findings = []
    rows = []
    for kind, of in tested.items():
        share = clopper_pearson(found[kind], of)
        findings.append(Finding(name="sketch_false", estimate=share) if kind == _STRANGERS else
                        Finding(name="sketch_recall", labels={"step": kind}, estimate=share))  # fmt: skip
        rows.append([kind, f"{found[kind]} of {of}", f"[{share.low:.3g}, {share.high:.3g}]"])
    title = f"sketches called of one numbering at {LEVEL:g}: a root and what was done to it last"
    return findings, [Table(title=title, columns=("pair", "called", "95 % bound"), rows=rows)] if rows else []


_STRANGERS = "roots of different families"


def _kind(a: str, b: str, families: dict[str, str | None]) -> str | None:
    """What a pair is: a root and its descendant by the last step, two roots of different families, or nothing that is counted."""
    roots = [name for name in (a, b) if name in (families[name], f"{PREFIX}{families[name]}")]
    if families[a] == families[b]:
        if len(roots) != 1:
            return None
        (descendant,) = {a, b} - set(roots)
        return member(descendant).transformation if is_zoo(descendant) else "descendant"
    if len(roots) == 2 and connection_of((a, families[a]), (b, families[b])) in (None, "independent"):
        return _STRANGERS
    return None


def index_findings(tables: RunData) -> Findings:
    """Return what a run of sampled models says: bytes and seconds of a model, what a million would take, and how well known kin is found."""
    about = [fact["value"] for fact in tables.facts("sampled")]
    sketches = sketches_of(tables)
    scored, shown = score_sketches(tables)
    walls = [float(value) for value in tables.cells["wall_s"].drop_nulls()]
    if not about or not walls:
        return Findings(findings=scored, tables=shown, caveats=["no model has been sketched yet"])
    read = [float(sketch.num_bytes) for sketch in sketches.values()]
    sizes = [float(value["weights_bytes"]) for value in about]
    kept = [float(sketch.ranks_FM.nbytes) for sketch in sketches.values()]
    numbers = {
        "sketch_read_bytes": (read, "bytes of weights read"),
        "sketch_weights_bytes": (sizes, "bytes of weights in all"),
        "sketch_kept_bytes": (kept, "bytes of a sketch"),
        "sketch_seconds": (walls, "seconds of a cell"),
    }
    findings = [
        Finding(
            name=name,
            estimate=Range(
                value=sum(values) / len(values), low=min(values), high=max(values), n=len(values), note=note
            ),
        )
        for name, (values, note) in numbers.items()
    ]
    rows = [
        [note, f"{sum(values) / len(values):,.3g}", f"{MANY * sum(values) / len(values):,.3g}"]
        for values, note in numbers.values()
    ]
    cost = Table(title="what an index costs, from these models", columns=("of a model", "mean", "a million"), rows=rows)
    empty = sum(sketch.is_empty for sketch in sketches.values())
    caveats = [f"{empty} models have no sketch: nothing of them could be read in rows"] if empty else []
    note = Estimate(value=float(len(sketches) - empty), n=len(sketches), exact=True, note="models with a sketch")
    return Findings(
        findings=[Finding(name="sketches", estimate=note), *findings, *scored], tables=[cost, *shown],
        caveats=[*caveats, "a million is these models' mean times a million: larger ones cost more bytes, not more rows"],
    )  # fmt: skip
