"""Cells of the experiment on a tiny model: controls, interruptions in every precision, divergence, and texts."""

import math
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from modelassay.data import books
from modelassay.errors import Diverged, UsageError
from modelassay.experiments.sft_drift import text as texts
from modelassay.experiments.sft_drift import train as training
from modelassay.experiments.sft_drift.params import PRECISIONS, Params, needs
from modelassay.experiments.sft_drift.run import run
from modelassay.experiments.sft_drift.text import check_text, rows_for
from modelassay.recording.log import read_cell
from modelassay.recording.status import read_status
from support.byte_tokenizer import byte_tokenizer
from support.cell_runs import run_cell, texts_of
from support.drift_models import byte_model
from support.toy_suite import start

SMALL: dict[str, Any] = {
    "text": "own", "learning_rate": 0.003, "steps": 8, "batch_size": 2, "length": 16, "every": 2, "weights_every": 4, "loss_every": 4,
    "held_out_rows": 2, "num_prompts": 2, "prompt_length": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drift")
    byte_model().save_pretrained(root / "model")
    byte_model(seed=1).save_pretrained(root / "stranger")
    for name in ("model", "stranger"):
        byte_tokenizer().save_pretrained(root / name)
    words = ("the quick brown fox jumps over a lazy dog", "いろはにほへとちりぬるを")
    for language, line in zip(("en", "ja"), words, strict=True):
        (root / f"{language}.txt").write_text("\n\n".join(f"{number} {line}" for number in range(60)))
    return root


def params_of(scene: Path, **changes: Any) -> Params:
    data = {language: str(scene / f"{language}.txt") for language in ("en", "ja")}
    return Params(**{"model": str(scene / "model"), "data": data, **SMALL, **changes})


def attempt(folder: Path, params: Params) -> dict[tuple[str, tuple[tuple[str, Any], ...]], str]:
    """Run the cell, or go on with it; what it recorded, as text, where NaN is equal to itself."""
    return texts_of(run_cell(run, params, folder))


def recorded(folder: Path) -> dict[tuple[str, tuple[tuple[str, Any], ...]], str]:
    return texts_of(read_cell(folder / "cells" / "c"))


def values(folder: Path, name: str) -> list[float]:
    return [line["value"] for line in read_cell(folder / "cells" / "c").metrics if line["name"] == name]


def test_a_rate_of_zero_is_the_reference_to_the_bit(scene: Path, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16", "float32-autocast"):
        folder = tmp_path / precision
        attempt(folder, params_of(scene, learning_rate=0.0, precision=precision, steps=4))
        assert set(values(folder, "overlap")) == set(values(folder, "overlap_exact")) == {1.0}
        assert set(values(folder, "kl_forward")) == {0.0}
        assert set(values(folder, "moved")) == {0.0}
        assert values(folder, "mobility") == [0.0]


def test_trained_weights_move_as_predicted(scene: Path, tmp_path: Path) -> None:
    attempt(tmp_path, params_of(scene, precision="bfloat16", learning_rate=1e-4, steps=4))
    (predicted,), moved = values(tmp_path, "mobility"), values(tmp_path, "moved")
    assert moved[0] == 0.0
    assert 0 < moved[-1] <= 1.1 * predicted < 0.5
    assert values(tmp_path, "moved_norms") == [0.0] * len(moved)


DAILY = ("float32", "bfloat16-stochastic", "float16-autocast")
"""Precisions each of which keeps a state of its own between steps: none, a generator's, a scale's."""


class Stop(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("implementation", ["fused", pytest.param("foreach", marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    "precision", [pytest.param(name, marks=() if name in DAILY else pytest.mark.nightly) for name in PRECISIONS]
)
def test_a_killed_training_goes_on_to_the_same_curve(
    precision: str, implementation: str, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = 1e-5 if precision == "float16-autocast" else 0.003
    params = params_of(scene, precision=precision, implementation=implementation, learning_rate=rate)
    monkeypatch.setattr(training.StageCheckpoints, "__init__", _every_step)

    def finished(folder: Path) -> dict[Any, str]:
        try:
            return attempt(folder, params)
        except Diverged:
            return recorded(folder)

    whole = finished(tmp_path / "whole")
    look = training._Training._look
    for at in (2, 6):

        def stopped(self: Any, step: int, moment: Any, at: int = at) -> Any:
            if step == at:
                raise Stop
            return look(self, step, moment)

        monkeypatch.setattr(training._Training, "_look", stopped)
        with suppress(Stop):  # float16 may have diverged before
            finished(tmp_path / "cut")
        checkpoints = list((tmp_path / "cut" / "store").glob("stages/drift/*.part/checkpoint/*"))
        assert len(checkpoints) <= 1
    monkeypatch.setattr(training._Training, "_look", look)
    assert finished(tmp_path / "cut") == whole
    assert not list((tmp_path / "cut" / "store").glob("stages/drift/*/checkpoint"))


def _every_step(self: Any, recorder: Any) -> None:
    self._recorder = recorder
    self.due = lambda: True


def test_not_a_number_is_an_outcome_with_its_step(scene: Path, tmp_path: Path) -> None:
    params = params_of(scene, precision="float16-autocast", implementation="foreach", learning_rate=0.01)
    with pytest.raises(Diverged, match="not finite at step 2"):
        attempt(tmp_path, params)
    assert values(tmp_path, "diverged_at") == [2.0]
    overlap = values(tmp_path, "overlap")
    assert overlap[:2] == [1.0, 1.0]
    assert all(math.isnan(value) for value in overlap[2:])
    with pytest.raises(Diverged, match="at step 2"):
        attempt(tmp_path / "again", params)


def test_a_reference_in_another_type_has_a_gap_of_its_own(scene: Path, tmp_path: Path) -> None:
    recorded_ = attempt(
        tmp_path,
        params_of(scene, precision="float16-autocast", reference_precision="float16", learning_rate=0.0, steps=2),
    )
    gap = float(recorded_["precision_gap", ()])
    start = [line["value"] for line in read_cell(tmp_path / "cells" / "c").metrics if line["name"] == "overlap_exact"][
        :2
    ]
    assert 1 - gap == pytest.approx(sum(start) / 2)


def test_other_starts_frozen_embeddings_adapters_and_resized_heads(scene: Path, tmp_path: Path) -> None:
    attempt(tmp_path / "stranger", params_of(scene, start=str(scene / "stranger"), steps=2))
    assert max(values(tmp_path / "stranger", "overlap")) < 1
    attempt(tmp_path / "frozen", params_of(scene, tune="frozen-embedding", steps=2))
    (num,) = values(tmp_path / "frozen", "num_weights")
    model = byte_model()
    assert num == sum(p.numel() for p in model.parameters()) - model.model.embed_tokens.weight.numel()
    attempt(tmp_path / "lora", params_of(scene, tune="lora", rank=2, steps=4, learning_rate=0.02))
    distances = values(tmp_path / "lora", "distance")
    assert distances[0] == 0.0 < max(distances)
    attempt(tmp_path / "resized", params_of(scene, resized_head=True, learning_rate=0.0, steps=2))
    assert set(values(tmp_path / "resized", "overlap")) == {1.0}
    assert max(values(tmp_path / "resized", "overlap_exact")) < 1


def test_a_flat_curve_ends_a_training(scene: Path, tmp_path: Path) -> None:
    attempt(tmp_path, params_of(scene, learning_rate=0.0, steps=24, every=1, flat_slope=0.01, flat_after=16, epochs=2))
    steps = [line["labels"]["step"] for line in read_cell(tmp_path / "cells" / "c").metrics if line["name"] == "loss"]
    assert max(steps) == 16  # the first moment at which there are so many measurements
    (ended,) = [fact["value"] for fact in read_cell(tmp_path / "cells" / "c").facts if fact["fact"] == "ended"]
    assert ended == "flat"


def test_shuffled_tokens_are_the_same_tokens(scene: Path) -> None:
    plain, mixed = (rows_for(params_of(scene, shuffled=shuffled), byte_tokenizer()) for shuffled in (False, True))
    assert not torch.equal(plain.trained_BT, mixed.trained_BT)
    assert torch.equal(plain.trained_BT.view(-1).sort().values, mixed.trained_BT.reshape(-1).sort().values)
    assert torch.equal(plain.held_out_BT, mixed.held_out_BT)
    assert plain.digest == mixed.digest
    assert plain.trained_BT.shape == (16, 16)


def test_a_cell_whose_text_is_not_here_fails_with_what_to_do(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    absent = params_of(scene, data={}, text="debian-reference")
    with pytest.raises(UsageError, match="is not there: ci/real-text fetches it from Debian"):
        run(absent, None)  # type: ignore[arg-type]  # before anything is recorded
    path = books.book_path("debian-reference", "en")
    path.parent.mkdir(parents=True)
    path.write_text("another text")
    with pytest.raises(UsageError, match="not the one that is pinned; delete it and run ci/real-text"):
        check_text(absent)
    with pytest.raises(UsageError, match="no such text; there are debian-reference"):
        check_text(params_of(scene, data={}, text="novel"))


def test_wikipedia_is_streamed_a_row_an_article(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    articles = ["short", *(f"long enough for a row, article {number}" for number in range(40))]
    monkeypatch.setattr(texts, "_articles", lambda language: iter(articles))
    rows = rows_for(params_of(scene, data={}, text="wikipedia"), byte_tokenizer())
    assert byte_tokenizer().decode(rows.trained_BT[0]) == "long enough for "
    monkeypatch.setattr(texts, "_articles", lambda language: iter(articles[:5]))
    with pytest.raises(UsageError, match="wikipedia en: 4 of 18 rows"):
        rows_for(params_of(scene, data={}, text="wikipedia"), byte_tokenizer())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": "x"}, "arm 'x' is none of arms: main"),
        ({"arms": {"a": {"learning": 1}}}, "arms.a: learning"),
        ({"arms": {"a": {"model": "hf:a/b"}}}, "names hf:a/b; an arm may change to models of the zoo alone"),
        ({"weights_every": 3}, "must be a multiple of every"),
        ({"warmup_steps": 9}, "must be at most steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, scene: Path) -> None:
    with pytest.raises(ValidationError, match=message):
        params_of(scene, **changes)


def test_an_arm_changes_its_settings_alone(scene: Path) -> None:
    params = params_of(scene, arm="b", arms={"a": {"steps": 2}, "b": {"precision": "bfloat16", "text": "novel"}})
    assert (params.setting.precision, params.setting.steps, params.setting.text) == ("bfloat16", 8, "novel")
    assert params.setting.training().weights == "bfloat16"
    own = params_of(scene, data={"en": "/a", "en/novel": "/b"}, arm="b", arms={"b": {"text": "novel"}})
    assert own.file == "/b"
    assert {str(need.path) for need in needs(own)} == {str(scene / "model"), "/b"}  # type: ignore[union-attr]


@pytest.mark.nightly  # 40 s
def test_out_of_memory_is_a_failure_that_is_tried_again_while_other_cells_go_on(scene: Path, tmp_path: Path) -> None:
    """One arm's logits alone are 12 GB where 8 GB may be addressed; with more memory the same run ends."""
    own = [f"-odata.{language}={scene / f'{language}.txt'}" for language in ("en", "ja")]
    settings = [f"-o{name}={value}" for name, value in SMALL.items() if name not in {"text", "learning_rate"}]
    arms = [
        "-oarms={huge: {batch_size: 400000, epochs: 400000}}",
        "-omatrix.arm=[main, huge]",
        "-omatrix.seed=[0]",
        "-olearning_rate=0.003",
    ]
    run = tmp_path / "run"

    def attempt_with(limit: int | None, *words: str | Path) -> tuple[int, str]:
        def limited() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        process = start("run", *words, "--jobs", "1", preexec_fn=limited)
        _, err = process.communicate(timeout=300)
        return process.returncode, err

    command = [
        "sft-drift",
        "--profile",
        "files",
        f"-omodel={scene / 'model'}",
        "-omatrix.language=[en]",
        *own,
        *settings,
        *arms,
    ]
    code, err = attempt_with(8 << 30, *command, "--into", run)
    assert code == 3, err
    assert "allocate" in err
    outcomes = {read_status(cell).outcome for cell in (run / "cells").iterdir()}
    assert outcomes == {"done", "failed"}
    code, err = attempt_with(8 << 30, run)
    assert code == 3, err
    attempts = {
        read_status(cell).outcome: len(list(cell.glob("attempt-*.jsonl"))) for cell in (run / "cells").iterdir()
    }
    assert attempts == {"done": 1, "failed": 2}
