"""What reads the cells that others published, by the name that a suite writes under ``reader``."""

from __future__ import annotations

from collections.abc import Mapping

from modelassay.data.marker_cells import MarkerCells, MarkerRates
from modelassay.data.published import Reader

READERS: Mapping[str, type[Reader]] = {"marker-cells": MarkerCells, "marker-rates": MarkerRates}
"""Marker rates by persona over learning rates and epochs; and of one setting by source and persona."""
