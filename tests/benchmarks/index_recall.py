"""How many of the zoo's known kin an index finds, and how many strangers it takes for kin.

::

    modelassay run fingerprinting --profile index -o 'matrix.model=["zoo:**"]' --into RUN
    python tests/benchmarks/index_recall.py RUN [--alpha 1e-6] [--into RESULT.json]

Every pair of models of one width is tested as a scan tests it (`fingerprints.index`), p corrected for the layers and for all models of the
width. What is kin is told by the zoo's ancestry. A root and each of its children are counted by the child's last step; pairs whose roots
are independent are false positives where they are found. Intervals are Clopper and Pearson's, over pairs, which share models.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from itertools import combinations
from pathlib import Path

for name in ("bench", "kernels"):
    sys.path.insert(0, str(Path(__file__).parents[2] / name))

from modelassay.commands.fingerprint.scan import index_of  # noqa: E402
from modelassay.fingerprints.independence.sampling import MAX_DIMENSIONS  # noqa: E402
from modelassay.fingerprints.independence.sketch import Sketch, alike  # noqa: E402
from modelassay.fingerprints.index import _ranks, _read  # noqa: E402
from modelassay.runs.directory import open_run  # noqa: E402
from modelassay.statistics.proportions import clopper_pearson  # noqa: E402
from modelassay.zoo.ancestry import connection, roots  # noqa: E402

Counts = dict[str, list[int]]


def counts(index: Path, alpha: float) -> tuple[Counts, int]:
    """Pairs found and tested by kind, and models."""
    found: Counts = defaultdict(lambda: [0, 0])
    num_models = 0
    for path in sorted(index.glob("width=*/*.parquet")):
        width = int(path.parent.name.partition("=")[2])
        frame = _read([path], width)
        num_models += frame.height
        empty = Sketch(width=width, ranks_FM=_ranks_of_none(min(width, MAX_DIMENSIONS)), num_bytes=0)
        sketches = [Sketch(width=width, ranks_FM=ranks, num_bytes=0) for ranks in _ranks(frame, empty)]
        names = [model.removeprefix("zoo:") for model in frame["model"]]
        for (name, sketch), (other, other_sketch) in combinations(zip(names, sketches, strict=True), 2):
            kind = connection(name, other)
            result = alike(sketch, other_sketch)
            is_found = result is not None and result.log10_p + math.log10(frame.height) <= math.log10(alpha)
            labels = [kind]
            root, child = sorted((name, other), key=len)
            if kind == "inherited" and roots(child) >= {root}:
                labels.append(f"root and child, last step {child.rpartition('+')[2]}")
            for label in labels:
                found[label][0] += is_found
                found[label][1] += 1
    return found, num_models


def _ranks_of_none(num_dimensions: int):  # type: ignore[no-untyped-def]  # noqa: ANN202 - only its shape is used
    import numpy as np

    from modelassay.fingerprints.independence.blocks import NUM_LAYERS

    return np.tile(np.arange(num_dimensions, dtype=np.uint16), (NUM_LAYERS, 1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--alpha", type=float, default=1e-6)
    parser.add_argument("--into", type=Path)
    options = parser.parse_args()
    found, num_models = counts(index_of(open_run(options.run)), options.alpha)
    print(f"{num_models} models, pairs of one width, alpha {options.alpha:g}")
    for label, (count, total) in sorted(found.items(), key=lambda item: (" " in item[0], item[0])):
        share = clopper_pearson(count, total)
        print(f"{label:44} {count:6} of {total:6}  {share.value:.4f} [{share.low:.4f}, {share.high:.4f}]")
    if options.into is not None:
        options.into.write_text(
            json.dumps({"models": num_models, "alpha": options.alpha, "found": found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
