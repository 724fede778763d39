"""What a cell records for an index, and how it is read back."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from modelassay.fingerprints.independence.blocks import NUM_LAYERS, SampledModel
from modelassay.fingerprints.independence.sketch import VERSION, Sketch, sketch_of
from modelassay.recording.context import CellContext

SKETCH = "sketch"


def record_sketch(model: SampledModel, cell: CellContext) -> None:
    """Record a model's sketch as the fact ``sketch``; one of which nothing could be read is recorded as such."""
    with cell.microbatch("sketch"):
        sketch = sketch_of(model)
    content = base64.b64encode(sketch.ranks_FM.astype("<u2").tobytes()).decode()
    cell.fact(SKETCH, {"version": VERSION, "width": sketch.width, "bytes": sketch.num_bytes, "ranks": content})


def sketch_from(value: Mapping[str, Any]) -> Sketch | None:
    """Return a recorded sketch; None for one of another version."""
    if value["version"] != VERSION:
        return None
    ranks = np.frombuffer(base64.b64decode(value["ranks"], validate=True), dtype="<u2")
    return Sketch(
        width=value["width"], ranks_FM=ranks.reshape(NUM_LAYERS, -1).astype(np.uint16), num_bytes=value["bytes"]
    )
