"""One valid suite, and every way to get it wrong.

A case is an edit of the suite ``cases/suite.yaml``. A « in its new text marks where the error must point, so that the
expected line and column come from the text and not from the code under test. What the error says stands beside the cases,
in ``cases/malformed_suites/GROUP.txt``; ``pytest --update-messages`` writes it anew, for a reviewer to read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

FOLDER = Path(__file__).parents[1] / "cases" / "malformed_suites"
BASE = (FOLDER.parent / "suite.yaml").read_text()
GROUPS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


class Case(NamedTuple):
    """Replace ``old``, which is in BASE once, by ``new``."""

    old: str
    new: str

    def edited(self) -> tuple[str, int, int]:
        """Return the suite with the mistake in it, and the line and column of its mark."""
        assert BASE.count(self.old) == 1, f"{self.old!r} must be in the valid suite once"
        before, mark, after = BASE.replace(self.old, self.new).partition("«")
        assert mark, f"{self.new!r} must have one mark"
        assert mark not in after, f"{self.new!r} must have one mark"
        return before + after, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def cases(group: str) -> list[Case]:
    """Return the cases of ``group``: those of its file, then those that are too long to write out."""
    entries: list[dict[str, Any]] = YAML(typ="safe", pure=True).load(FOLDER / f"{group}.yaml")
    written = [
        Case(entry["old"], entry["new"].replace("@", value))
        for entry in entries
        for value in entry.get("values", ["@"])
    ]
    return [*written, *GENERATED.get(group, ())]


def _between(start: str, end: str) -> str:
    begin = BASE.index(start)
    return BASE[begin : BASE.index(end, begin)]


def _nested_aliases(first: str, line: str) -> str:
    """Five lines after ``first``, each with aliases of the one before; ``@`` is its number, ``^`` the number before."""
    return "\n".join([f"tags: &t0 {first}", *(line.replace("@", str(i)).replace("^", str(i - 1)) for i in range(1, 6))])


_MATRIX = _between("matrix:\n", "claims")
GENERATED = {
    "matrix": [
        Case(_MATRIX, f"«matrix:\n  seed: {[*range(257)]}\n"),
        Case(_MATRIX, f"«matrix:\n  seed: {[*range(2000)]}\n  steps: {[*range(1, 41)]}\n"),
    ],
    "yaml": [
        Case("steps: 8", f"steps: «{'9' * 5000}"),
        Case("tags: [a, b]", f"tags: {'[' * 30}«["),
        Case(
            "weights: {left: 0.5}",
            "weights:\n" + "".join(f"{' ' * (6 + i)}{'«' if i == 30 else ''}k:\n" for i in range(31)),
        ),
        Case(
            "tags: [a, b]",
            _nested_aliases("[a, b, c, d, e, f, g, h, i, j]", f"    t@: &t@ [{', '.join(['*t^'] * 10)}]").replace(
                "&t4", "«&t4"
            ),
        ),
        Case(
            "tags: [a, b]",
            _nested_aliases("[[[[[[[[a]]]]]]]]", "    t@: &t@ [[[[[[[*t^]]]]]]]").replace("&t4 [[[[", "&t4 [[[«["),
        ),
    ],
}
