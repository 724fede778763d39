"""The experiment on real checkpoints, through the real runner and the command line."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from modelassay.experiments.fingerprinting.analyse import analyse
from modelassay.experiments.fingerprinting.analyse.pairs import Evidence, gather
from modelassay.experiments.fingerprinting.analyse.read import models_of
from modelassay.fingerprints.background import Background
from modelassay.fingerprints.curves import ROLES, paper_exact
from modelassay.runs.directory import open_run
from modelassay.statistics.lr import calibrate
from support.tiny_models import expected_blocks, make_model, save
from support.toy_suite import metrics_of, modelassay_with_models, only_run, rewrite

LAYERS = 6


def save_model(folder: Path, seed: int, *, parent_seed: int | None = None, broken: bool = False) -> Path:
    """A random Qwen2 whose layers differ in scale; a child is its parent with slightly moved weights."""
    model = make_model("qwen2", num_hidden_layers=LAYERS)
    torch.manual_seed(seed if parent_seed is None else parent_seed)  # make_model seeds for itself
    blocks = [parameter for name, parameter in model.named_parameters() if "self_attn" in name and "weight" in name]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02)
        for block in blocks:
            block.mul_(torch.exp(0.3 * torch.randn(())))
        if parent_seed is not None:
            torch.manual_seed(seed)
            for block in blocks:
                block.add_(0.02 * block.std() * torch.randn_like(block))
        if broken:
            blocks[5].view(-1)[3] = math.nan
    folder.mkdir(parents=True)
    save(model, folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders a, b, ... g of strangers and a-child."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("abcdefg"):
        save_model(root / name, seed)
    save_model(root / "a-child", 99, parent_seed=0)
    return root


def suite_of(models: Path, names: str) -> str:
    listed = names.split()
    lines = [f"  model: [{', '.join(str(models / name) for name in listed)}]", "  include:"]
    lines += [f"    - {{model: {models / name}, family: {name.split('-')[0]}}}" for name in listed]
    return "\n".join(["suite: fingerprinting", "question: relatives?", "profiles: {mine: {}}", "matrix:", *lines, ""])


@pytest.fixture(scope="module")
def run(models: Path) -> Path:
    suite = models / "mine.yaml"
    suite.write_text(suite_of(models, "a b c d e f g a-child"))
    code, _, err = modelassay_with_models("run", suite, "--runs", models / "runs")
    assert code == 0, err
    return only_run(models / "runs")


def evidence_of_run(run: Path) -> Evidence:
    models = models_of(open_run(run).data())
    return gather(models, {}, Background.from_models(models.values()), alpha=0.05)


def test_sigma_equals_float64_over_the_loaded_models_own_blocks(models: Path, run: Path) -> None:
    curves = {model.curves.name: model.curves for model in models_of(open_run(run).data()).values()}
    torch.manual_seed(0)
    for name in ("a", "a-child", "g"):
        from transformers import AutoModelForCausalLM

        blocks = expected_blocks(AutoModelForCausalLM.from_pretrained(models / name))
        for (role, layer), block in blocks.items():
            expected = float(block.double().flatten().std())
            assert curves[name].sigma[role][layer] == pytest.approx(expected, rel=1e-6)


def test_relative_is_found_and_strangers_are_not(run: Path) -> None:
    findings = analyse(open_run(run).data())
    scores = {
        (f.labels["method"], f.labels["a"], f.labels["b"]): f.value for f in findings.findings if f.name == "similarity"
    }
    assert len(scores) == 2 * 28
    assert scores["corrected", "a", "a-child"] > 0.95
    strangers = [
        score for (method, a, b), score in scores.items() if method == "corrected" and {a, b} != {"a", "a-child"}
    ]
    assert max(strangers) < scores["corrected", "a", "a-child"]
    words = {row[0]: row[-2] for row in findings.tables[0].rows}
    assert words["a · a-child"] == "closer than all strangers"
    unrelated = {
        f.labels["quantile"]: f.value
        for f in findings.findings
        if f.name == "unrelated" and f.labels["method"] == "paper-exact"
    }
    models = [model.curves for model in models_of(open_run(run).data()).values()]
    roots = [model for model in models if model.name == model.family]
    expected = [paper_exact(x, y).value for i, x in enumerate(roots) for y in roots[:i]]
    assert len(expected) == 21
    assert unrelated[0.5] == pytest.approx(np.median(expected))
    assert unrelated[1.0] == pytest.approx(max(expected))


def test_fingerprint_verb_with_and_without_a_background(models: Path, run: Path, tmp_path: Path) -> None:
    figure = tmp_path / "curves.png"
    two = (models / "a", models / "a-child")
    code, out, err = modelassay_with_models("fingerprint", *two, "--json", "--figure", figure)
    assert code == 0, err
    answer = json.loads(out)
    (pair,) = answer["pairs"]
    assert (pair["verdict"], pair["checkpoints"]["alpha"]) == ("inherited", 1e-6)
    among = pair["among_strangers"]
    assert among["word"] == "uncalibrated"
    assert (among["background"], among["phase"], among["p_adjusted"]) == (None, None, None)
    assert "rank p =" not in out
    assert {method["log10_lr"] for method in pair["methods"].values()} == {None}
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert {role: len(answer["models"][0]["sigma"][role]) for role in ROLES} == dict.fromkeys(ROLES, LAYERS)

    code, out, _ = modelassay_with_models("fingerprint", *two, "--json", "--against", run)
    (pair,) = json.loads(out)["pairs"]
    assert (code, pair["verdict"], pair["among_strangers"]["word"]) == (0, "inherited", "closer than all strangers")
    assert pair["among_strangers"]["background"]["n"] == 21
    assert pair["among_strangers"]["background"]["p"] == pytest.approx(1 / 22)
    scored = evidence_of_run(run).scored("corrected")
    expected = calibrate(scored).log10(pair["methods"]["corrected"]["value"])
    assert pair["methods"]["corrected"]["log10_lr"] == pytest.approx(expected)
    assert 0 < expected <= math.log10(1 + 6)  # seven roots: a suspect meets six others

    code, out, _ = modelassay_with_models("fingerprint", models / "b", models / "c", "--against", run)
    assert code == 0
    assert out.startswith("b and c: not distinguishable from independent;")
    assert "b and c: among strangers" in out


def test_a_suspect_is_compared_with_candidates_alone_and_p_is_corrected_for_them(models: Path) -> None:
    names = [str(models / name) for name in ("a-child", "b", "a", "c")]
    code, out, err = modelassay_with_models(
        "fingerprint", "--suspect", names[0], "--candidates", *names[1:], "--attention-only", "--json"
    )
    assert code == 0, err
    answer = json.loads(out)
    assert [(pair["a"], pair["b"], pair["verdict"]) for pair in answer["pairs"]] == [
        ("a-child", name, None) for name in "bac"
    ]
    code, out, err = modelassay_with_models("fingerprint", "--suspect", names[0], "--candidates", *names[1:], "--json")
    assert code == 0, err
    pairs = json.loads(out)["pairs"]
    assert [pair["verdict"] for pair in pairs] == [
        "not distinguishable from independent", "inherited", "not distinguishable from independent"]  # fmt: skip
    for pair in pairs:
        least = min(test["log10_p"] for test in pair["checkpoints"]["tests"])
        assert pair["checkpoints"]["log10_p"] == pytest.approx(min(0.0, least + math.log10(4) + math.log10(3)))
        assert "corrected for 3 candidates" in pair["sentence"]
    for wrong in (["--suspect", names[0], names[1]], ["--candidates", *names]):
        code, _, err = modelassay_with_models("fingerprint", *wrong)
        assert code == 2
        assert "--suspect A and --candidates B C ... go together" in err


def test_background_that_is_not_whole_or_means_nothing_says_so(models: Path, run: Path, tmp_path: Path) -> None:
    pair = (models / "a", models / "a-child")
    answer = json.loads(modelassay_with_models("fingerprint", *pair, "--json", "--against", run)[1])
    assert answer["against"] == {"run": str(run), "profile": "mine", "complete": True}

    part = shutil.copytree(run, tmp_path / "part")
    rewrite(part, lambda manifest: manifest["suite"].update(profile="smoke"))
    manifest = json.loads((part / "run.json").read_text())
    cell_id = next(cell["id"] for cell in manifest["suite"]["cells"] if cell["params"]["model"].endswith("/g"))
    shutil.rmtree(part / "cells" / cell_id)
    code, out, _ = modelassay_with_models("fingerprint", *pair, "--json", "--against", part)
    answer = json.loads(out)
    assert (code, answer["pairs"][0]["among_strangers"]["background"]["n"]) == (0, 15)
    assert answer["against"] == {"run": str(part), "profile": "smoke", "complete": False}
    assert "its numbers mean nothing" in answer["caveats"][0]
    assert "1 of 8 cells are not complete" in answer["caveats"][1]

    shutil.rmtree(part / "cells")
    code, out, _ = modelassay_with_models("fingerprint", *pair, "--json", "--against", part)
    assert (code, json.loads(out)["pairs"][0]["among_strangers"]["word"]) == (0, "uncalibrated")


@pytest.mark.parametrize(
    ("axis", "says"),
    [("alpha: [0.01, 0.05]", "cells differ in alpha (0.01, 0.05)"), ("family: [x, y]", "is in more than one cell")],
)
def test_matrix_that_cannot_be_judged_is_one_line(models: Path, tmp_path: Path, axis: str, says: str) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text(
        f"suite: fingerprinting\nquestion: relatives?\nprofiles: {{mine: {{}}}}\nmatrix:\n  model: [{models}/a, {models}/b]\n  {axis}\n"
    )
    code, _, err = modelassay_with_models("run", suite, "--runs", tmp_path / "runs")
    assert code == 2
    assert says in err.splitlines()[-1]
    assert "Traceback" not in err


def test_run_of_broken_models_alone_still_says_so(tmp_path: Path) -> None:
    broken = [save_model(tmp_path / name, 7, broken=True) for name in ("x", "y")]
    suite = tmp_path / "mine.yaml"
    suite.write_text(
        f"suite: fingerprinting\nquestion: relatives?\nprofiles: {{mine: {{}}}}\nmatrix: {{model: [{broken[0]}, {broken[1]}]}}\n"
    )
    code, out, err = modelassay_with_models("run", suite, "--runs", tmp_path / "runs", "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert ([cell["outcome"] for cell in answer["cells"]], answer["findings"]) == (["diverged"] * 2, [])
    assert sum("was left out" in caveat for caveat in answer["caveats"]) == 2


def test_one_model_of_another_shape_is_uncalibrated(models: Path, run: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = tmp_path / "other"
    other.mkdir()
    save(make_model("llama", num_hidden_layers=LAYERS + 2), other)
    code, out, _ = modelassay_with_models("fingerprint", models / "a", other, "--json", "--against", run)
    assert code == 0
    (pair,) = json.loads(out)["pairs"]
    assert pair["among_strangers"]["word"] == "uncalibrated"


def test_broken_matrix_is_a_finding_of_a_run_and_costs_the_verb_the_methods_that_need_it(
    models: Path, tmp_path: Path
) -> None:
    broken = save_model(tmp_path / "broken", 7, broken=True)
    suite = tmp_path / "mine.yaml"
    suite.write_text(suite_of(models, "a b").replace("model: [", f"model: [{broken}, ", 1))
    code, out, err = modelassay_with_models("run", suite, "--runs", tmp_path / "runs", "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert [cell["outcome"] for cell in answer["cells"]] == ["diverged", "done", "done"]
    assert "layer 1: k holds NaN or infinite weights" in answer["cells"][0]["reason"]
    assert any("was left out: layer 1: k holds NaN" in caveat for caveat in answer["caveats"])
    assert any(math.isnan(value) for value in metrics_of(only_run(tmp_path / "runs")).values())
    code, out, err = modelassay_with_models("fingerprint", models / "a", broken, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert list(answer["models"][1]["faults"]) == ["k"]
    assert answer["models"][1]["faults"]["k"].startswith("layer 1: k holds NaN or infinite weights")
    assert answer["pairs"][0]["verdict"] == "not distinguishable from independent"
