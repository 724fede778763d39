"""Validating files without running them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modelassay.claims import Table
from modelassay.errors import UsageError
from modelassay.record import read_segment
from modelassay.show import View
from modelassay.suite import check_suite


def check_files(files: Sequence[str]) -> View:
    """Validate each file; return what is in it.

    Raises:
        UsageError: the first file that is invalid, with the place.
    """
    rows = []
    for name in files:
        if name.endswith(".jsonl"):
            if not Path(name).is_file():
                raise UsageError(f"{name}: no such file")
            num_lines = sum(1 for _ in read_segment(Path(name)))
            rows.append((name, f"{num_lines} records"))
        else:
            profiles = ", ".join(f"{profile}: {num_cells} cells" for profile, num_cells in check_suite(name))
            rows.append((name, profiles))
    return View(
        data=[{"file": name, "content": content} for name, content in rows],
        tables=[Table(title="", columns=("file", "valid"), rows=rows)],
    )
