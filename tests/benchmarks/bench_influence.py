"""Factors and scores against Kronfluence 1.0.1 on the CPU: processor seconds in interleaved rounds, peak memory, and whether both computed the same.

::

    PYTHONPATH=FOLDER_WITH_KRONFLUENCE OMP_NUM_THREADS=1 python tests/benchmarks/bench_influence.py [--rows 2000 --queries 200 --rounds 3 --rank 64]

Three sides: **modelassay** keeps the train gradients of its first pass on the disk (`Fit.cache`; the labels are the data's, so that they serve the scores too),
**modelassay, no cache** makes every pass afresh, and so does **kronfluence**, which has no such cache. A Llama of 1.7 million parameters in float32, its 24 feed-forward matrices, rows of 32 tokens, labels of the data. Each side of a round is a process of its
own, forked from one that has computed nothing; first each side's batch is chosen among several on a quarter of the work. **fit**: covariances, eigenbases, corrected eigenvalues, to the disk. **score**:
query gradients, preconditioned and whole, times every row's gradient. Resident memory is the process's peak with torch and all else; the disk is what lies in the
folder when it has scored. Seconds of the clock stand beside processor seconds, since waiting for the disk is none of the latter.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

LENGTH, DAMPING = 32, 0.1
RANK: int | None = None
FORK = multiprocessing.get_context("fork")
OURS, FRESH, THEIRS = "modelassay", "modelassay, no cache", "kronfluence"
BATCHES = {OURS: (64, 128, 256), FRESH: (64, 128, 256), THEIRS: (32, 128, 500)}
"""Rows of a pass."""


def world(num_rows: int, num_queries: int) -> tuple[Any, list[Any], list[Any]]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from modelassay.training.rows import Row

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=1000, hidden_size=128, intermediate_size=344, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=4,
                         max_position_embeddings=LENGTH, tie_word_embeddings=True)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(1000, (num_rows + num_queries, LENGTH), generator=torch.Generator().manual_seed(1)).tolist()
    rows = [Row(ids=tuple(each), loss=(True,) * LENGTH) for each in ids]
    return model, rows[:num_rows], rows[num_rows:]


def ours(model: Any, rows: Any, queries: Any, batch: int, folder: Path, *, cache: bool = True) -> dict[str, Any]:
    from modelassay.curvature.ekfac.factors import Fit, fit_factors
    from modelassay.curvature.ekfac.modules import select_modules
    from modelassay.curvature.influence.queries import prepared, raw_gradients, rotated_gradients
    from modelassay.curvature.influence.scores import pairwise
    from modelassay.curvature.influence.train import FittedRows, LiveRows

    clock, modules, tokens = Clock(), select_modules(model), batch * LENGTH
    fit = Fit(fisher="empirical", max_tokens=tokens, cache=cache)
    factors = fit_factors(model, rows, modules, folder / "factors", fit)
    fitted = clock.lap()
    if cache:
        layers = prepared(
            rotated_gradients(model, queries, factors, max_tokens=tokens), factors, damping=DAMPING, rank=RANK
        )
        scores = pairwise(layers, FittedRows(factors), num_tokens=factors.counts.tokens)
    else:
        layers = prepared(
            raw_gradients(model, queries, modules, max_tokens=tokens), factors, damping=DAMPING, rank=RANK
        )
        live = LiveRows(model=model, examples=rows, modules=modules, max_tokens=tokens)
        scores = pairwise(layers, live, num_tokens=factors.counts.tokens)
    score = clock.lap()
    covariances = {
        module.name: (factors[module.name].covariance_JJ, factors[module.name].covariance_OO) for module in modules
    }
    return {"fit": fitted, "score": score, "covariances": covariances, "scores": scores * factors.counts.tokens}


def theirs(model: Any, rows: Any, queries: Any, batch: int, folder: Path) -> dict[str, Any]:
    import torch
    from torch.nn.functional import cross_entropy

    warnings.simplefilter("ignore")
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    from modelassay.curvature.ekfac.modules import select_modules

    names = [module.name for module in select_modules(model)]

    class LanguageModelling(Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Any:
            logits = model(input_ids=batch["ids"], use_cache=False).logits[:, :-1]
            return cross_entropy(logits.flatten(0, 1), batch["ids"][:, 1:].flatten(), reduction="sum")

        def compute_measurement(self, batch: Any, model: Any) -> Any:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return names

    def dataset(part: Any) -> list[dict[str, Any]]:
        return [{"ids": torch.tensor(row.ids)} for row in part]

    task = LanguageModelling()
    analyzer = Analyzer("peer", prepare_model(model, task), task, cpu=True, output_dir=str(folder), disable_tqdm=True)
    train, asked = dataset(rows), dataset(queries)
    clock = Clock()
    analyzer.fit_all_factors(
        "f",
        train,
        per_device_batch_size=batch,
        factor_args=FactorArguments(strategy="ekfac", use_empirical_fisher=True),
    )
    fit = clock.lap()
    analyzer.compute_pairwise_scores("s", "f", asked, train, per_device_query_batch_size=len(queries), per_device_train_batch_size=batch,
                                     score_args=ScoreArguments(damping_factor=None, query_gradient_low_rank=RANK))  # fmt: skip
    score = clock.lap()
    kept = analyzer.load_covariance_matrices("f")
    covariances = {name: tuple(kept[f"{side}_covariance"][name].double() / kept[f"num_{side}_covariance_processed"][name].double()
                               for side in ("activation", "gradient")) for name in names}  # fmt: skip
    return {
        "fit": fit,
        "score": score,
        "covariances": covariances,
        "scores": analyzer.load_pairwise_scores("s")["all_modules"],
    }


class Clock:
    """Processor seconds of all threads, and seconds of the clock, since the last lap."""

    def __init__(self) -> None:
        self._began = self._now()

    def _now(self) -> tuple[float, float]:
        return time.process_time(), time.perf_counter()

    def lap(self) -> tuple[float, float]:
        began, self._began = self._began, self._now()
        return self._began[0] - began[0], self._began[1] - began[1]


def child(side: str, batch: int, num_rows: int, num_queries: int, out: Path, told: Any) -> None:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model, rows, queries = world(num_rows, num_queries)
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sides = {OURS: ours, FRESH: partial(ours, cache=False), THEIRS: theirs}
        result = sides[side](model, rows, queries, batch, Path(folder))
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    torch.save({"covariances": result["covariances"], "scores": result["scores"]}, out / f"{side}.pt")
    seconds = {
        f"{kind}{clock}": result[kind][place] for kind in ("fit", "score") for place, clock in enumerate(("", "_clock"))
    }
    told.send({
        **{name: round(value, 2) for name, value in seconds.items()},
        "peak_MiB": round(peak),
        "before_MiB": round(before),
        "disk_MiB": round(disk),
    })


def run(side: str, batch: int, num_rows: int, num_queries: int, out: Path) -> dict[str, float]:
    """In a fork of a process that has imported everything and computed nothing."""
    ours_end, other_end = FORK.Pipe(duplex=False)
    process = FORK.Process(target=child, args=(side, batch, num_rows, num_queries, out, other_end))
    process.start()
    other_end.close()
    try:
        measured: dict[str, float] = ours_end.recv()
    except EOFError:
        sys.exit(f"{side} ended with nothing to tell; see above")
    finally:
        process.join()
    return measured


def same(out: Path, side: str) -> dict[str, float]:
    """Of ours and Kronfluence's: the greatest relative error of a covariance, and the smallest rank correlation of a query's scores."""
    import torch
    from scipy.stats import spearmanr

    one, other = (torch.load(out / f"{each}.pt") for each in (side, THEIRS))
    pairs = [
        (a.double(), b.double())
        for name in one["covariances"]
        for a, b in zip(one["covariances"][name], other["covariances"][name], strict=True)
    ]
    ours, peers = one["scores"].double(), other["scores"].double()
    factor = float(
        (ours * peers).sum() / (peers * peers).sum()
    )  # theirs divide curvature by rows, ours by counted tokens
    scales = [
        float((a * b).sum() / (b * b).sum()) for a, b in pairs
    ]  # one counts positions, the other counted tokens: stated, not hidden
    return {
        "covariance_error": max(float((a - scale * b).norm() / a.norm()) for (a, b), scale in zip(pairs, scales, strict=True)),
        "scale_min": min(scales), "scale_max": max(scales),
        "spearman_min": min(float(spearmanr(a, b).statistic) for a, b in zip(one["scores"], other["scores"], strict=True)),
        "score_scale": factor, "score_error": float((ours - factor * peers).norm() / ours.norm()),
    }  # fmt: skip


def interval(ratios: list[float]) -> str:
    """Geometric mean with Student's 95 % interval of the logarithms."""
    from scipy.stats import t

    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return f"{math.exp(mean):.2f}"
    half = float(t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return f"{math.exp(mean):.2f} [{math.exp(mean - half):.2f}, {math.exp(mean + half):.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--batches",
        type=int,
        nargs=3,
        metavar=("OURS", "NO_CACHE", "THEIRS"),
        help="rows of a pass; chosen by trial if not given",
    )
    parser.add_argument("--sides", nargs="+", choices=list(BATCHES), default=list(BATCHES), help="beside Kronfluence")
    parser.add_argument("--rank", type=int, help="of query gradients; whole if not given")
    given = parser.parse_args()
    global RANK
    RANK = given.rank
    for name in (
        "kronfluence.analyzer",
        "transformers.models.llama.modeling_llama",
        "scipy.stats",
        "modelassay.curvature.influence.scores",
    ):
        importlib.import_module(name)
    print(f"load {os.getloadavg()[0]:.1f}, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS')}")
    best = dict(zip(BATCHES, given.batches or (), strict=False))
    sides = [side for side in BATCHES if side in {*given.sides, THEIRS}]
    own = [side for side in sides if side != THEIRS]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for side in sides if given.batches is None else ():
            tried = {
                batch: run(side, batch, max(given.rows // 4, 8), max(given.queries // 4, 2), out)
                for batch in BATCHES[side]
            }
            best[side] = min(tried, key=lambda batch: tried[batch]["fit"] + tried[batch]["score"])
            print(
                side,
                "rows of a pass:",
                {batch: f"fit {one['fit']:.1f}, score {one['score']:.1f} s" for batch, one in tried.items()},
                "->",
                best[side],
            )
        rounds = []
        for number in range(given.rounds):
            order = sides if number % 2 == 0 else list(reversed(sides))
            rounds.append({side: run(side, best[side], given.rows, given.queries, out) for side in order})
            print(json.dumps(rounds[-1]), flush=True)
        for side in own:
            print(f"{side} and kronfluence:", json.dumps(same(out, side)))
    for side in own:
        for kind, what in (("fit", "processor seconds"), ("score", "processor seconds"), ("fit_clock", "seconds of the clock"), ("score_clock", "seconds of the clock")):  # fmt: skip
            ratios = [each[THEIRS][kind] / each[side][kind] for each in rounds]
            print(f"{kind.removesuffix('_clock')}: Kronfluence / {side}, {what}: {interval(ratios)}")
    for side in sides:
        peak, before, disk = (max(each[side][f"{what}_MiB"] for each in rounds) for what in ("peak", "before", "disk"))
        print(f"{side}: peak memory {peak} MiB, {before} before it began; disk {disk} MiB")


if __name__ == "__main__":
    main()
