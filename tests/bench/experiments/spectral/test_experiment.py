"""The experiment on small checkpoints: its numbers against a dense spectrum, any model and text, interruptions, and mistakes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modelassay.charts import data_of
from modelassay.data.text import rows_of
from modelassay.errors import Diverged, HostError, RecordError, UsageError
from modelassay.experiments.spectral.analyse import _negative_share, analyse
from modelassay.experiments.spectral.measure import exact_numbers
from modelassay.experiments.spectral.params import Params
from modelassay.experiments.spectral.run import run
from modelassay.machine.code import SourceGraph
from modelassay.recording.context import CellContext
from modelassay.recording.log import read_cell, segments
from modelassay.recording.tables import read_tables
from modelassay.runs.progress import position_of
from modelassay.storage.store import Store
from support.tiny_models import make_model, save
from support.toy_suite import environ, facts_of, metrics_of, modelassay_with_models, only_run

WORDS = [f"w{number}" for number in range(30)]
SMALL: dict[str, Any] = {
    "tokens": 96,
    "length": 8,
    "microbatch": 7,
    "steps": 51,
    "probes": 3,
    "runs": 1,
    "precision": "fp64",
}

EVERY = 13


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"end": 0, **{word: number for number, word in enumerate(WORDS, start=1)}}
    plain = Tokenizer(models.WordLevel(words, unk_token="end"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="end")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer in model, one text as text.txt and as text.jsonl."""
    root = tmp_path_factory.mktemp("scene")
    model = make_model("llama", num_hidden_layers=1, tie_word_embeddings=True)
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


class Stopped(BaseException):
    """The process is gone."""


def measure(folder: Path, params: Params, *, stop: int = -1, end: Callable[[], None] | None = None) -> None:
    """Run the cell in ``folder`` or take it up again, with a checkpoint at every ``EVERY``th product, until product ``stop``."""
    folder_of_cell = folder / "cells" / "c"
    folder_of_cell.mkdir(parents=True, exist_ok=True)
    cell = CellContext(folder_of_cell, cell="c", seed=0, store=Store(folder / "store"), sources=SourceGraph())
    plain = cell.microbatch

    def microbatch(*args: Any, **labels: Any) -> Any:
        if cell.meter.counters.get("hvp", 0) == stop:
            (end or _stop)()
        return plain(*args, **labels)

    cell.microbatch = microbatch  # type: ignore[method-assign]
    cell.checkpoint_due = lambda: cell.meter.counters["hvp"] % EVERY == 0  # type: ignore[method-assign]
    try:
        run(params, cell)
        cell.meter.log.append("status", {"outcome": "done", "reason": "", "wall_s": 0.0})
    finally:
        cell.meter.log.close()


def recorded(folder: Path) -> list[tuple[str, Any]]:
    """Metrics and facts, as they were recorded."""
    log = read_cell(folder / "cells" / "c")
    metrics = [(line["name"], line["value"]) for line in log.metrics]
    return [*metrics, *((line["fact"], (line["value"], line["labels"])) for line in log.facts)]


@pytest.mark.parametrize("runs", [4, 5])
def test_a_share_of_negative_eigenvalues_takes_five_start_vectors(runs: int) -> None:
    told = [{"values": [3.0, -1.0 - run, -2.0], "weights": [0.5, 0.1 * run, 0.5 - 0.1 * run]} for run in range(runs)]
    told[0] = {"values": [3.0, 1.0], "weights": [0.75, 0.25]}
    share = _negative_share(told)
    assert share.defined is (runs == 5)
    if runs == 5:
        assert share.value == pytest.approx((0 + 4 * 0.5) / 5)
        assert share.low is not None
        assert 0 <= share.low < 0.4 < 0.5 < (share.high or 0)


def ritz_values(folder: Path, what: str = "values") -> list[float]:
    return [value for run in facts_of(folder, "ritz") for value in run[what]]


def _stop() -> None:
    raise Stopped


