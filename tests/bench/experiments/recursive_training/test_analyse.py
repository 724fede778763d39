"""The analysis on trajectories that are made up, so that the answers are known: a lead, none, a text that stays as it is."""

from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest

from modelassay.charts import data_of
from modelassay.experiments.findings import Findings
from modelassay.experiments.recursive_training.analyse import analyse, contrasts
from modelassay.experiments.recursive_training.analyse.series import read_series, settings_of
from modelassay.recording.tables import RunData

SEEDS, GENERATIONS = 6, 8


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Games and Howell's intervals take seconds; they have tests of their own."""
    monkeypatch.setattr(contrasts, "MAIN", ())


NOISE = {"held_out_loss": 0.02, "ratio": 3.0, "anchor_entropy": 0.05, "critical_sharpness": 5.0}
BASE = {"held_out_loss": 2.0, "ratio": 60.0, "anchor_entropy": 1.5, "critical_sharpness": 30.0}


def made_up(onsets: dict[str, float], *, size: float = 15.0, seeds: int = SEEDS, diverged: bool = False) -> RunData:
    """T leaves from its onset on, ``size`` standard deviations of noise a generation, in the direction of collapse; A never."""
    rng = np.random.default_rng(0)
    cells, metrics, units, facts = [], [], [], []
    for condition in ("replace", "fresh", "same"):
        for seed in range(seeds):
            cell = f"{condition}-{seed}"
            cells.append({
                "cell": cell, "outcome": "done", "reason": "", "condition": condition, "seed": seed, "generations": GENERATIONS,
                "quality": "held_out_loss", "horizons": "[1, 2, 3]", "wall_s": 1.0,
            })  # fmt: skip
            for generation in range(GENERATIONS + 1):
                for name, scale in NOISE.items():
                    sign = 1 if name == "held_out_loss" else -1
                    gone = max(0.0, generation - onsets[name]) if condition == "replace" and name in onsets else 0.0
                    value = BASE[name] + scale * (sign * size * gone + rng.normal())
                    labels = {"definition": "all", "embeddings": "with"} if name == "ratio" else {}
                    metrics.append({"cell": cell, "name": name, "value": value, "generation": generation, **labels})
                metrics.append({
                    "cell": cell,
                    "name": "ratio",
                    "value": 1e9,
                    "generation": generation,
                    "definition": "without_5",
                    "embeddings": "with",
                })
                metrics += [{"cell": cell, "name": name, "value": value, "generation": generation} for name, value in
                            (("probe_sd", 1.0), ("text_sd", 2.0), ("trained_tokens", 100.0), ("trained_steps", 10.0), ("train_loss", 1.0))]  # fmt: skip
                metrics[-1]["step"] = 3
                facts.append({
                    "cell": cell,
                    "fact": "prompts",
                    "value": f"{seed}/{generation}",
                    "generation": generation,
                })
                facts += [
                    {"cell": cell, "fact": "density", "value": {"nodes": [-0.1, 0.0, 0.2, 40.0], "weights": [0.3, 0.3, 0.399, 0.001]},
                     "generation": generation, "embeddings": "with"},
                    {"cell": cell, "fact": "landscape", "value": {"reach": 0.5, "losses": [[3.0, 2.5, 3.0], [2.5, 2.0, 2.5], [3.0, None, 3.0]]},
                     "generation": generation},
                ]  # fmt: skip
                facts.append({
                    "cell": cell,
                    "fact": "sample",
                    "value": "The dogs sleep.",
                    "generation": generation,
                    "number": 0,
                })
                for stage, ms in (
                    ("forward", 10.0),
                    ("spectrum", 1680.0),
                    ("sharpness", 90.0),
                    ("anchors", 30.0),
                    ("gradient", 30.0),
                    ("step", 60.0),
                ):
                    units.append({
                        "cell": cell,
                        "stage": stage,
                        "host_ms": ms,
                        "tokens": 1000,
                        "reused": False,
                        "generation": generation,
                    })
    if diverged:
        cells[0] |= {"outcome": "diverged", "reason": "generation 3: the loss was not finite at step 5"}
    return RunData(
        cells=pl.DataFrame(cells), units=pl.DataFrame(units), metrics=pl.DataFrame(metrics, infer_schema_length=None), profile="embedded",
        fact_rows=facts,
    )  # fmt: skip


def of(findings: Findings, name: str, **labels: Any) -> Any:
    (found,) = [each for each in findings.findings if each.name == name and labels.items() <= each.labels.items()]
    return found.estimate


SOONER = {"held_out_loss": 4.0, "ratio": 0.0, "anchor_entropy": 3.0}


