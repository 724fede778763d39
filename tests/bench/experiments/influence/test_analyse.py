"""The analysis on scores and losses that are made up, so that the answers are known."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

from modelassay.charts import data_of
from modelassay.experiments.findings import Findings
from modelassay.experiments.influence.analyse import analyse
from modelassay.experiments.influence.analyse.fidelity import ceiling, lds, spearman_columns
from modelassay.recording.tables import RunData

SUBSETS, TUNING, QUERIES, ROWS = 60, 20, 12, 80


def made_up(noise: float = 0.3) -> RunData:
    """Losses fall with the true scores' sums; EKFAC knows these best at damping 0.1, identity less well, random not at all."""
    rng = np.random.default_rng(0)
    true_QN = rng.standard_normal((QUERIES, ROWS))
    members_SN = rng.random((SUBSETS, ROWS)) < 0.5
    sums_SQ = members_SN @ true_QN.T
    losses = -sums_SQ[:, None] + noise * rng.standard_normal((SUBSETS, 2, QUERIES)) * sums_SQ.std()
    cells = [{"cell": part, "outcome": "done", "part": part, "damping": 0.1, "tuning_subsets": 0, "parts.lds.tuning_subsets": TUNING, "wall_s": 1.0}
             for part in ("lds", "facts")]  # fmt: skip
    facts: list[dict[str, Any]] = [{"cell": "lds", "fact": "subset-losses", "value": losses.tolist()}]

    def add(method: str, spoiled: float, **labels: Any) -> None:
        scores = true_QN + spoiled * rng.standard_normal(true_QN.shape)
        facts.append({
            "cell": "lds",
            "fact": "subset-sums",
            "value": (members_SN @ scores.T).tolist(),
            "method": method,
            **labels,
        })

    for damping, spoiled in ((0.001, 3.0), (0.1, 0.3), (1.0, 2.0)):
        add("ekfac", spoiled, damping=damping)
    add("identity", 2.0)
    add("random", 1e6)
    metrics: list[dict[str, Any]] = [
        {"cell": "facts", "name": "plateau", "value": 0.2},
        {"cell": "lds", "name": "plateau", "value": 0.0},
    ]
    for query in range(QUERIES):
        for method, recall in (("ekfac", 0.8 + 0.01 * query), ("bm25", 0.3)):
            metrics += [
                {"cell": "facts", "name": "recall", "value": recall, "method": method, "query": query, "k": k}
                for k in ("planted", "1 %")
            ]
            metrics.append({
                "cell": "facts",
                "name": "reciprocal_rank",
                "value": recall,
                "method": method,
                "query": query,
            })
            for seed in range(10):
                metrics.append({
                    "cell": "facts",
                    "name": "flipped",
                    "value": float(method == "ekfac"),
                    "method": method,
                    "query": query,
                    "seed": seed,
                })
                metrics.append({
                    "cell": "facts",
                    "name": "removed_loss",
                    "value": 1.0 + (method == "ekfac") + 0.01 * seed,
                    "method": method,
                    "query": query,
                    "seed": seed,
                })
        for seed in range(10):
            metrics.append({
                "cell": "facts",
                "name": "flipped",
                "value": float(query == 0),
                "method": "nothing",
                "query": query,
                "seed": seed,
            })
            metrics.append({
                "cell": "facts",
                "name": "removed_loss",
                "value": 1.0 + 0.01 * seed,
                "method": "nothing",
                "query": query,
                "seed": seed,
            })
    layer = {"min": 0.0, "size": 100, "num_for_90": 3, "num_for_99": 10, "shape": [10, 10], "heatmap": [[-1.0, None], [-2.0, -3.0]],
             "places": [1, 10, 100], "sorted": [0.0, -2.0, None], "shares": [0.5, 0.99, 1.0]}  # fmt: skip
    facts.append({"cell": "lds", "fact": "lambda", "value": layer, "module": "mlp.down_proj"})
    return RunData(
        cells=pl.DataFrame(cells),
        units=pl.DataFrame(),
        metrics=pl.DataFrame(metrics, infer_schema_length=None),
        profile="embedded",
        fact_rows=facts,
    )


