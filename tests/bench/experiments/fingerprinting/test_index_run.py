"""An index made by a run of sampled models, and scanned from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from modelassay.recording.log import read_cell
from support.byte_tokenizer import byte_tokenizer
from support.drift_models import byte_model
from support.toy_suite import modelassay_with_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two roots, a noisy child of the first, and a list of them."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("root", 0), ("stranger", 1), ("child", 0), ("asked", 0)):
        model = byte_model(seed=seed)
        torch.manual_seed(len(name))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 + 0.002 * torch.randn_like(weight) * (name in {"child", "asked"}))
        model.save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    (folder / "list.txt").write_text("".join(f"{folder / name}\n" for name in ("root", "stranger", "child")))
    return folder


def test_a_run_of_a_list_is_an_index_that_is_scanned(models: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, err = modelassay_with_models(
        "run",
        "fingerprinting",
        "--profile",
        "index",
        "-o",
        f"matrix.model=@{models / 'list.txt'}",
        "--into",
        run,
        "--json",
    )
    assert code == 0, err
    names = {finding["name"] for finding in json.loads(out)["findings"]}
    assert {"sketches", "sketch_read_bytes", "sketch_seconds"} <= names
    for cell in (run / "cells").iterdir():
        log = read_cell(cell)
        assert [fact["fact"] for fact in log.facts] == ["sketch", "sampled"]
        assert not log.metrics
    code, out, err = modelassay_with_models("fingerprint", models / "asked", "--index", run, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["num_models"], answer["num_compared"]) == (3, 3)
    by_name = {Path(relative["model"]).name: relative for relative in answer["relatives"]}
    assert by_name["root"]["verdict"] == by_name["child"]["verdict"] == "inherited"
    assert by_name["stranger"]["verdict"] == "not distinguishable from independent"
    (index,) = (run / "index").iterdir()
    moved = tmp_path / "elsewhere"
    index.rename(moved)
    code, out, err = modelassay_with_models("fingerprint", models / "asked", "--index", moved)
    assert code == 0, err
    assert "inherited; numbered like" in out
    assert "and 1 more of the 3 models" in out
    assert not list((run / "index").iterdir())
    code, out, err = modelassay_with_models("fingerprint", models / "root", "--index", run, "--nearest", "1")
    assert code == 0, err  # made again, and without itself
    assert "of the 2 models" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a", "b", "--index", "x"), "--index scans for the kin of one MODEL, got 2"),
        (("a", "--index", "x", "--sampled"), "and --sampled does not apply to it"),
        (("a", "--index", "x", "--nearest", "0"), "Invalid value for '--nearest'"),
        (("{root}", "--index", "nowhere"), "nowhere: no such run"),
        (("{root}", "--index", "{folder}"), "no index of models; make one"),
    ],
)
def test_mistakes(words: tuple[str, ...], message: str, models: Path) -> None:
    filled = [word.format(root=models / "root", folder=models) for word in words]
    code, _, err = modelassay_with_models("fingerprint", *filled)
    assert code == 2, err
    assert message in err
    assert "Traceback" not in err


def test_sampled_cells_compare_nothing(models: Path) -> None:
    code, _, err = modelassay_with_models(
        "run", "fingerprinting", "--profile", "index", "-o", "numbering=true", "--plan"
    )
    assert code == 2
    assert "sampled reads a few rows, and numbering needs whole models" in err


def test_what_a_sketch_holds_is_what_was_recorded(models: Path, tmp_path: Path) -> None:
    from modelassay.experiments.fingerprinting.sketches import record_sketch, sketch_from
    from modelassay.fingerprints.independence.blocks import SampledModel
    from modelassay.fingerprints.independence.sketch import sketch_of
    from modelassay.machine.code import SourceGraph
    from modelassay.models.checkpoints import open_checkpoint
    from modelassay.recording.context import CellContext
    from modelassay.storage.store import Store

    folder = tmp_path / "cells" / "c"
    folder.mkdir(parents=True)
    cell = CellContext(folder, cell="c", seed=0, store=Store(tmp_path / "store"), sources=SourceGraph())
    model = SampledModel(open_checkpoint(str(models / "root")))
    record_sketch(model, cell)
    cell.meter.settle()
    cell.meter.log.close()
    (fact,) = read_cell(folder).facts
    kept, direct = sketch_from(fact["value"]), sketch_of(model)
    assert kept is not None
    np.testing.assert_array_equal(kept.ranks_FM, direct.ranks_FM)
    assert (kept.width, kept.num_bytes) == (direct.width, direct.num_bytes)
    assert sketch_from({**fact["value"], "version": 0}) is None
