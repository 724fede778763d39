"""The spectral callback in a Trainer: what it records, that it changes nothing, that it goes on after a resume."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from modelassay.curvature.callback import SpectralCallback, read_spectra
from modelassay.curvature.loss import microbatches
from modelassay.curvature.over_text import HessianOverText, spectrum_over_text
from modelassay.errors import UsageError
from support.drift_models import byte_model
from support.training_cases import digest

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and accelerate about themselves
TEXT = torch.randint(3, 259, (6, 10), generator=torch.Generator().manual_seed(3))
CHEAP: dict[str, Any] = {"steps": 6, "probes": 2, "pieces": 2}


def trainer(folder: Path, *callbacks: Any, **changes: Any) -> Trainer:
    blocks = torch.randint(3, 259, (24, 12), generator=torch.Generator().manual_seed(0))
    settings = {"per_device_train_batch_size": 2, "learning_rate": 1e-3, "max_steps": 4, "use_cpu": True, "report_to": "none",
                "save_strategy": "no", "disable_tqdm": True, "seed": 1}  # fmt: skip
    args = TrainingArguments(output_dir=str(folder / "out"), **{**settings, **changes})
    rows = [{"input_ids": block, "labels": block} for block in blocks]
    return Trainer(model=byte_model(), args=args, train_dataset=rows, callbacks=list(callbacks))


def test_it_records_what_the_model_is_and_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare = trainer(tmp_path)
    bare.train()
    path = tmp_path / "spectrum.jsonl"
    watched = trainer(tmp_path, SpectralCallback(path, TEXT, every=2, warn_below=1e6, **CHEAP))
    with caplog.at_level(logging.WARNING, logger="modelassay.spectrum"):
        watched.train()
    assert digest(watched.model) == digest(bare.model)  # dropout draws the same numbers
    lines = read_spectra(path)
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert lines[0]["fallen"] == 1.0
    assert len([record for record in caplog.records if record.name == "modelassay.spectrum"]) == 3
    operator = HessianOverText(watched.model.eval(), microbatches(TEXT, size=3))
    own = spectrum_over_text(operator, steps=6, probes=2, seed=0)
    assert lines[-1]["ratio"]["value"] == pytest.approx(own.ratio["all"].value, rel=1e-5)
    assert lines[-1]["products"] == 9


def test_a_resumed_record_goes_on_where_the_training_does(tmp_path: Path) -> None:
    path = tmp_path / "spectrum.jsonl"
    path.write_text(
        "".join(json.dumps({"step": step, "ratio": {"value": 7.0}}) + "\n" for step in (0, 2, 4)) + '{"step": 6, "ra'
    )
    callback = SpectralCallback(path, TEXT, every=2, **CHEAP)

    class State:
        is_world_process_zero, global_step = True, 3

    callback.on_train_begin(None, State(), None, model=None)
    assert [line["step"] for line in read_spectra(path)] == [0, 2]
    assert callback._first == 7.0


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        SpectralCallback(tmp_path / "a", TEXT, every=0)
    with pytest.raises(UsageError, match="pieces"):
        SpectralCallback(tmp_path / "a", TEXT, every=1, pieces=7)