@cache
def sooner() -> Findings:
    """What is found where the ratio comes first."""
    return analyse(made_up(SOONER))


def test_a_spectrum_that_comes_first_earns_its_cost() -> None:
    findings = sooner()
    ahead = of(findings, "lead", measure="ratio")
    assert ahead.value == pytest.approx(4.0, abs=0.6)
    assert ahead.p == ahead.min_p == 2 / 64
    assert "pairs see leads" in ahead.note
    assert of(findings, "spectrum_earns_its_cost").value == 1.0
    assert of(findings, "crossed", measure="critical_sharpness").value < 0.5
    cost = of(findings, "cost", measure="ratio").value
    assert cost == pytest.approx(168)
    assert of(findings, "lead_per_100_passes", measure="ratio").value == pytest.approx(ahead.value * 100 / cost)
    assert any("degradation is there to be predicted" in caveat for caveat in findings.caveats)
    assert any("earns its cost: yes" in caveat for caveat in findings.caveats)


def test_a_cheap_rival_that_comes_as_soon_takes_its_price_away() -> None:
    findings = analyse(made_up({"held_out_loss": 4.0, "ratio": 1.0, "anchor_entropy": 1.0}, size=40.0))
    assert of(findings, "lead", measure="ratio").value > 2
    assert of(findings, "spectrum_earns_its_cost").value == 0.0


def test_a_spectrum_that_never_moves_does_not_earn_it() -> None:
    findings = analyse(made_up({"held_out_loss": 2.0}))
    assert of(findings, "spectrum_earns_its_cost").value == 0.0
    assert of(findings, "forecast", measure="ratio", horizon=1).value < 0.05


def test_where_the_text_goes_bad_at_once_no_measure_has_a_lead() -> None:
    findings = analyse(made_up({"held_out_loss": 0.0, "ratio": 0.0, "anchor_entropy": 0.0}, size=40.0))
    assert of(findings, "crossing", measure="held_out_loss").high == 1
    for measure in ("ratio", "anchor_entropy"):
        ahead = of(findings, "lead", measure=measure)
        assert not ahead.defined
        assert "before which nothing can come" in ahead.note
    assert not [each for each in findings.findings if each.name == "lead_per_100_passes"]
    assert np.isnan(of(findings, "spectrum_earns_its_cost").value)


def test_where_the_text_stays_as_it_is_nothing_is_told() -> None:
    findings = analyse(made_up({"ratio": 0.0}))
    assert np.isnan(of(findings, "spectrum_earns_its_cost").value)
    assert any("this training is not enough" in caveat for caveat in findings.caveats)


def test_the_paired_test_is_adjusted_and_says_its_power() -> None:
    findings = sooner()
    ratio = of(findings, "difference", measure="ratio", first="replace", second="fresh")
    assert ratio.p == 2 / 64
    assert "Holm-adjusted p 0.125" in ratio.note  # four measures
    assert "1.43 standard deviations" in ratio.note
    assert ratio.value < 0
    assert of(findings, "d", measure="ratio", first="replace", second="fresh").value < -5
    assert of(findings, "welch", measure="held_out_loss").p < 1e-3
    same = of(findings, "difference", measure="ratio", first="same", second="fresh")
    assert same.low < 0 < same.high
    assert of(findings, "noise", source="text").value == pytest.approx(
        2 * of(findings, "noise", source="probe").value, rel=1e-6
    )


def test_budgets_are_compared_between_conditions() -> None:
    data = made_up(SOONER)
    assert of(analyse(data), "budget").value == 1.0
    changed = data.metrics.with_columns(
        pl.when((pl.col("name") == "trained_tokens") & (pl.col("cell") == "same-2") & (pl.col("generation") == 4)).then(99.0).otherwise(pl.col("value")).alias("value")
    )  # fmt: skip
    unequal = RunData(cells=data.cells, units=data.units, metrics=changed, profile="embedded", fact_rows=data.fact_rows)
    assert of(analyse(unequal), "budget").value == 0.0


def test_what_ended_early_is_counted_and_named() -> None:
    findings = analyse(made_up(SOONER, diverged=True))
    assert of(findings, "diverged", condition="replace").value == pytest.approx(1 / 6)
    assert "replace: generation 3: the loss was not finite at step 5" in findings.caveats
    assert of(findings, "difference", measure="ratio", first="replace", second="fresh").n == 5


def test_two_seeds_make_no_lead_and_none_no_numbers() -> None:
    findings = analyse(made_up(SOONER, seeds=2))
    assert not [each for each in findings.findings if each.name == "lead"]
    assert np.isnan(of(findings, "spectrum_earns_its_cost").value)
    data = made_up(SOONER, seeds=1)
    nothing = RunData(
        cells=data.cells.with_columns(pl.lit("failed").alias("outcome")),
        units=data.units.clear(),
        metrics=data.metrics.clear(),
        profile="embedded",
    )
    assert analyse(nothing).findings == []