@pytest.fixture(scope="module")
def findings() -> Findings:
    return analyse(made_up())


def of(findings: Findings, name: str, **labels: Any) -> Any:
    (one,) = [f.estimate for f in findings.findings if f.name == name and labels.items() <= f.labels.items()]
    return one


def test_correlations_are_those_of_scipy_and_a_constant_column_is_none() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 5, (30, 4)).astype(float), rng.standard_normal((30, 4))
    assert spearman_columns(a, b).tolist() == pytest.approx([spearmanr(a[:, q], b[:, q]).statistic for q in range(4)])
    assert np.isnan(spearman_columns(np.ones((30, 1)), b[:, :1]))[0]
    losses = np.stack([-a, -a], axis=1)
    assert lds(a, losses) == pytest.approx(1.0)
    assert lds(-a, losses) == pytest.approx(-1.0)
    assert ceiling(losses) == pytest.approx(1.0)


def test_the_ceiling_is_what_another_mean_would_score() -> None:
    rng = np.random.default_rng(2)
    truth = rng.standard_normal((4000, 3))
    losses = truth[:, None] + rng.standard_normal((4000, 2, 3))
    assert ceiling(losses) == pytest.approx(float(spearman_columns(truth, losses.mean(axis=1)).mean()), abs=0.02)


def test_damping_is_chosen_on_other_subsets_and_the_better_method_wins(findings: Findings) -> None:
    assert of(findings, "damping_chosen", method="ekfac").value == 0.1
    ekfac, difference = of(findings, "lds", method="ekfac"), of(findings, "lds_minus_identity", method="ekfac")
    assert ekfac.value > 0.8
    assert ekfac.n == SUBSETS - TUNING
    assert 0 < difference.low < difference.value < difference.high
    random = of(findings, "lds", method="random")
    assert random.low < 0 < random.high
    assert of(findings, "lds_ceiling").value > ekfac.value - 0.1


def test_paired_differences_from_words_and_from_noise(findings: Findings) -> None:
    assert of(findings, "recall_minus_bm25", method="ekfac", k="1 %").value == pytest.approx(0.555)
    assert of(findings, "mrr", part="facts", method="bm25").value == pytest.approx(0.3)
    assert of(findings, "removal_loss", method="ekfac").value == pytest.approx(1.0)
    assert of(findings, "removal_flips", method="nothing").value == pytest.approx(1 / QUERIES)
    assert of(findings, "flips_minus_bm25", method="ekfac").value == pytest.approx(1.0)
    assert of(findings, "flips_minus_nothing", method="bm25").value == pytest.approx(-1 / QUERIES)


def test_what_has_not_converged_is_said_and_figures_hold_the_numbers(findings: Findings) -> None:
    assert [
        line
        for line in findings.caveats
        if line.startswith("part facts: 20.0% of the fall of the loss came with the last quarter")
    ]
    assert not [line for line in findings.caveats if line.startswith("part lds")]
    points = {point["method"]: point["value"] for point in data_of(findings.figures["lds"], "lds")}
    assert points["ekfac"] == pytest.approx(of(findings, "lds", method="ekfac").value, abs=1e-6)
    heat = data_of(findings.figures["lambda"], "lambda: mlp.down_proj")
    assert {(p["output"], p["input"]): p["log10"] for p in heat} == {
        (0, 0): -1.0,
        (0, 1): None,
        (1, 0): -2.0,
        (1, 1): -3.0,
    }
    assert set(findings.figures) == {"lambda", "eigenvalues", "shares", "damping", "lds", "recall", "removal"}
    assert all(findings.figures[name]["config"] for name in findings.figures)
    assert of(findings, "negative_entries").value == 0
    assert of(findings, "small_entries").value == pytest.approx(0.9)
