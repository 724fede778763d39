"""The experiment on small checkpoints: its numbers against a dense spectrum, any model and text, kills, and mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modelassay.errors import UsageError
from modelassay.experiments.spectral.analyse import analyse
from modelassay.experiments.spectral.measure import exact_numbers
from modelassay.experiments.spectral.text import rows_of
from modelassay.runner import open_run
from tiny_models import make_model, save
from toy_suite import environ, metrics_of, modelassay, only_run

WORDS = [f"w{number}" for number in range(30)]
SMALL = [
    "-o",
    "tokens=96",
    "-o",
    "length=8",
    "-o",
    "microbatch=5",
    "-o",
    "steps=52",
    "-o",
    "probes=3",
    "-o",
    "precision=fp64",
]


def tokenizer() -> PreTrainedTokenizerFast:
    plain = Tokenizer(
        models.WordLevel({"end": 0, **{word: number for number, word in enumerate(WORDS, start=1)}}, unk_token="end")
    )
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="end")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2 with its tokenizer under model, one text as text.txt and as text.jsonl."""
    root = tmp_path_factory.mktemp("scene")
    model = make_model("qwen2", num_hidden_layers=1, tie_word_embeddings=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.3)
    save(model, root / "model")
    tokenizer().save_pretrained(root / "model")
    drawn = np.random.default_rng(0).choice(WORDS, (20, 11))
    documents = [" ".join(words) for words in drawn]
    (root / "text.txt").write_text("\n\n".join(documents))
    (root / "text.jsonl").write_text("\n".join(json.dumps({"text": document}) for document in documents))
    return root


def one_model(scene: Path, name: str, *options: str, data: str = "text.txt") -> Path:
    code, _, err = modelassay("run", "spectral", "--profile", "one-model", "-o", f"model={scene / 'model'}",
                              "-o", f"data={scene / data}", *SMALL, *options, "--runs", scene / name)  # fmt: skip
    assert code == 0, err
    return only_run(scene / name)


def test_any_model_and_text_against_the_exact_spectrum(scene: Path) -> None:
    run = one_model(scene, "dense", "-o", "dense=true", "-o", "runs=2")
    found = {
        (f.name, f.labels.get("definition"), f.labels.get("quantity")): f
        for f in analyse(open_run(run).tables()).findings
    }
    errors = {key[2]: f.value for key, f in found.items() if key[0] == "error"}
    assert max(errors[name] for name in ("lambda_max", "lambda_min", "spread")) < 1e-6
    assert max(errors.values()) < 0.2
    metrics = metrics_of(run).items()
    exact_P = np.array(sorted(value for (_, name, _), value in metrics if name == "eigenvalue"))
    top = found["lambda_max", None, None]
    assert top.low <= exact_P[-1] <= top.high
    assert found["outliers", None, None].low <= exact_numbers(exact_P)["outliers"]
    ratios = [
        exact_P[-1] / exact_numbers(exact_P)[f"sigma_bulk {name}"] for name in ("all", "without_10", "without_50")
    ]
    assert found["ratio_by_definition", None, None].value == pytest.approx(max(ratios) / min(ratios), rel=0.2)
    weights = [value for (_, name, _), value in metrics if name == "weight"]
    assert len(weights) == 104
    assert sum(weights) == pytest.approx(2)
    assert {value for (_, name, _), value in metrics if name == "products"} == {107}
    figures = list((run / "figures").glob("*.png"))
    assert [figure.name for figure in figures] == ["spectrum-1.png"]
    printed = next((run / "cells").glob("*/attempt-1.out")).read_text().split("\n")
    assert "hvp 107 of" in "\n".join(printed)


@pytest.mark.parametrize("operator", ["gauss-newton", "empirical-fisher", "sampled-fisher"])
def test_other_operators_are_positive(scene: Path, operator: str) -> None:
    run = one_model(scene, operator, "-o", f"operator={operator}", data="text.jsonl")
    metrics = metrics_of(run)
    ritz = [value for (_, name, _), value in metrics.items() if name == "ritz"]
    assert min(ritz) > -1e-12 * max(ritz)
    assert max(ritz) > 0