def params_of(scene: Path, **changes: Any) -> Params:
    return Params(**{"model": str(scene / "model"), "data": str(scene / "text.txt"), **SMALL, **changes})


@pytest.fixture(scope="module")
def dense(scene: Path) -> tuple[Path, Params]:
    params = params_of(scene, dense=True, runs=2, parameters=("*.mlp.up_proj.*",))
    measure(scene / "dense", params)
    return scene / "dense", params


def test_numbers_are_those_of_the_exact_spectrum(dense: tuple[Path, Params]) -> None:
    folder, params = dense
    tables = read_tables({"c": (folder / "cells" / "c", params.model_dump(mode="json"))}, profile="mine")
    findings = analyse(tables)
    by_key = {(f.name, f.labels.get("definition"), f.labels.get("quantity")): f for f in findings.findings}
    errors = {key[2]: f.value for key, f in by_key.items() if key[0] == "error"}
    assert max(errors[name] for name in ("lambda_max", "lambda_min", "spread")) < 1e-6
    assert max(errors[name] for name in ("ratio", "sigma_bulk all", "sigma_bulk without_10")) < 0.2
    exact_P = np.array(sorted(facts_of(folder, "eigenvalues")[0]))
    exact = exact_numbers(exact_P)
    assert (
        by_key["lambda_max", None, None].estimate.low <= exact_P[-1] <= by_key["lambda_max", None, None].estimate.high
    )
    ratios = [exact_P[-1] / exact[f"sigma_bulk {name}"] for name in ("all", "without_10", "without_50")]
    assert by_key["ratio_by_definition", None, None].value == pytest.approx(max(ratios) / min(ratios), rel=0.4)
    assert {f.labels["model"] for f in findings.findings} == {"model"}
    assert np.isnan(by_key["negative_share", None, None].value)  # two start vectors are too few
    assert len(findings.tables[0].rows) == len({line[0] for line in findings.tables[0].rows}) == 11
    assert by_key["lambda_max", None, None].estimate.level is None  # a residual bound holds for certain
    assert by_key["trace", None, None].estimate.level == 0.95
    figure = findings.figures["spectrum-1"]
    grid, density = (np.array([row[key] for row in data_of(figure, "exact")]) for key in ("eigenvalue", "density"))
    width = 0.004 * (grid[-1] - grid[0])
    bumps = np.exp(-0.5 * ((grid[:, None] - exact_P) / width) ** 2) / (width * (2 * np.pi) ** 0.5)
    np.testing.assert_allclose(density, np.maximum(bumps.mean(axis=1), density.min()), rtol=1e-3)
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)
    drawn = np.array([row["density"] for row in data_of(figure, "density")])
    assert np.trapezoid(drawn, grid) == pytest.approx(1, abs=1e-3)
    centre = by_key["centre", None, None].value
    limits = {row["what"]: row["eigenvalue"] for row in data_of(figure, "limits")}
    assert limits == {
        f"centre + 5 σ, {name}{' (pre-registered)' if name == 'without_10' else ''}": pytest.approx(
            centre + 5 * by_key["sigma_bulk", name, None].value, rel=1e-5)
        for name in ("all", "without_10", "without_50")
    }  # fmt: skip
    assert len(data_of(figure, "ritz_values")) == len(ritz_values(folder))


