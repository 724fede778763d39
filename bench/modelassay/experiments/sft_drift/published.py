"""What reads the curves that others published, by the name that a suite writes under ``reader``."""

from __future__ import annotations

from collections.abc import Mapping

from modelassay.data.curves import OverlapCurve
from modelassay.data.published import Reader

READERS: Mapping[str, type[Reader]] = {"overlap-curve": OverlapCurve}
"""A curve of overlap over steps, or the distance of two."""