def test_an_alarm_is_worth_what_it_comes_before() -> None:
    """The ratio leaves four generations before the loss: of texts that are not bad yet it calls those that will be."""
    findings = sooner()
    for horizon in (0, 1, 2, 3):
        caught, false = (
            of(findings, name, measure="ratio", horizon=horizon) for name in ("sensitivity", "false_alarm")
        )
        assert caught.low > 0.5
        assert false.high < (0.5 if horizon else 0.9)  # at 0 those are called that are about to go bad
    late = of(findings, "sensitivity", measure="critical_sharpness", horizon=1)
    wrong = of(findings, "false_alarm", measure="critical_sharpness", horizon=1)
    assert late.value - wrong.value < 0.5
    assert of(findings, "sensitivity", measure="held_out_loss", horizon=0).value == 1.0
    assert "threshold of the other seeds" in caught.note


def test_changes_that_come_first_correlate_at_their_lag() -> None:
    findings = sooner()
    lags = {
        lag: of(findings, "lag_correlation", measure="anchor_entropy", lag=lag, of="changes").value
        for lag in (-3, 0, 1)
    }
    assert lags[1] > 0.5  # leaves at 3, the loss at 4
    assert lags[1] > lags[0] > lags[-3]
    alone = of(findings, "lag_correlation", measure="anchor_entropy", lag=1, of="deviations")
    assert alone.low < 0 < alone.high  # the course that all seeds have in common is taken out


def test_settings_are_told_apart_and_compared() -> None:
    """Two doses of which the second moves the ratio twice as far; neither overwrites the other."""
    low, high = made_up(SOONER, size=15.0), made_up(SOONER, size=30.0)
    renamed = {cell: f"{cell}-high" for cell in high.cells["cell"].to_list()}
    both = RunData(
        cells=pl.concat([low.cells.with_columns(pl.lit(100).alias("samples")), high.cells.with_columns(pl.col("cell").replace(renamed), pl.lit(200).alias("samples"))]),
        units=pl.concat([low.units, high.units.with_columns(pl.col("cell").replace(renamed))]),
        metrics=pl.concat([low.metrics, high.metrics.with_columns(pl.col("cell").replace(renamed))]),
        profile="embedded", fact_rows=[*low.fact_rows, *({**fact, "cell": renamed[fact["cell"]]} for fact in high.fact_rows)],
    )  # fmt: skip
    findings = analyse(both)
    alone = of(sooner(), "difference", measure="ratio", first="replace", second="fresh")
    assert of(findings, "difference", measure="ratio", first="replace", second="fresh", setting="samples=100") == alone
    twice = of(findings, "difference", measure="ratio", first="replace", second="fresh", setting="samples=200")
    assert twice.value == pytest.approx(2 * alone.value, rel=0.1)
    interaction = of(findings, "interaction", measure="ratio", setting="samples=200", first="samples=100")
    assert interaction.value == pytest.approx(twice.value - alone.value)
    assert interaction.high < 0
    assert "density-2" in findings.figures
    assert any(sentence.startswith("samples=200: the spectral measure") for sentence in findings.caveats)
    parts = {setting: read_series(part) for setting, part in settings_of(both).items()}
    assert list(parts) == ["samples=100", "samples=200"]


def test_figures_hold_the_numbers() -> None:
    data, findings = made_up(SOONER), sooner()
    means = data_of(findings.figures["trajectories"], "means of ratio")
    series = read_series(data).of("replace", "ratio")
    assert series is not None
    assert {point["value"] for point in means} >= {float(f"{value:.7g}") for value in series.mean(axis=0)}
    assert {point["measure"] for point in data_of(findings.figures["leads"], "leads")} == {
        "ratio",
        "anchor_entropy",
        "critical_sharpness",
    }
    assert data_of(findings.figures["forecasts"], "forecasts 3")
    ridge = data_of(findings.figures["density"], "density of replace 8")
    assert max(ridge, key=lambda point: point["density"])["eigenvalue"] == pytest.approx(0.0, abs=0.3)
    assert [
        point for point in ridge if point["eigenvalue"] > 20 and point["top"] > 8.2
    ]  # an outlier of a thousandth shows
    assert data_of(findings.figures["landscape"], "landscape of fresh 4")[7]["loss"] is None
    assert {point["lag"] for point in data_of(findings.figures["lags"], "lags of ratio")} == {-3, -2, -1, 0, 1, 2, 3}
