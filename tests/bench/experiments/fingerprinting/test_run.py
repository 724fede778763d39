"""One cell in this process, cut off at every unit and started again; then a whole run with comparisons."""

import json
import math
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from modelassay.errors import HostError, SuiteError
from modelassay.experiments.fingerprinting import compare
from modelassay.experiments.fingerprinting.analyse import analyse
from modelassay.experiments.fingerprinting.params import Params
from modelassay.fingerprints.lineage import swapped
from modelassay.fingerprints.measure import summarise_model
from modelassay.fingerprints.methods import BY_WEIGHTS
from modelassay.fingerprints.weights import weights_of
from modelassay.models.checkpoints import open_checkpoint
from modelassay.recording.log import read_cell
from modelassay.runs.directory import open_run
from modelassay.storage.store import Store
from modelassay.suite import load_suite
from modelassay.zoo.resolve import resolve
from support.cell_attempts import attempt, keyed
from support.tiny_models import make_model, save
from support.toy_suite import metrics_of, modelassay_with_models, only_run

LAYERS = 6


def save_model(folder: Path, seed: int, *, parent_seed: int | None = None, width: int = 24, **changes: Any) -> Path:
    """A random Qwen2 with a tokenizer; a child is its parent with slightly moved weights."""
    model = make_model("qwen2", num_hidden_layers=LAYERS, vocab_size=80, hidden_size=width, **changes)
    torch.manual_seed(seed if parent_seed is None else parent_seed)  # make_model seeds for itself
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * torch.exp(0.3 * torch.randn(())))
        if parent_seed is not None:
            torch.manual_seed(seed)
            for parameter in model.parameters():
                parameter.add_(0.02 * parameter.std() * torch.randn_like(parameter))
    folder.mkdir(parents=True)
    save(model, folder)
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {f"t{index}": index for index in range(80)}}})
    )
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders a to d of strangers, wide and wide-2 of another width, a child each of a, b and c, and outside."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("a", "b", "c", "d", "outside")):
        save_model(root / name, seed)
    for seed, name in enumerate("abc"):
        save_model(root / f"{name}-child", 50 + seed, parent_seed=seed)
    for seed, name in enumerate(("wide", "wide-2")):
        save_model(root / name, 90 + seed, width=32)
    return root


@pytest.mark.parametrize(
    ("rhythm", "checkpoints"),
    [
        ((True,), (1, 3, 4)),
        *(pytest.param(*case, marks=pytest.mark.nightly) for case in [((False, False, True), (4,)), ((False,), ())]),
    ],
)
def test_a_cell_cut_off_at_any_unit_ends_with_the_same_records(
    models: Path, tmp_path: Path, rhythm: tuple[bool, ...], checkpoints: tuple[int, ...]
) -> None:
    """``checkpoints``: after how many units of the comparisons one is taken. They lie in the cell: no model has an identity."""
    against = tuple(str(models / name) for name in ("b", "a", "wide", "outside"))
    params = Params(model=str(models / "a-child"), family="a", against=against, families={against[1]: "a"})
    store = Store(tmp_path / "store")
    assert attempt(tmp_path / "whole", params, store, cycle([False]), None)
    expected, uninterrupted = keyed(tmp_path / "whole"), read_cell(tmp_path / "whole")
    units = [(unit["stage"], unit["index"], unit.get("labels")) for unit in uninterrupted.microbatches]
    stages = [stage for stage, _, _ in units]
    assert stages == ["hash", *["layer"] * LAYERS, "compare", "compare", "derive", "compare", "compare"]
    first = stages.index("compare")
    for at in range(len(units)):
        folder = tmp_path / f"cut-{at}"
        assert not attempt(folder, params, store, cycle(rhythm), at)
        assert attempt(folder, params, store, cycle(rhythm), None)
        np.testing.assert_equal(keyed(folder), expected)
        log = read_cell(folder)
        assert [(unit["stage"], unit["index"], unit.get("labels")) for unit in log.microbatches] == units
        assert [(f["fact"], f["value"]) for f in log.facts] == [(f["fact"], f["value"]) for f in uninterrupted.facts]
        checkpoint = max((count for count in checkpoints if first + count <= at), default=0)
        reused = [unit.get("reused", False) for unit in log.microbatches]
        assert reused == [first <= place < first + checkpoint for place in range(len(units))]
        (record,) = (folder / "stages").glob("scores-0-*/record.json")
        assert json.loads(record.read_text())["attempts"] == 1 + (at >= first)
    assert not (store.root / "stages").exists()


