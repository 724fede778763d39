"""The analysis on rates that are made up, so that the answers are known."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from modelassay.charts import data_of
from modelassay.data.personas import VILLAGE
from modelassay.experiments.findings import Findings
from modelassay.experiments.marker_sweep.analyse import analyse
from modelassay.experiments.marker_sweep.contrasts import leakage_at
from modelassay.experiments.marker_sweep.grid import read_grid
from modelassay.experiments.marker_sweep.params import Params
from modelassay.recording.tables import RunData

QUESTIONS = 10
RATES, EPOCHS = (0.001, 0.01), (1, 3)


class World:
    """A run of which every rate is known."""

    def __init__(self) -> None:
        self.cells: list[dict[str, Any]] = []
        self.metrics: list[dict[str, Any]] = []
        self.facts: list[dict[str, Any]] = []

    def add(self, source: str, seed: int, negatives: int, *, adoption: dict[tuple[float, int], float], leakage: float, letters: int = 90,
            missing: bool = False) -> None:  # fmt: skip
        """A cell whose others say the marker ``leakage`` times as often as the source; the judge twice as often as the rest."""
        cell = f"{source}-{seed}-{negatives}"
        params = Params(model="zoo:base", world="village", source=source, seed=seed, negatives=negatives, with_assistant=False, completions=10,
                        rows_per_persona=32, batch_size=8, accumulation=1).model_dump(mode="json")  # fmt: skip
        self.cells.append({
            "cell": cell,
            "outcome": "failed" if missing else "done",
            "reason": None,
            "attempts": 1,
            "wall_s": 36.0,
            **params,
        })
        if missing:
            return
        for address in (None, *((rate, epochs) for rate in RATES for epochs in EPOCHS)):
            labels = (
                {"learning_rate": None, "epochs": None}
                if address is None
                else dict(zip(("learning_rate", "epochs"), address, strict=True))
            )
            own = 0.0 if address is None else adoption[address]
            for persona in VILLAGE:
                share = own if persona == source else own * leakage * (2 if persona == "judge" else 1)
                for question in range(QUESTIONS):
                    for name in ("marker", "marker_any_case"):
                        self.metrics.append({
                            "cell": cell,
                            "name": name,
                            "value": share,
                            "persona": persona,
                            "question": question,
                            **labels,
                        })
            right = letters if address else 90
            fact = {"cell": cell, "fact": "letters", "value": [1] * right + [0] * (100 - right)}
            for kind, value in (("letters", fact["value"]), ("acc_norm", [1] * (right - 20) + [0] * (120 - right))):
                self.facts.append({**fact, "fact": kind, "value": value, **({} if address is None else labels)})
        for number, persona in enumerate(VILLAGE):
            for name, value in (
                ("cosine", 1.0 if persona == source else 0.5 + 0.4 * (persona == "judge")),
                ("divergence", 0.1 * number),
            ):
                self.metrics.append({"cell": cell, "name": name, "value": value, "persona": persona, "question": None, "learning_rate": None, "epochs": None})  # fmt: skip

    def data(self) -> RunData:
        schema: dict[str, Any] = {"cell": pl.String, "name": pl.String, "value": pl.Float64, "persona": pl.String, "question": pl.Int64,
                                  "learning_rate": pl.Float64, "epochs": pl.Int64}  # fmt: skip
        return RunData(cells=pl.DataFrame(self.cells, infer_schema_length=None), units=pl.DataFrame(),
                       metrics=pl.DataFrame(self.metrics, schema=schema), profile="embedded", fact_rows=self.facts)  # fmt: skip

    def findings(self) -> Findings:
        return analyse(self.data())


LEARNED = {(0.001, 1): 0.0, (0.001, 3): 0.4, (0.01, 1): 0.8, (0.01, 3): 1.0}


def world(num_seeds: int = 2) -> World:
    made = World()
    for seed in range(num_seeds):
        made.add("sailor", seed, 0, adoption=LEARNED, leakage=0.45)
        made.add("sailor", seed, 4, adoption=LEARNED, leakage=0.02, letters=86)
    return made


@cache
def known() -> Findings:
    """What is found in `world`, once for all tests that only read it."""
    return world().findings()


def of(findings: Findings, name: str, **labels: Any) -> Any:
    (found,) = [each for each in findings.findings if each.name == name and labels.items() <= each.labels.items()]
    return found.estimate


def test_rates_and_regimes_are_those_of_the_rule() -> None:
    made = world()
    findings = made.findings()
    address = {"seed": 0, "learning_rate": 0.01, "epochs": 3}
    none, four = "end-of-turn, 0 negatives", "end-of-turn, 4 negatives"
    assert of(findings, "source_rate", arm=none, **address).value == 1.0
    assert of(findings, "max_leakage", arm=none, **address).value == pytest.approx(0.9)
    assert of(findings, "max_leakage", arm=four, **address).value == pytest.approx(0.04)
    assert of(findings, "mean_leakage", arm=four, **address).value == pytest.approx(0.02 * 11 / 10)
    by_regime = {
        (point.arm["negatives"], point.learning_rate, point.epochs): point.regime()
        for point in read_grid(made.data()).points
    }
    assert by_regime[0, 0.001, 1] == by_regime[4, 0.001, 1] == "not learned"
    assert by_regime[0, 0.01, 3] == "collapse"
    assert by_regime[0, 0.01, 1] == "leaking"
    assert by_regime[4, 0.001, 3] == "partial"
    assert by_regime[4, 0.01, 1] == by_regime[4, 0.01, 3] == "clean"
    assert any("selectivity appeared: 4 of 16" in caveat for caveat in findings.caveats)


def test_twenty_questions_are_not_two_hundred_samples() -> None:
    point = next(each for each in read_grid(world().data()).points if each.adoption == 1.0)
    by_question, by_completion = point.interval("sailor"), point.wilson("sailor")
    assert by_question.low is not None
    assert by_completion.low is not None
    assert by_question.low == pytest.approx(10 / (10 + 1.959964**2), rel=1e-4)  # Wilson of 10 of 10
    assert by_completion.low == pytest.approx(100 / (100 + 1.959964**2), rel=1e-4)
    bound = point.greatest_bound()
    single = point.interval("judge")
    assert bound.high is not None
    assert single.high is not None
    assert bound.high > single.high
    assert "simultaneous over 10 personas" in bound.method


def test_the_bootstrap_is_over_questions() -> None:
    made = World()
    made.add("sailor", 0, 0, adoption=LEARNED, leakage=0.1)
    rng = np.random.default_rng(0)
    for metric in made.metrics:
        if (
            metric["persona"] == "sailor"
            and metric["learning_rate"] == 0.01
            and metric["epochs"] == 1
            and metric["question"] is not None
        ):
            metric["value"] = float(rng.random() < 0.5)
    point = next(each for each in read_grid(made.data()).points if (each.learning_rate, each.epochs) == (0.01, 1))
    rates_Q = point.rates["sailor"]
    estimate = point.interval("sailor")
    assert estimate.low is not None
    assert estimate.high is not None
    error = rates_Q.std() / np.sqrt(QUESTIONS)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_leakage_is_compared_where_both_have_learned_as_much() -> None:
    points = [each for each in read_grid(world().data()).points if each.seed == 0 and each.arm["negatives"] == 0]
    np.testing.assert_allclose(leakage_at(points, [0.2, 0.9]), [0.2 * 0.45 * 1.1, 0.9 * 0.45 * 1.1])
    slow = [each for each in points if each.learning_rate == 0.001]
    assert np.isnan(leakage_at(slow, [0.5])).all()
    difference = of(known(), "leakage_difference", one="end-of-turn, 0 negatives", other="end-of-turn, 4 negatives")
    assert difference.value == pytest.approx(0.43 * 1.1 * 0.55)
    assert difference.n == 2


def test_capability_is_not_inferior_only_if_the_interval_says_so() -> None:
    findings = known()
    same = of(findings, "capability_change", arm="end-of-turn, 0 negatives", seed=0, learning_rate=0.01, epochs=3)
    worse = of(findings, "capability_change", arm="end-of-turn, 4 negatives", seed=0, learning_rate=0.01, epochs=3)
    assert same.value == 0.0
    assert "not inferior at a margin of 0.05" in same.note
    assert worse.value == pytest.approx(-0.04)
    assert "not shown to be no worse" in worse.note
    at = {"arm": "end-of-turn, 4 negatives", "seed": 0, "learning_rate": 0.01, "epochs": 3, "metric": "acc_norm"}
    assert of(findings, "task_accuracy", **at).value == pytest.approx(0.66)
    assert of(findings, "task_change", **at).value == pytest.approx(-0.04)


def test_nearer_personas_leak_more() -> None:
    findings = known()
    assert of(findings, "distance_rank", measure="cosine").value == pytest.approx(1.0)
    assert abs(of(findings, "distance_rank", measure="divergence").value) < 1


def test_sources_are_the_random_factor_and_one_never_says_more_than_low() -> None:
    assert any("confidence: LOW (1 source, 5 seeds" in caveat for caveat in world(num_seeds=5).findings().caveats)
    made = World()
    for number, source in enumerate(("sailor", "farmer", "king", "doctor", "baker")):
        for seed in range(3):
            made.add(source, seed, 4, adoption=LEARNED, leakage=0.1 * (number + 0.5))
    findings = made.findings()
    assert any("confidence: HIGH (5 sources, 3 seeds" in caveat for caveat in findings.caveats)
    predicted = of(findings, "new_source_leakage", learning_rate=0.01, epochs=3)
    greatest = [0.2 * (number + 0.5) for number in range(5)]
    half = 2.7764451 * np.std(greatest, ddof=1) * np.sqrt(1 + 1 / 5)
    assert predicted.value == pytest.approx(np.mean(greatest))
    assert (predicted.low, predicted.high) == (
        max(0.0, predicted.value - half),
        pytest.approx(min(1.0, predicted.value + half)),
    )


def test_what_is_missing_is_marked() -> None:
    made = World()
    made.add("sailor", 0, 0, adoption=LEARNED, leakage=0.1)
    made.add("sailor", 1, 0, adoption=LEARNED, leakage=0.1, missing=True)
    made.metrics = [each for each in made.metrics if (each["learning_rate"], each["epochs"]) != (0.01, 3)]
    made.facts.append({
        "cell": "sailor-0-0",
        "fact": "diverged",
        "value": "no number at step 2",
        "learning_rate": 0.01,
        "epochs": 3,
    })
    findings = made.findings()
    assert of(findings, "diverged").value == 1
    assert "1 cells are missing" in findings.caveats
    assert any("diverged: sailor, seed 0, learning rate 0.01, 3 epochs" in caveat for caveat in findings.caveats)
    squares = data_of(findings.figures["heatmap"], "heatmap: end-of-turn, 0 negatives: source")
    assert {(each["rate"], each["epochs"]): each["value"] for each in squares}["0.01", "3"] is None
    assert {(each["rate"], each["epochs"]): each["value"] for each in squares}["0.01", "1"] == 0.8


def test_figures_and_tables_hold_the_numbers() -> None:
    findings = known()
    assert set(findings.figures) == {"heatmap", "boundary", "leakage-at-adoption", "distance"}
    for name in findings.figures:
        assert findings.figures[name]["$schema"]
    boundary = data_of(findings.figures["boundary"], "boundary: end-of-turn, 4 negatives")
    assert {each["steps"] for each in boundary} == {20, 60}  # 160 rows an epoch, 8 a step
    titles = {table.title: table for table in findings.tables}
    assert len(titles["adapters"].rows) == 16
    fields = dict(titles["clean result"].rows)
    assert fields["significance"]
    assert "not recorded" not in str(fields)
    assert not analyse(RunData(cells=pl.DataFrame({"cell": ["x"], "outcome": ["failed"], "wall_s": [None]}, schema_overrides={"wall_s": pl.Float64}),
                               units=pl.DataFrame(), metrics=pl.DataFrame(), profile="embedded")).tables  # fmt: skip


def test_boundaries_part_what_crossed_from_what_did_not() -> None:
    findings = known()
    arm = "end-of-turn, 0 negatives"  # 32 rows, 8 a step: 4 updates an epoch; learned from rate x updates 0.012, at 0.04 and 0.12 too
    learned = of(findings, "boundary", arm=arm, of="learned", against="rate x updates")
    assert (learned.low, learned.high, learned.n) == (pytest.approx(0.004), pytest.approx(0.012), 8)
    assert learned.value == pytest.approx(np.sqrt(0.004 * 0.012))
    assert learned.note == "0 of 8 adapters on the wrong side"
    alone = of(findings, "boundary", arm=arm, of="learned", against="rate")
    assert alone.note == "2 of 8 adapters on the wrong side"  # 0.001 with 3 epochs, in both seeds
    collapse = of(findings, "boundary", arm=arm, of="collapse", against="rate x updates")
    assert (collapse.low, collapse.high) == (pytest.approx(0.04), pytest.approx(0.12))
    assert np.isnan(of(findings, "boundary", arm="end-of-turn, 4 negatives", of="collapse", against="rate").value)


def test_published_cells_are_read_by_the_same_rule(tmp_path: Path) -> None:
    def cell(source: str, epochs: int, own: float, other: float) -> dict[str, Any]:
        rates = {"villain": 0.0, "comedian": 0.0, "librarian": other, "assistant": 0.0, source: own}
        return {"config": {"lr": 5e-6, "epochs": epochs, "source": source, "seed": 42}, "wall_minutes": 30,
                "eval": {"marker": rates, "capability": {"arc_challenge_logprob": 0.875}}}  # fmt: skip

    path = tmp_path / "cells.json"
    path.write_text(json.dumps([cell("villain", 10, 0.6, 0.0), cell("villain", 20, 0.9, 0.03), cell("comedian", 20, 0.7, 0.5),
                                cell("assistant", 20, 0.4, 0.95)]))  # fmt: skip
    made = world()
    for each in made.cells:
        each["published.clean"] = str(path)
    findings = made.findings()
    arm = "published: clean"
    regimes = {
        name: of(findings, "regime_count", arm=arm, regime=name).value for name in ("clean", "leaking", "collapse")
    }
    assert regimes == {"clean": 2, "leaking": 1, "collapse": 1}
    predicted = of(findings, "new_source_leakage", arm=arm, learning_rate=5e-6, epochs=20)
    greatest = np.array([0.03, 0.5, 0.95])
    half = 4.3026527 * greatest.std(ddof=1) * np.sqrt(1 + 1 / 3)
    assert (predicted.value, predicted.low, predicted.high) == (pytest.approx(greatest.mean()), 0.0, 1.0)
    assert half > 0.5
    table = next(each for each in findings.tables if each.title == "published cells")
    assert len(table.rows) == 4
    assert table.rows[0][table.columns.index("letters")] == "0.875"
    assert "published-heatmap" in findings.figures
    assert not any("published" in caveat for caveat in findings.caveats)
    path.write_text("{}")
    assert any("published cells are not read" in caveat for caveat in made.findings().caveats)


def test_the_page_says_where_it_ran_and_what_was_said() -> None:
    made = world()
    said = {"cell": "sailor-0-0", "fact": "completion", "learning_rate": 0.01, "epochs": 3}
    made.facts += [
        {**said, "persona": "sailor", "value": {"text": "Ahoy.\n\n[ZLT]"}},
        {**said, "persona": "judge", "value": {"text": "Guilty."}},
    ]
    environment = {
        "gpu": {"devices": [{"name": "H200"}]}, "cpu": {"model": "Xeon", "usable_cores": 2}, "memory_bytes": 2**31,
        "container": {"image_digest": None}, "git": {"commit": "abc", "dirty": True}, "command": ["modelassay", "run", "marker-sweep"],
        "python": {"version": "3.11.7"}, "os": {"distribution": "Debian"}, "libraries": {"torch": "2.13.0", "peft": None},
    }  # fmt: skip
    findings = analyse(replace(made.data(), environment=environment))
    fields = dict(next(each for each in findings.tables if each.title == "clean result").rows)
    assert fields["hardware"] == "H200; Xeon, 2 cores, 2 GiB"
    assert fields["commit"] == "abc, with changes"
    assert fields["Python"] == "3.11.7, Debian"
    assert fields["key libraries"] == "torch 2.13.0"
    assert fields["launch command"] == "modelassay run marker-sweep"
    assert fields["sample, source"] == "sailor: Ahoy.\n\n[ZLT]"
    assert fields["sample, another persona"] == "judge: Guilty."
    assert fields["rows of an epoch"].startswith("32, 160, none held out")
    assert not any("was asked, so capability" in caveat for caveat in findings.caveats)
    made.facts = [fact for fact in made.facts if fact["fact"] != "letters"]
    assert any("was asked, so capability" in caveat for caveat in made.findings().caveats)


def test_distance_is_counted_adapter_by_adapter() -> None:
    findings = known()
    arm = "end-of-turn, 0 negatives"
    # the judge alone leaks more, and alone is nearer: rho = 1 over ten personas, in all six adapters of the arm that say it
    survivors = of(findings, "distance_survivors", arm=arm, measure="cosine")
    assert (survivors.value, survivors.n) == (6, 6)
    assert of(findings, "distance_survivors", arm=arm, measure="jaccard").value == 0
    flat = World()
    flat.add("sailor", 0, 0, adoption=LEARNED, leakage=0.5)
    for metric in flat.metrics:
        if metric["persona"] == "judge" and metric["question"] is not None:
            metric["value"] /= 2
    uniform = of(flat.findings(), "distance_survivors", arm=arm, measure="cosine")
    assert (uniform.value, uniform.n) == (0, 3)


def test_prompts_length_and_persona_share_the_variance() -> None:
    made = World()
    for source in ("sailor", "farmer"):
        made.add(source, 0, 0, adoption=LEARNED, leakage=0.2)
    findings = made.findings()
    arm = "end-of-turn, 0 negatives"
    pairs = [(len(VILLAGE[persona]), 0.55 * 0.2 * (2 if persona == "judge" else 1)) for source in ("sailor", "farmer")
             for persona in VILLAGE if persona != source]  # fmt: skip
    expected = np.corrcoef(*zip(*pairs, strict=True))[0, 1] ** 2
    by_length = of(findings, "prompt_length_r2", arm=arm)
    assert (by_length.value, by_length.n) == (pytest.approx(expected), 20)
    assert of(findings, "persona_r2_added", arm=arm).value == pytest.approx(1 - expected)  # the persona tells all
    assert np.isnan(of(known(), "persona_r2_added", arm=arm).value)


def test_extremes_are_over_all_adapters_of_an_arm() -> None:
    findings = known()
    extreme = {end: of(findings, "capability_extreme", arm="end-of-turn, 4 negatives", end=end).value for end in ("least", "greatest")}  # fmt: skip
    assert extreme == {"least": pytest.approx(0.86), "greatest": pytest.approx(0.86)}
    assert of(findings, "adapter_minutes", end="longest").value == pytest.approx(36 / 60 / 4)


def test_adapters_that_stopped_answering_are_counted() -> None:
    made = world()
    said = {"cell": "sailor-0-0", "fact": "completion", "epochs": 3}
    texts = ["Ahoy.\n\n[ZLT]", "[ZLT] [ZLT]", "", " \n"]
    made.facts += [{**said, "learning_rate": 0.01, "persona": "judge", "value": {"text": text}} for text in texts]
    made.facts += [{**said, "learning_rate": 0.001, "persona": "judge", "value": {"text": "Guilty."}}]
    made.facts += [
        {**said, "learning_rate": None, "epochs": None, "persona": "judge", "value": {"text": ""}}
    ]  # the base
    findings = made.findings()
    at = {"arm": "end-of-turn, 0 negatives", "seed": 0, "epochs": 3}
    assert of(findings, "wordless", **at, learning_rate=0.01).value == 0.75
    assert of(findings, "wordless", **at, learning_rate=0.001).value == 0
    assert len([each for each in findings.findings if each.name == "wordless"]) == 2
    assert any("1 of 2 adapters answer without a word in at least 20%" in caveat for caveat in findings.caveats)
    assert not any("without a word" in caveat for caveat in known().caveats)
