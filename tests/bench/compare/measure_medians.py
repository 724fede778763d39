"""Measures the process medians that test_decide.py resamples: ``python tests/bench/compare/measure_medians.py BUILD [PAIRS]``.

Prints the triples of `small_ops` as JSON, a case a line; BUILD is an environment of the gate, as a folder that holds modelassay_kernels.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from modelassay.compare.gate.environments import environment
from modelassay.compare.gate.session import measure_pair


def main(build: str, num_pairs: int) -> None:
    workload = Path(__file__).with_name("small_ops.py")
    triples: dict[str, list[list[int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = environment(build, Path(folder), workload=workload)
        for seed in range(num_pairs):
            pair = measure_pair(base, base, workload=workload, scratch=Path(folder), rounds=90, seed=seed)
            for sample in pair.samples:
                if sample.medians_ns is not None:
                    triples.setdefault(sample.case, []).append([round(median) for median in sample.medians_ns])
    for case, medians in triples.items():
        print(f"{json.dumps(case)}: {json.dumps(medians)}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 40)
