"""The rogue's analysis, which goes wrong as an environment variable asks."""

from __future__ import annotations

import math
import os

from modelassay.claims import Finding, Findings, Table
from modelassay.record import Tables


def analyse(_tables: Tables) -> Findings:
    """Return one finding, or misbehave."""
    match os.environ.get("ROGUE_ANALYSIS"):
        case "raise":
            raise ZeroDivisionError("a bug of the analysis")
        case "print":
            print("said by the analysis")
        case "undefined":
            return Findings(findings=[Finding(name="number", value=math.nan, low=-math.inf, high=math.inf)])
        case "markup":
            return Findings(tables=[Table(title="[/red]", columns=("[/b]",), rows=[("[/i] :bug:",)])])
    return Findings(findings=[Finding(name="number", value=1.0)])
