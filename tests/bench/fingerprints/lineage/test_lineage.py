"""What was done to a model is named, with the right parent, in both orders of the arguments; what cannot be told is not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modelassay.fingerprints.lineage import differences, tensors
from modelassay.zoo import transforms as zoo_transforms
from modelassay.zoo.catalogue import WEIGHT_STEPS
from support.lineage_cases import VARIANTS, Change, base, outcome, trained
from support.tiny_models import make_model


def step(name: str, *, seed: int = 1) -> Change:
    made_by, settings = WEIGHT_STEPS[name]
    return lambda model: zoo_transforms.apply(model, made_by, seed=seed, settings=settings)


def adapted(model: Any) -> Any:
    """A merged adapter of rank 4 on queries and values."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.v_proj):
                rows, columns = projection.weight.shape
                update = torch.randn(rows, 4, generator=generator) @ torch.randn(4, columns, generator=generator)
                projection.weight.add_((0.05 * update).to(projection.weight))
    return model


DONE: list[tuple[str, Change, str, str | None]] = [
    ("nothing", lambda model: model, "copy", None),
    ("noise-1", step("noise-1"), "noise", "a"),
    ("noise-5", step("noise-5"), "noise", "a"),
    ("int8", step("int8"), "int8", "a"),
    ("prune-30", step("prune-30"), "pruned", "a"),
    ("depth", step("depth"), "depth", "a"),
    ("moe", step("moe"), "moe", "a"),
    ("heads", step("heads"), "heads", None),
    ("neurons", step("neurons"), "neurons", None),
    ("rotate", step("rotate"), "rotated", None),
    ("scale-qk", step("scale-qk"), "scaled", None),
    ("scale-vo", step("scale-vo"), "scaled", None),
    ("adapter", adapted, "lora", "a"),
    ("tuning", trained(0.1), "tuned", "a"),
    ("training", trained(0.4, decay=0.1), "continued", "a"),
]


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize(("name", "change", "expected", "parent"), DONE, ids=[row[0] for row in DONE])
def test_one_step_is_named(
    kind: str, name: str, change: Change, expected: str, parent: str | None, tmp_path: Path
) -> None:
    result = outcome(tmp_path, base(kind), change(base(kind)))
    assert (result.kind, result.parent) == (expected, parent)
    assert result.steps == (expected,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["int8", "prune-30", "heads", "rotate", "scale-qk", "adapter"])
