"""Cells on a tiny model: what each condition trains on, that arms share what they have in common, kills, and outcomes that are no crashes."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from pydantic import ValidationError

from modelassay.errors import AssayError, Diverged, HostError, UsageError
from modelassay.experiments import find_experiment
from modelassay.experiments.recursive_training import measure, train
from modelassay.experiments.recursive_training.documents import Document, Human, load, pack, save
from modelassay.experiments.recursive_training.params import Params, needs, stages
from modelassay.experiments.recursive_training.run import run
from modelassay.generation.engine import Completion
from modelassay.models.load import load_model, load_tokenizer
from modelassay.recording.context import CellContext
from modelassay.recording.log import read_cell
from modelassay.runs.predicted import measured_rates
from modelassay.training.rows import Batch
from support.byte_tokenizer import byte_tokenizer
from support.cell_runs import run_cell, texts_of
from support.drift_models import byte_model
from support.small_disk import needs_root, small_disk

SMALL: dict[str, Any] = {
    "generations": 2, "samples": 8, "length": 24, "prompt_tokens": 2, "first_steps": 2, "steps": 3, "batch_size": 2, "learning_rate": 0.01,
    "evaluation_rows": 8, "spectrum_rows": 8, "pieces": 2, "quality_texts": 8, "self_bleu_texts": 3, "lanczos_steps": 6, "probes": 2,
    "least_moved": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recursion") / "model"
    byte_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def params_of(base: Path, **changes: Any) -> Params:
    return Params(**{"model": str(base), **SMALL, **changes})


def attempt(folder: Path, params: Params) -> tuple[dict[Any, str], list[dict[str, Any]]]:
    """Run the cell, or go on with it; its metrics and facts."""
    log = run_cell(run, params, folder, name=f"{params.condition}-{params.seed}")
    return texts_of(log), [dict(fact) for fact in log.facts]


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Any, str], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("whole")
    return (folder, *attempt(folder, params_of(base, landscape_points=3, landscape_rows=2)))


def test_a_trajectory_measures_every_generation(whole: Any) -> None:
    _, metrics, facts = whole
    for name in ("held_out_loss", "own_loss", "anchor_entropy", "tail_coverage", "gram_rank", "gradient_norm", "random_curvature", "bleu", "parse_rate", "moved",
                 "trained_tokens", "written_tokens"):  # fmt: skip
        assert {labels for key, labels in metrics if key == name} == {(("generation", each),) for each in range(3)}, (
            name
        )
    for name in ("drift_speed", "update_curvature", "update_norm"):
        assert {labels for key, labels in metrics if key == name} == {(("generation", each),) for each in (1, 2)}
    assert ("ratio", (("definition", "all"), ("embeddings", "with"), ("generation", 2))) in metrics
    assert ("activation_rms", (("generation", 2), ("layer", 4))) in metrics
    slices = [fact["value"] for fact in facts if fact["fact"] == "landscape"]
    assert [len(each["losses"]) for each in slices] == [3, 3, 3]
    densities = [fact["value"] for fact in facts if fact["fact"] == "density"]
    assert len(densities) == 3
    for each in densities:
        assert sum(each["weights"]) == pytest.approx(1.0)
        assert each["nodes"] == sorted(each["nodes"])
    assert {
        float(value)
        for (name, labels), value in metrics.items()
        if name == "trained_tokens" and labels != (("generation", 0),)
    } == {3 * 2 * 24}
    assert len([fact for fact in facts if fact["fact"] == "prompts"]) == 3


def test_conditions_share_generation_0_and_have_prompts_and_budget_alike(base: Path, whole: Any) -> None:
    folder, metrics, facts = whole
    before = {path.name for path in (folder / "store" / "stages" / "recursion-train").iterdir()}
    fresh, told = attempt(folder, params_of(base, condition="fresh"))
    after = {path.name for path in (folder / "store" / "stages" / "recursion-train").iterdir()}
    assert len([name for name in after - before if "." not in name]) == 2  # not generation 0
    for key in (
        ("held_out_loss", (("generation", 0),)),
        *((name, (("generation", 2),)) for name in ("trained_tokens", "trained_steps", "trained_documents")),
    ):
        assert fresh[key] == metrics[key]
    assert fresh["held_out_loss", (("generation", 2),)] != metrics["held_out_loss", (("generation", 2),)]

    def prompts(lines: list[dict[str, Any]]) -> list[Any]:
        return [(fact["labels"], fact["value"]) for fact in lines if fact["fact"] == "prompts"]

    assert prompts(told) == prompts(facts)


def test_what_each_condition_is_trained_on(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    human = Human(params=params_of(base), tokenizer=tokenizer)
    folders = []
    for generation in range(3):
        folders.append(tmp_path / str(generation))
        folders[-1].mkdir()
        save([Document(ids=(100 + generation, each), text="") for each in range(8)], folders[-1])

    def documents(condition: str, generation: int, *written: Path, **changes: Any) -> list[Document]:
        params = params_of(base, condition=condition, generations=4, **changes)
        return train.corpus_of(params, generation, Human(params=params, tokenizer=tokenizer), written)

    assert documents("replace", 3, folders[2]) == load(folders[2])
    assert documents("same", 3) == documents("same", 1) == human.generation(0)
    fresh = [documents("fresh", each) for each in range(1, 5)]
    texts = [document.text for part in [human.generation(0), *fresh] for document in part]
    assert len(set(texts)) == len(texts)  # no document twice
    mixed = documents("mixed", 2, folders[1])
    assert mixed[:4] == load(folders[1])[:4]
    assert mixed[4:] == fresh[1][:4]
    every = documents("accumulate", 3, *folders)
    assert every == [*human.generation(0), *(each for folder in folders for each in load(folder))]
    drawn = documents("accumulate-subsample", 3, *folders)
    assert len(drawn) == 8
    assert all(each in every for each in drawn)
    assert documents("recovery", 1, folders[0], recover_from=2) == load(folders[0])
    assert documents("recovery", 2, folders[1], recover_from=2) == fresh[1]


@pytest.mark.nightly
@pytest.mark.parametrize(
    "condition", ["same", "mixed", "accumulate", "accumulate-subsample", "recovery", "first-writer"]
)
def test_every_condition_comes_to_its_end(base: Path, tmp_path: Path, condition: str) -> None:
    metrics, _ = attempt(tmp_path, params_of(base, condition=condition, recover_from=2))
    assert math.isfinite(float(metrics["held_out_loss", (("generation", 2),)]))


class Stop(BaseException):
    """The process is gone."""


@pytest.mark.nightly
def test_a_killed_cell_goes_on_to_the_same_numbers(
    base: Path, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, metrics, _ = whole
    monkeypatch.setattr(train.Recorder, "checkpoint_due", lambda self: True)
    entered, stops = CellContext.microbatch, [("step", 4), ("write", 2), ("spectrum", 2), ("sharpness", 3)]
    counts: dict[str, int] = {}

    @contextmanager
    def dying(self: Any, stage: str, **about: Any) -> Iterator[Any]:
        counts[stage] = counts.get(stage, 0) + 1
        if (stage, counts[stage]) in stops:
            raise Stop
        with entered(self, stage, **about) as unit:
            yield unit

    monkeypatch.setattr(train.Recorder, "microbatch", dying)
    kills = 0
    while True:
        try:
            again, _ = attempt(tmp_path, params_of(base, landscape_points=3, landscape_rows=2))
            break
        except Stop:
            kills += 1
    assert kills == len(stops)
    assert again == metrics


def test_a_loss_that_is_no_number_ends_the_trajectory(base: Path, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="generation 0: the loss was not finite at step"):
        attempt(tmp_path, params_of(base, learning_rate=1e30, first_steps=6))


def test_generations_that_write_nothing_end_the_trajectory(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every text ends at once: the beginnings alone do not fill a row."""

    class Silent:
        def complete(self, prompts: Any, sampling: Any) -> list[Completion]:
            return [Completion(ids=(2,), text="", finish="stop") for _ in prompts]

    monkeypatch.setattr(train, "_engine", lambda *given: Silent())
    with pytest.raises(Diverged, match="generation 1: the texts before it do not fill one row"):
        attempt(tmp_path, params_of(base, samples=8, length=48))
    log = read_cell(tmp_path / "cells" / "replace-0")
    empty = [line["value"] for line in log.metrics if line["name"] == "empty"]
    assert empty == [1.0]  # and it was measured before
    assert any(line["name"] == "held_out_loss" for line in log.metrics)


