"""A scan of an index of 10,000 models that are made up, of 4,096 hidden dimensions: seconds and bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelassay.fingerprints.independence.blocks import NUM_LAYERS
from modelassay.fingerprints.independence.sampling import MAX_DIMENSIONS
from modelassay.fingerprints.independence.sketch import Sketch
from modelassay.fingerprints.index import Entry, scan_index, write_index

NUM_MODELS, WIDTH = 10_000, 4096


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("index")
    write_index((Entry(model=f"model-{at}", revision=None, architecture="llama", num_layers=32, family=None, weights_bytes=0, sketch=_drawn(rng))
                 for at in range(NUM_MODELS)), folder)  # fmt: skip
    return folder


def test_scan(index: Path, benchmark: Any) -> None:
    """Read the sketches of this width, correlate all, test the nearest."""
    sketch = _drawn(np.random.default_rng(1))
    benchmark.extra_info["size_bytes"] = sum(path.stat().st_size for path in index.rglob("*.parquet"))
    scan = benchmark.pedantic(scan_index, args=(sketch, index), kwargs={"nearest": 10}, rounds=7, warmup_rounds=1)
    assert scan.num_compared == NUM_MODELS
    assert scan.relatives[0].log10_p > -4


def _drawn(rng: np.random.Generator) -> Sketch:
    ranks = rng.random((NUM_LAYERS, MAX_DIMENSIONS)).argsort(1).astype(np.uint16)
    return Sketch(width=WIDTH, ranks_FM=ranks, num_bytes=0)