def test_short_formats_hide_no_mark(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    change, expected, parent = next(row[1:] for row in DONE if row[0] == name)
    result = outcome(tmp_path, base(dtype=dtype), change(base(dtype=dtype)))
    assert (result.kind, result.parent) == (expected, parent)


CHAINS: list[tuple[list[Change], set[str]]] = [
    ([trained(0.1), step("int8")], {"tuned", "int8"}),
    ([trained(0.1), step("rotate"), step("scale-qk")], {"tuned", "rotated", "scaled"}),
    ([adapted, step("prune-30")], {"lora", "pruned"}),
    ([trained(0.1), step("heads"), step("neurons")], {"tuned", "heads", "neurons"}),
    ([adapted, step("depth")], {"lora", "depth"}),
    ([adapted, step("moe")], {"lora", "moe"}),
]


@pytest.mark.parametrize(("changes", "steps"), CHAINS, ids=["+".join(sorted(row[1])) for row in CHAINS])
def test_several_steps_are_named_together(changes: list[Change], steps: set[str], tmp_path: Path) -> None:
    child = base()
    for change in changes:
        child = change(child)
    result = outcome(tmp_path, base(), child)
    assert result.kind == "several"
    assert set(result.steps) == steps
    assert result.parent == "a"


@pytest.mark.parametrize(("one", "two"), [("int8", "prune-30"), ("depth", "moe"), ("prune-30", "moe")])
def test_signs_on_both_sides_name_no_parent(one: str, two: str, tmp_path: Path) -> None:
    result = outcome(tmp_path, step(one)(base()), step(two)(base()))
    assert result.kind == "several"
    assert result.parent is None
    assert "no parent is named" in result.evidence


def test_training_whose_signs_cancel_names_no_parent(tmp_path: Path) -> None:
    """Tails that grow say one direction, rows that decay the other."""
    still = outcome(tmp_path / "still", base(), trained(0.1, decay=0.0, tails=True)(base()))
    assert still.kind == "tuned"
    assert still.measures["kurtosis_t"] > 2
    assert still.parent != "a"
    shrunk = outcome(tmp_path / "shrunk", base(), trained(0.1, decay=0.02, tails=True)(base()))
    assert shrunk.measures["decay"] < -0.01
    assert shrunk.measures["decay_t"] < -2
    assert shrunk.measures["kurtosis_t"] == pytest.approx(still.measures["kurtosis_t"], rel=0.2)


def test_rows_that_decay_say_which_is_later_even_where_all_norms_fall(tmp_path: Path) -> None:
    result = outcome(tmp_path, base(), trained(0.05, decay=0.03)(base()))
    assert result.measures["growth"] < -0.5
    assert result.measures["growth_beside_decay"] == pytest.approx(0.5, abs=0.1)
    assert (result.kind, result.parent) == ("tuned", "a")


def test_a_copy_in_a_shorter_format_holds_less(tmp_path: Path) -> None:
    result = outcome(tmp_path, base(), base().to(torch.bfloat16))
    assert (result.kind, result.parent) == ("copy", "a")
    assert "coarser" in result.evidence
    same = outcome(tmp_path / "same", base(dtype=torch.bfloat16).float(), base(dtype=torch.bfloat16))
    assert (same.kind, same.parent) == ("copy", None)


@pytest.mark.parametrize("changes", [{"hidden_size": 64}, {"num_key_value_heads": 4}, {"intermediate_size": 64}])
def test_tensors_of_other_shapes_are_not_compared(changes: dict[str, int], tmp_path: Path) -> None:
    result = outcome(tmp_path, base(), base(**changes))
    assert (result.kind, result.parent) == ("unknown", None)


def test_strangers_of_one_shape_are_not_explained(tmp_path: Path) -> None:
    other = base()
    with torch.no_grad():
        for weight in other.parameters():
            weight.copy_(torch.randn(weight.shape))
    result = outcome(tmp_path, base(), other)
    assert (result.kind, result.parent) == ("unknown", None)
    assert "cosine" in result.evidence


def test_folded_norms_are_named_and_hide_what_else_was_done(tmp_path: Path) -> None:
    result = outcome(tmp_path, base(), step("fold")(base()))
    assert (result.kind, result.parent) == ("folded", None)
    assert "what else was done" in result.evidence


def test_growth_is_its_definition(tmp_path: Path) -> None:
    parent, child = base(), adapted(base())
    result = outcome(tmp_path, parent, child)
    before, after = ({name: w.detach() for name, w in model.named_parameters()} for model in (parent, child))

    def squares(x: Tensor) -> float:
        return float((x.double() ** 2).sum())

    moved = [name for name in before if not torch.equal(before[name], after[name])]
    grown = sum(squares(after[name]) - squares(before[name]) for name in moved)
    change = sum(squares(after[name].double() - before[name].double()) for name in moved)
    assert result.measures["growth"] == pytest.approx(grown / (2 * change), rel=1e-4)


ARCHITECTURES = [
    "gpt2",
    "phi3",
    "gpt_neox",
    "bloom",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
    "opt",
    "bert",
    "gemma3_text",
    "glm",
]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_layout_is_compared_as_a_whole(model_type: str, tmp_path: Path) -> None:
    """One more unit of rank in every layer's attention output, and nothing else, is an adapter in any architecture."""
    parent, child = make_model(model_type), make_model(model_type)
    copy = outcome(tmp_path / "copy", parent, child)
    assert (copy.kind, copy.parent) == ("copy", None)
    generator, num_changed = torch.Generator().manual_seed(0), 0
    endings = (
        "o_proj.weight",
        "out_proj.weight",
        "attn.c_proj.weight",
        "attention.dense.weight",
        "output.dense.weight",
    )
    for name, weight in child.named_parameters():
        if name.endswith(endings) and "att" in name:
            u, v = (torch.randn(n, generator=generator) for n in weight.shape)
            weight.data.add_(torch.outer(u, v))
            num_changed += 1
    assert num_changed == 3
    result = outcome(tmp_path / "adapter", parent, child)
    assert (result.kind, result.parent) == ("lora", "a")
    assert result.measures["changed_vectors"] == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_weights_that_are_no_numbers_explain_nothing(value: float, tmp_path: Path) -> None:
    child = base()
    with torch.no_grad():
        child.model.layers[1].mlp.up_proj.weight[0, 0] = value
        child.model.embed_tokens.weight[3] = value
    answer = outcome(tmp_path, base(), child)
    assert (answer.kind, answer.parent) == ("unknown", None)
    assert "nan" not in answer.evidence
    assert "cannot be squared" in answer.evidence or value == 3e38


@pytest.mark.parametrize(("name", "change", "expected", "parent"), DONE, ids=[row[0] for row in DONE])
def test_rows_that_stand_for_matrices_tell_the_same(
    name: str, change: Change, expected: str, parent: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = outcome(tmp_path / "whole", base(), change(base()))
    monkeypatch.setattr(tensors, "WHOLE_ELEMENTS", 256)
    monkeypatch.setattr(tensors, "SAMPLED_ELEMENTS", 1)
    monkeypatch.setattr(tensors, "MIN_ROWS", 12)
    monkeypatch.setattr(differences, "EMBEDDING_ELEMENTS", 1024)
    result = outcome(tmp_path / "rows", base(), change(base()))
    assert (result.kind, result.parent, result.steps) == (expected, parent, (expected,))
    assert ("rows at even distances stand" in result.evidence) == (name not in WHOLE)
    for measure in ("matrix_change", "embedding_change"):
        assert result.measures[measure] == pytest.approx(whole.measures[measure], rel=0.2, nan_ok=True)
    assert result.measures["decay"] == pytest.approx(whole.measures["decay"], rel=1e-4, nan_ok=True)  # of all rows


@pytest.mark.parametrize("name", ["int8", "depth", "moe", "heads", "training"])
def test_layers_compared_by_threads_tell_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = next(row[1] for row in DONE if row[0] == name)
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(outcome(tmp_path / str(threads), base(), change(base())))
    assert repr(results[0]) == repr(results[1])  # NaN is not equal to itself


WHOLE = {"nothing", "heads", "neurons", "rotate", "scale-qk", "scale-vo", "depth", "moe"}
"""Changes of which rows do not decide, or after which nothing that corresponds differs."""


def test_a_change_that_no_sampled_row_shows_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_row(model: Any) -> Any:
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3] += 0.1
        return model

    monkeypatch.setattr(tensors, "WHOLE_ELEMENTS", 256)
    monkeypatch.setattr(tensors, "SAMPLED_ELEMENTS", 1)
    monkeypatch.setattr(tensors, "MIN_ROWS", 5)
    assert 3 not in (tensors.sampled_rows(base().model.layers[1].mlp.up_proj.weight.shape) or [3])
    result = outcome(tmp_path, base(), one_row(base()))
    assert result.measures["changed_matrices"] > 0
    assert result.kind != "copy"