def test_what_is_recorded(dense: tuple[Path, Params]) -> None:
    folder, params = dense
    metrics = metrics_of(folder)
    numbers = {name: value for (_, name, _), value in metrics.items()}
    size = numbers["parameters"]
    assert numbers["products"] == 2 * 51 + 3
    assert numbers["vector_bytes"] == 52 * size * 8
    assert numbers["tokens"] == 12 * 7
    weights = ritz_values(folder, "weights")
    assert len(weights) == 2 * 51
    assert sum(weights) == pytest.approx(2)
    tables = read_tables({"c": (folder / "cells" / "c", params.model_dump(mode="json"))}, profile="mine")
    units = tables.units
    assert units["stage"].unique().to_list() == ["hvp"]
    assert len(units) == 105 + -(-int(size) // 64)
    assert units["tokens"].unique().to_list() == [84]
    assert units["host_peak_bytes"].min() > 2**20
    assert units["graph_bytes"].max() > 0


def test_with_few_steps_a_definition_is_left_open(scene: Path, tmp_path: Path) -> None:
    params = params_of(scene, steps=24)
    measure(tmp_path, params)
    findings = analyse(read_tables({"c": (tmp_path / "cells" / "c", params.model_dump(mode="json"))}, profile="mine"))
    by_key = {(finding.name, finding.labels.get("definition")): finding.estimate for finding in findings.findings}
    assert [by_key["sigma_bulk", name].defined for name in ("all", "without_10", "without_50")] == [True, True, False]
    assert by_key["ratio_by_definition", None].note.endswith("definitions all, without_10")
    (row,) = (line for line in findings.tables[0].rows if line[0] == "sigma_bulk without_50")
    assert row == ["sigma_bulk without_50", "nan", "nan", "nan", "takes more than 50 Lanczos steps, and 51 eigenvalues"]
    limits = {line["what"] for line in data_of(findings.figures["spectrum-1"], "limits")}
    assert limits == {"centre + 5 σ, all", "centre + 5 σ, without_10 (pre-registered)"}


def test_room_is_asked_for_before_the_first_product(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearly_full = shutil.disk_usage(tmp_path)._replace(free=52 * 1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: nearly_full)
    with pytest.raises(HostError, match=r"52 vectors, and their checkpoint, take .*-o steps="):
        measure(tmp_path, params_of(scene))
    assert position_of(tmp_path / "cells" / "c") is None  # no product was begun


def test_vectors_on_the_disk_are_told(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without free memory is named, and its numbers are the same."""
    monkeypatch.setattr("modelassay.curvature.vectors.available_bytes", lambda: 0)
    measure(tmp_path / "disk", params_of(scene))
    position = position_of(tmp_path / "disk" / "cells" / "c")
    assert "GiB of vectors on the disk" in str(position)
    monkeypatch.undo()
    measure(tmp_path / "memory", params_of(scene))
    assert str(position_of(tmp_path / "memory" / "cells" / "c")) == "54 of 54 products"
    assert recorded(tmp_path / "disk") == recorded(tmp_path / "memory")


@pytest.mark.parametrize("operator", ["gauss-newton", "empirical-fisher", "sampled-fisher"])
def test_other_operators_are_positive(scene: Path, operator: str) -> None:
    measure(scene / operator, params_of(scene, operator=operator, data=str(scene / "text.jsonl")))
    ritz = ritz_values(scene / operator)
    assert min(ritz) > -1e-12 * max(ritz)
    assert max(ritz) > 0


def test_interrupted_at_any_product_and_taken_up_again(scene: Path, dense: tuple[Path, Params]) -> None:
    """Before the first product, in the first run, among the probes, in the second run, in the whole matrix: bit for bit the same."""
    for stop in (0, 30, 52, 60, 106):
        with pytest.raises(Stopped):
            measure(scene / "stopped", dense[1], stop=stop)
    measure(scene / "stopped", dense[1])
    expected = recorded(dense[0])
    assert recorded(scene / "stopped") == expected
    assert len(ritz_values(dense[0])) == 102
    assert len(segments(scene / "stopped" / "cells" / "c")) == 6
    assert not list(scene.glob("stopped/cells/*/vectors"))


@pytest.mark.parametrize("which", ["0-00003.npy", "0-00026-next.npy"])
def test_vector_that_is_not_as_it_was_written_is_not_used(
    scene: Path, dense: tuple[Path, Params], tmp_path: Path, which: str
) -> None:
    with pytest.raises(Stopped):
        measure(tmp_path / "worn", dense[1], stop=30)
    cell = tmp_path / "worn/cells/c"
    data = bytearray((cell / "vectors" / which).read_bytes())
    data[-3] ^= 1
    (cell / "vectors" / which).write_bytes(data)
    with pytest.raises(
        RecordError, match=f"{which} does not hold what was written; delete {cell}/checkpoint to begin anew"
    ):
        measure(tmp_path / "worn", dense[1])
    shutil.rmtree(cell / "checkpoint")
    measure(tmp_path / "worn", dense[1])
    assert recorded(tmp_path / "worn") == recorded(dense[0])


KILLED = """
import os, signal, sys
from pathlib import Path
from bench.experiments.spectral import test_experiment as here
here.measure(Path(sys.argv[1]), here.Params.model_validate_json(sys.argv[2]), stop=int(sys.argv[3]),
             end=lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("stops", [(53,), (40, 53)], ids=str)
def test_killed_and_taken_up_again(scene: Path, dense: tuple[Path, Params], stops: tuple[int, ...]) -> None:
    folder = scene / f"killed {stops}"
    command = [sys.executable, "-c", KILLED, str(folder), dense[1].model_dump_json()]
    for stop in stops:
        assert subprocess.run([*command, str(stop)], env=environ(), check=False).returncode == -9
    measure(folder, dense[1])
    assert recorded(folder) == recorded(dense[0])


def test_a_model_that_has_blown_up_is_a_finding(scene: Path, tmp_path: Path) -> None:
    model = make_model("llama", num_hidden_layers=1)
    with torch.no_grad():
        model.lm_head.weight[3, 2] = torch.nan
    save(model, tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(Diverged, match="loss of microbatch 0"):
        measure(tmp_path, params_of(scene, model=str(tmp_path / "model")))


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "-o model=FOLDER -o data=FILE"),
    ({"data": "absent.txt"}, r"absent\.txt: cannot be read as text"),
    ({"tokens": 100_000}, "holds 240 tokens of this model, 100000 are asked for"),
    ({"parameters": ("*.mpl.*",)}, "matches none"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_mistakes(scene: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measure(tmp_path, params_of(scene, **changes))


@pytest.mark.slow
def test_one_model_from_the_command_line(scene: Path, tmp_path: Path) -> None:
    code, _, err = modelassay_with_models("run", "spectral", "--profile", "one-model", "--runs", tmp_path / "none")
    assert code == 3
    assert "-o model=FOLDER -o data=FILE" in err
    settings = [option for name, value in SMALL.items() for option in ("-o", f"{name}={value}")]
    code, out, err = modelassay_with_models("run", "spectral", "--profile", "one-model", "-o", f"model={scene / 'model'}",
                                "-o", f"data={scene / 'text.txt'}", *settings, "--runs", tmp_path)  # fmt: skip
    assert code == 0, err
    run = only_run(tmp_path)
    assert "spectrum of model" in out
    assert sorted(figure.name for figure in (run / "figures").iterdir()) == ["spectrum-1.png", "spectrum-1.vl.json"]
    assert str(position_of(next((run / "cells").iterdir()))) == "54 of 54 products"


def test_rows_of_a_text(scene: Path) -> None:
    rows_BT = rows_of(str(scene / "text.txt"), tokenizer(), tokens=100, length=12)
    assert rows_BT.shape == (8, 12)
    assert not rows_BT[:, 11].any()  # eleven words and the end
    assert torch.equal(rows_of(str(scene / "text.jsonl"), tokenizer(), tokens=100, length=12), rows_BT)
    assert rows_of("corpus:en", tokenizer(), tokens=50, length=10).shape == (5, 10)


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "bad.jsonl:2: not JSON"), ('{"txt": 1}', "bad.jsonl:2: no 'text'"), ("[1]", "no 'text'")],
)
def test_lines_that_are_no_documents(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "bad.jsonl").write_text(f'{{"text": "w1"}}\n{line}\n')
    with pytest.raises(UsageError, match=message):
        rows_of(str(tmp_path / "bad.jsonl"), tokenizer(), tokens=50, length=10)
