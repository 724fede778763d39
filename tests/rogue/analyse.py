"""The rogue's analysis, which goes wrong as an environment variable asks."""

from __future__ import annotations

import math
import os

from modelassay.experiments.findings import Finding, Findings, Table
from modelassay.recording.tables import RunData
from modelassay.statistics.estimate import Estimate


def analyse(_tables: RunData) -> Findings:
    """Return one finding, or misbehave."""
    match os.environ.get("ROGUE_ANALYSIS"):
        case "raise":
            raise ZeroDivisionError("a bug of the analysis")
        case "print":
            print("said by the analysis")
        case "undefined":
            return Findings(
                findings=[Finding(name="number", estimate=Estimate(value=math.nan, low=-math.inf, high=math.inf))]
            )
        case "markup":
            return Findings(tables=[Table(title="[/red]", columns=("[/b]",), rows=[("[/i] :bug:",)])])
    return Findings(findings=[Finding(name="number", estimate=Estimate(value=1.0, exact=True))])