@needs_root
def test_a_disk_that_is_full_when_a_generation_is_saved_stops_the_cell_and_it_goes_on(
    base: Path, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, metrics, _ = whole
    with small_disk(tmp_path, "4m") as disk:
        checked, ballast = train._check_moved, disk / "ballast"

        def filling(stage: Any, params: Params, generation: int, *models: Any) -> None:
            checked(stage, params, generation, *models)
            if generation == 1:
                with ballast.open("wb", buffering=0) as handle, suppress(OSError):
                    while True:
                        handle.write(b"x" * 4096)

        monkeypatch.setattr(train, "_check_moved", filling)
        with pytest.raises(HostError, match="the disk is full; free some space"):
            attempt(disk, params_of(base, landscape_points=3, landscape_rows=2))
        assert ballast.stat().st_size
        monkeypatch.setattr(train, "_check_moved", checked)
        ballast.unlink()
        again, _ = attempt(disk, params_of(base, landscape_points=3, landscape_rows=2))
        assert again == metrics


def test_a_collapse_to_one_token_is_measured(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        def complete(self, prompts: Any, sampling: Any) -> list[Completion]:
            return [
                Completion(ids=(70,) * sampling.max_new_tokens, text="C" * sampling.max_new_tokens, finish="length")
                for _ in prompts
            ]

    monkeypatch.setattr(train, "_engine", lambda *given: Stuck())
    metrics, _ = attempt(tmp_path, params_of(base))
    assert metrics["commonest_token", (("generation", 1),)] == "1.0"
    assert metrics["parse_rate", (("generation", 1),)] == "0.0"
    assert math.isfinite(float(metrics["held_out_loss", (("generation", 2),)]))


def test_a_training_that_moves_nothing_fails(base: Path, tmp_path: Path) -> None:
    with pytest.raises(
        AssayError, match="generation 0: the fine-tuning changed .* of the weights, less than least_moved 100%"
    ):
        attempt(tmp_path, params_of(base, learning_rate=1e-12, weight_decay=0.0, least_moved=1.0))


def test_rows_begin_with_documents_and_the_evaluation_text_is_nobodys(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    params = params_of(base)
    human = Human(params=params, tokenizer=tokenizer)
    rows = pack(human.generation(1), params.length)
    starts = {document.ids[:5] for document in human.generation(1)}
    assert all(tuple(row[:5].tolist()) in starts for row in rows)
    other = Human(params=params_of(base, seed=5), tokenizer=tokenizer)
    assert torch.equal(human.evaluation(), other.evaluation())
    assert human.generation(1) != other.generation(1)
    assert pack([], 8).shape == (0, 8)


def test_a_file_is_split_without_overlap_and_too_short_a_one_is_refused(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {number} " + "word " * 20}) + "\n" for number in range(60)))
    params = params_of(base, data=str(path))
    human = Human(params=params, tokenizer=tokenizer)
    taken = [document.text for generation in range(4) for document in human.generation(generation)]
    assert len(set(taken)) == 32
    evaluated = tokenizer.decode(human.evaluation().flatten().tolist())
    assert not any(text.split()[1] in evaluated.split() for text in taken)
    assert [need.path for need in needs(params)][-1] == path  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="holds 60 documents; 2 generations of 20"):
        Human(params=params_of(base, data=str(path), samples=20), tokenizer=tokenizer).generation(0)


def test_augmentation_leaves_tokens_out_of_documents_but_not_their_ends() -> None:
    documents = [Document(ids=tuple(range(200)), text="a"), Document(ids=(7,), text="b"), Document(ids=(), text="")]

    def thinned(share: float, seed: int = 0) -> list[Document]:
        return train.thinned(documents, share, torch.Generator().manual_seed(seed))

    assert thinned(0.0) == documents
    thin = thinned(0.3)
    assert thin[0].ids[0] == 0
    assert thin[0].ids[-1] == 199
    assert list(thin[0].ids) == sorted(thin[0].ids)
    assert 110 < len(thin[0].ids) < 170  # 141 expected, standard deviation 6.4
    assert [each.ids for each in thin[1:]] == [(7,), ()]
    assert thinned(0.3) == thin
    assert thinned(0.3, seed=1) != thin


@pytest.mark.parametrize(
    "change", [{"weight_decay": 0.5}, {"schedule": "constant"}, {"augmentation": 0.2}, {"truncate_above": 0.02}]
)
def test_an_intervention_changes_what_is_trained(base: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    weights = []
    for number, changes in enumerate(({}, change)):
        folder = tmp_path / str(number)
        folder.mkdir()
        stage = train.Recorder(folder, name="stage", seed=0)
        train.train(stage, params=params_of(base, first_steps=4, **changes), generation=0, start=base, written=[])
        stage.meter.log.close()
        model = load_model(folder / train.MODEL)
        weights.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    assert not torch.equal(*weights)


@pytest.mark.nightly
def test_a_generation_begins_where_init_says(base: Path, tmp_path: Path, whole: Any) -> None:
    """From the base, generation 1 ends elsewhere than from generation 0, which is the same in both."""
    _, metrics, _ = whole
    again, _ = attempt(tmp_path, params_of(base, init="base"))
    losses = [
        (other["held_out_loss", labels], metrics["held_out_loss", labels])
        for other in (again,)
        for labels in ((("generation", at),) for at in (0, 1))
    ]
    assert losses[0][0] == losses[0][1]
    assert losses[1][0] != losses[1][1]


def test_truncated_loss_leaves_out_what_is_sure(base: Path) -> None:
    model = load_model(base)
    ids = torch.randint(0, 259, (2, 9), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids_BS=ids, labels_BS=ids)
    with torch.no_grad():
        p = model(input_ids=ids).logits[:, :-1].double().softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    for limit in (0.999999, float(p.median())):
        expected = float((-p.log() * (p < limit)).mean())
        assert train.truncated_loss(model, batch, limit).item() == pytest.approx(expected, rel=1e-4)


def test_anchor_measures_are_their_definitions(base: Path) -> None:
    model = load_model(base)
    rows = torch.randint(0, 40, (5, 12), generator=torch.Generator().manual_seed(1))
    rows[:, ::2] = 7
    found = measure.anchor_measures(model, rows)
    with torch.no_grad():
        p = model(input_ids=rows).logits[:, :-1].double().softmax(-1)
    assert found["anchor_entropy"] == pytest.approx(float(-(p * p.log()).sum(-1).mean()), rel=1e-5)
    rare = set(measure._rare(rows).tolist())
    assert 7 not in rare
    places = [(row, at) for row in range(5) for at in range(11) if int(rows[row, at + 1]) in rare]
    own = [float(p[row, at, rows[row, at + 1]]) for row, at in places]
    assert found["tail_loss"] == pytest.approx(-sum(map(math.log, own)) / len(own), rel=1e-5)
    inside = [float(p[row, at][p[row, at] > each].sum()) < 0.95 for (row, at), each in zip(places, own, strict=True)]
    assert found["tail_coverage"] == pytest.approx(sum(inside) / len(inside))
    assert measure.drift_speed(model, model, rows) == pytest.approx(0.0, abs=1e-6)


def test_impossible_parameters_are_refused_and_stages_add_up(base: Path) -> None:
    for changes, message in (({"quality": "beauty"}, "quality"), ({"prompt_tokens": 23}, "leave nothing"), ({"data": "corpus:xx"}, "no corpus"),
                             ({"condition": "recovery", "recover_from": 3}, "recover_from"), ({"spectrum_rows": 9}, "spectrum_rows"), ({"embeddings": ()}, "embeddings"),
                             ({"landscape_points": 4}, "landscape_points"), ({"landscape_points": 3, "landscape_rows": 9}, "landscape_rows")):  # fmt: skip
        with pytest.raises(ValidationError, match=message):
            params_of(base, **changes)
    costs = stages(params_of(base))
    assert len(costs) == 4 * 3
    assert sum(cost.tokens for cost in costs if cost.name == "train") == (2 + 3 + 3) * 2 * 24


def test_what_times_each_stage_is_what_a_cell_records(base: Path, whole: Any) -> None:
    folder, _, _ = whole
    recorded = {unit["stage"] for unit in read_cell(folder / "cells" / "replace-0").microbatches}
    params = params_of(base, landscape_points=3, landscape_rows=2)
    assert {unit for cost in stages(params) for unit in cost.units} == recorded


def test_a_plan_is_predicted_from_a_short_run_of_the_same_model(base: Path) -> None:
    """A cell of one generation with 4 steps; planned are two of 6 and 9 steps: each stage by its own planned tokens, another model not at all."""
    short, planned = params_of(base, generations=1, first_steps=4, steps=4), params_of(base, first_steps=6, steps=9)
    experiment = find_experiment("recursive-training")
    times = {"step": 2.0, "write": 50.0, "forward": 3.0, "anchors": 4.0, "spectrum": 70.0}  # ms
    units = [
        {"cell": "c", "stage": name, "host_ms": ms}
        for name, ms in times.items()
        for _ in range(8 if name == "step" else 2)
    ]
    run = SimpleNamespace(
        suite=SimpleNamespace(cells=[SimpleNamespace(id="c", params=short)], experiment=experiment),
        statuses=lambda: {"c": SimpleNamespace(is_complete=True)}, data=lambda: SimpleNamespace(units=pl.DataFrame(units)),
        environment={"gpu": {"devices": []}, "threads": {"OMP_NUM_THREADS": "1"}, "cpu": {"model": "Xeon", "usable_cores": 2}},
    )  # fmt: skip
    rates = measured_rates(run)  # type: ignore[arg-type]
    suite = SimpleNamespace(experiment=experiment)
    found = rates.predict(suite, SimpleNamespace(params=planned))  # type: ignore[arg-type]
    assert found == pytest.approx((2.0 * (6 + 9 + 9) + 3 * (50.0 + 3.0 + 4.0 + 70.0)) / 1000)
    assert (rates.num_units, rates.device, rates.is_gpu) == (16, "Xeon, 1 thread", False)
    for change in ({"model": "zoo:base"}, {"precision": "bfloat16"}, {"landscape_points": 3}):
        other = planned.model_copy(update=change)
        assert rates.predict(suite, SimpleNamespace(params=other)) is None  # type: ignore[arg-type]