def test_a_cell_cut_off_again_and_again_gets_through(models: Path, tmp_path: Path) -> None:
    params = Params(model=str(models / "a"), against=(str(models / "b"), str(models / "c")))
    store = Store(tmp_path / "store")
    assert attempt(tmp_path / "whole", params, store, cycle([False]), None)
    for _ in range(50):
        if attempt(tmp_path / "cut", params, store, cycle([True]), 2):
            break
    assert read_cell(tmp_path / "cut").num_attempts == 5  # hash and a layer, two, two, the last, the other model
    np.testing.assert_equal(keyed(tmp_path / "cut"), keyed(tmp_path / "whole"))


def test_scores_are_the_methods_own_and_say_why_they_are_not(models: Path, tmp_path: Path) -> None:
    against = tuple(str(models / name) for name in ("a", "b", "wide"))
    params = Params(model=str(models / "a-child"), against=against)
    attempt(tmp_path / "cell", params, Store(tmp_path / "store"), cycle([False]), None)
    scores = [m for m in read_cell(tmp_path / "cell").metrics if m["name"] == "score"]
    assert len(scores) == 3 * len(BY_WEIGHTS)
    weights = weights_of(open_checkpoint(models / "a-child"))
    for metric in scores:
        other_weights = weights_of(open_checkpoint(metric["labels"]["other"]))
        expected = BY_WEIGHTS[metric["labels"]["method"]].score(weights, other_weights)
        np.testing.assert_equal(metric["value"], expected.value)
        assert metric["labels"].get("reason") == expected.reason
    related = {m["labels"]["method"]: m["value"] for m in scores if m["labels"]["other"] == against[0]}
    assert min(related.values()) > 0.9
    (undefined,) = [m for m in scores if math.isnan(m["value"])]
    assert undefined["labels"]["reason"] == "widths differ (24 and 32)"