KILLED = """
import os, signal, sys
from modelassay.experiments.spectral import sitting
from modelassay.experiments.spectral.params import Params
from modelassay.experiments.spectral.run import run
from modelassay.meter import Meter
from modelassay.record import Log, segments
from modelassay.state import State, Store, latest_checkpoint
from pathlib import Path
folder, stop, settings = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
folder.mkdir(parents=True, exist_ok=True)
saved = latest_checkpoint(folder)
attempt = 1 + max(segments(folder), default=0)
log = Log(folder / f"attempt-{attempt}.jsonl", cell="c", attempt=attempt, resumed_at=saved.position if saved else 0)
meter = Meter(log, counters=saved.counters if saved else None)
state = State(folder, meter=meter, store=Store(folder), saved=saved)
state.checkpoint_due = lambda: True
real = meter.microbatch
def microbatch(*args, **labels):
    if meter.counters.get("hvp", 0) == stop:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **labels)
meter.microbatch = microbatch
run(Params.model_validate_json(settings), meter, state)
log.append("status", {"outcome": "done", "reason": "", "wall_s": 0.0})
log.close()
"""


def sit(folder: Path, stop: int, settings: str) -> int:
    command = [sys.executable, "-W", "error", "-c", KILLED, str(folder / "cells" / "c"), str(stop), settings]
    return subprocess.run(command, env=environ(), check=False).returncode


@pytest.mark.slow
def test_killed_at_any_product_and_taken_up_again(scene: Path) -> None:
    """In the first run, among the probes, in the second run, while the whole matrix is formed: bit for bit the same."""
    settings = json.dumps({"model": str(scene / "model"), "data": str(scene / "text.txt"), "tokens": 96, "length": 8, "microbatch": 5,
                           "steps": 51, "probes": 3, "runs": 2, "dense": True})  # fmt: skip
    assert sit(scene / "whole", -1, settings) == 0
    for stop in (0, 30, 52, 60, 106):
        assert sit(scene / "killed", stop, settings) == -9
    assert sit(scene / "killed", -1, settings) == 0
    expected = metrics_of(scene / "whole")
    assert metrics_of(scene / "killed") == expected
    assert len(expected) > 1000
    assert not list((scene / "killed").glob("cells/*/artifacts/vectors"))


MISTAKES = [
    ([], "-o model=FOLDER -o data=FILE"),
    (["-o", "model={model}", "-o", "data=absent.txt"], "absent.txt: cannot be read as text"),
    (["-o", "model={model}", "-o", "data={text}", "-o", "tokens=100000", "-o", "length=8"], "holds 240 tokens of this model, 100000 are wanted"),
    (["-o", "model={model}", "-o", "data={text}", *SMALL, "-o", "parameters=['*.mpl.*']"], "did you mean"),
    (["-o", "model={model}", "-o", "data={text}", *SMALL, "-o", "parameters=['model.norm.weight']"], "needs more than 51 parameters"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "said"), MISTAKES)
def test_mistakes_are_said_in_a_line(scene: Path, tmp_path: Path, options: list[str], said: str) -> None:
    places = {"model": scene / "model", "text": scene / "text.txt"}
    code, _, err = modelassay(
        "run",
        "spectral",
        "--profile",
        "one-model",
        *(option.format(**places) for option in options),
        "--runs",
        tmp_path,
    )
    assert code == 3
    assert said in err
    assert "Traceback" not in err


def test_rows_of_a_text(scene: Path) -> None:
    rows_BT = rows_of(str(scene / "text.txt"), tokenizer(), tokens=100, length=12)
    assert rows_BT.shape == (8, 12)
    assert (rows_BT[:, 11] == 0).all()  # eleven words and the end
    assert torch.equal(rows_of(str(scene / "text.jsonl"), tokenizer(), tokens=100, length=12), rows_BT)
    corpus = rows_of("corpus:en", tokenizer(), tokens=50, length=10)
    assert corpus.shape == (5, 10)


@pytest.mark.parametrize(
    ("line", "said"), [("{", r"bad.jsonl:2: not JSON"), ('{"txt": 1}', r"bad.jsonl:2: no 'text'"), ("[1]", "no 'text'")]
)
def test_lines_that_are_no_documents(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "bad.jsonl").write_text(f'{{"text": "w1"}}\n{line}\n')
    with pytest.raises(UsageError, match=said):
        rows_of(str(tmp_path / "bad.jsonl"), tokenizer(), tokens=50, length=10)