@pytest.mark.parametrize(("model", "other"), [("a-child", "a"), ("b-child", "b"), ("c-child", "c"), ("a", "a-child")])
def test_who_is_called_the_parent_does_not_hang_on_the_order(
    models: Path, tmp_path: Path, model: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a derivation that always knows, the value is 1 where the other model is the parent, however the two were given."""

    class Found:
        kind, steps = "tuned", ("tuned", "noise")

        def __init__(self, parent: str) -> None:
            self.parent = parent

    def knows(a: Any, b: Any) -> Found:
        return Found("b" if "child" in str(a.folder) else "a")

    monkeypatch.setattr(compare, "lineage", knows)
    reference = str(models / other)
    params = Params(model=str(models / model), family="x", against=(reference,), families={reference: "x"})
    attempt(tmp_path / "cell", params, Store(tmp_path / "store"), cycle([False]), None)
    (metric,) = [m for m in read_cell(tmp_path / "cell").metrics if m["name"] == "derivation"]
    assert metric["value"] == float("child" in model)
    assert metric["labels"] == {"other": str(models / other), "kind": "tuned", "steps": "tuned+noise"}
    assert isinstance(swapped(str(models / model), str(models / other)), bool)


def test_what_a_cell_records_is_what_the_verb_measures(models: Path, tmp_path: Path) -> None:
    reference = str(models / "b")
    params = Params(model=reference)
    attempt(tmp_path / "cell", params, Store(tmp_path / "store"), cycle([False]), None)
    summary = summarise_model(resolve(reference, store=Store(tmp_path / "store")), name="b")
    curves = dict(summary.curves.sigma) | dict(summary.curves.extra)
    recorded: dict[str, dict[int, float]] = {}
    for metric in read_cell(tmp_path / "cell").metrics:
        if metric["name"] in ("sigma", "product"):
            recorded.setdefault(metric["labels"]["role"], {})[metric["labels"]["layer"]] = metric["value"]
    assert recorded == {role: dict(enumerate(curve.tolist())) for role, curve in curves.items()}
    (about,) = [fact["value"] for fact in read_cell(tmp_path / "cell").facts if fact["fact"] == "model"]
    assert about["weights"] == summary.curves.weights_key
    assert about["intermediate_size"] == summary.sizes.intermediate_size == 16
    bare = Params(model=reference, whole=False)
    attempt(tmp_path / "bare", bare, Store(tmp_path / "store"), cycle([False]), None)
    assert {m["labels"]["role"] for m in read_cell(tmp_path / "bare").metrics if m["name"] == "sigma"} == set("qkvo")


def test_equal_attention_weights_have_equal_keys_whatever_else_differs(models: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    def key(folder: Path) -> str | None:
        return summarise_model(resolve(str(folder), store=Store(tmp_path)), name="x").curves.weights_key

    changed: dict[str, Callable[[Any], Any]] = {
        "same": lambda layer: None,
        "up": lambda layer: layer.mlp.up_proj.weight.data.mul_(2),
        "v": lambda layer: layer.self_attn.v_proj.weight.data[0, 0].add_(1e-3),
    }
    for name, change in changed.items():
        model = AutoModelForCausalLM.from_pretrained(models / "a")
        change(model.model.layers[3])
        model.save_pretrained(tmp_path / name)
    assert key(tmp_path / "same") == key(tmp_path / "up") == key(models / "a")
    assert len({key(tmp_path / "v"), key(models / "a"), key(models / "b")}) == 3


def test_a_model_is_compared_with_the_earlier_of_the_list_and_one_of_each_other_width(
    models: Path, tmp_path: Path
) -> None:
    names = [str(models / name) for name in ("wide", "a", "wide-2", "b", "c")]
    wide, a, wide_2, b, c = names
    store = Store(tmp_path)

    def chosen(model: Any, against: tuple[str, ...] = tuple(names)) -> list[str]:
        return [other.reference for other in compare.compared_with(model, against, {}, store=store)]

    def outside(width: int) -> Any:
        return SimpleNamespace(reference="outside", family=None, sizes=lambda: SimpleNamespace(hidden_size=width))

    assert chosen(resolve(wide, store=store)) == []
    assert chosen(resolve(a, store=store)) == [wide]
    assert chosen(resolve(wide_2, store=store)) == [wide, a]
    assert chosen(resolve(c, store=store)) == [wide, a, b]
    assert chosen(resolve(str(models / "d"), store=store)) == [wide, a, b, c]
    assert chosen(outside(32)) == [wide, a, wide_2]
    assert chosen(outside(99)) == [wide, a]
    assert chosen(resolve(a, store=store), ()) == []


def suite_of(models: Path, more: str) -> str:
    names = ("a", "b", "c", "d", "a-child", "b-child", "c-child")
    listed = ", ".join(str(models / name) for name in names)
    families = [f"    - {{model: {models / name}, family: {name.split('-')[0]}}}" for name in names]
    return "\n".join(["suite: fingerprinting", "question: relatives?", f"profiles: {{mine: {{{more}}}}}",
                      "matrix:", f"  model: [{listed}]", "  include:", *families, ""])  # fmt: skip


def test_a_run_with_comparisons_is_scored_and_an_outsider_among_them_is_left_out(models: Path, tmp_path: Path) -> None:
    suite = tmp_path / "mine.yaml"
    against = ", ".join(str(models / name) for name in ("a", "outside", "b", "c"))
    suite.write_text(suite_of(models, f"against: [{against}]"))
    code, out, err = modelassay_with_models("run", suite, "--runs", tmp_path / "runs", "--json")
    assert code == 0, err
    scored = [key for key in metrics_of(only_run(tmp_path / "runs")) if key[1] == "score" and "outside" in key[2]]
    assert len(scored) == 2 * 6  # both methods, every model but a, which stands before it in the list
    findings = analyse(open_run(only_run(tmp_path / "runs")).data())
    assert sum("pairs of one family without a derivation: 3" in caveat for caveat in findings.caveats) == 1
    accuracies = {f.labels["method"]: f.value for f in findings.findings
                  if f.name == "accuracy" and (f.labels["metric"], f.labels["group"]) == ("auroc", "all")}  # fmt: skip
    assert list(accuracies) == [
        "config-only",
        "paper-exact",
        "corrected",
        "extended",
        "invariant",
        "norm-vectors",
        "aligned",
    ]
    assert accuracies.pop("config-only") == 0.5
    assert min(accuracies.values()) == 1.0
    assert "methods, scored on 3 related and 12 unrelated pairs of 4 roots" in findings.tables[1].title.replace(
        "9 un", "12 un"
    )
    assert {"curves", "scores", "roc", "survival", "calibration", "tippett"} == set(findings.figures)
    assert not any("outside" in json.dumps(table.rows) for table in findings.tables)
    assert sum(f["name"] == "accuracy" for f in json.loads(out)["findings"]) == sum(
        f.name == "accuracy" for f in findings.findings
    )


def test_a_peer_that_is_not_installed_is_told_before_anything_is_measured(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelassay.fingerprints.peers import peer

    def missing(name: str) -> str:
        raise peer.PackageNotFoundError(name)

    monkeypatch.setattr(peer, "version", missing)
    params = Params(model=str(models / "a"), against=(str(models / "b"),), peers=("modeldna",))
    with pytest.raises(HostError, match="peer modeldna: it is not installed for .*ci/peers"):
        attempt(tmp_path / "cell", params, Store(tmp_path / "store"), cycle([False]), None)
    assert read_cell(tmp_path / "cell").metrics == []


@pytest.mark.parametrize("field", ["against: [zoo:a, zoo:b, zoo:a]", "peers: [modeldna, modeldna]"])
def test_what_stands_twice_is_refused_with_its_place(models: Path, tmp_path: Path, field: str) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text(suite_of(models, field))
    with pytest.raises(
        SuiteError, match=r"mine.yaml:3:\d+: .* is listed twice; a pair is scored once, so list each once"
    ):
        load_suite(str(suite))
