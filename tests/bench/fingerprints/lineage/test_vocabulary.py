"""Rows of tokens are compared where vocabularies differ, and what was done to a vocabulary or an output matrix is named."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelassay.fingerprints import lineage as lineages
from modelassay.fingerprints.lineage.rates import DIRECTIONS
from modelassay.fingerprints.lineage.vocabulary import shared_tokens
from modelassay.models.checkpoints import Checkpoint, open_checkpoint
from modelassay.zoo import transforms as zoo_transforms
from modelassay.zoo.same_function import pad_rows, renumber_rows, untie
from support import model_forms
from support.gguf_files import converted_llama
from support.lineage_cases import SIZES, base, both_orders, outcome, trained
from support.tiny_models import save

V = SIZES["vocab_size"]
NUMBERS = {f"t{number}": number for number in range(V)}


def saved(folder: Path, model: Any, vocabulary: Mapping[str, int]) -> Path:
    save(model, folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return folder


def order() -> Any:
    """A permutation without a fixed point among the first ten numbers."""
    return torch.from_numpy(np.r_[np.roll(np.arange(10), 1), np.arange(10, V)])


def moved() -> dict[str, int]:
    """The numbers of tokens after ``model.row[i] = old.row[order[i]]``."""
    return {f"t{old}": new for new, old in enumerate(order().tolist())}


def test_a_renumbered_vocabulary_leaves_everything_else(tmp_path: Path) -> None:
    with torch.no_grad():
        child = renumber_rows(base(), order())
    result = both_orders(saved(tmp_path / "a", base(), NUMBERS), saved(tmp_path / "b", child, moved()))
    assert (result.kind, result.steps, result.parent) == ("vocabulary", ("vocabulary",), None)
    assert f"{V} tokens are in both, of {V} of a and {V} of b, 10 of them under another number" in result.evidence
    assert f"{V} of {V} shared tokens hold equal rows; all other corresponding tensors are equal" in result.evidence


def test_training_shows_under_another_numbering(tmp_path: Path) -> None:
    plain = both_orders(saved(tmp_path / "a", base(), NUMBERS), saved(tmp_path / "b", trained(0.1)(base()), NUMBERS))
    with torch.no_grad():
        child = renumber_rows(trained(0.1)(base()), order())
    result = both_orders(tmp_path / "a", saved(tmp_path / "c", child, moved()))
    assert (result.steps, result.parent) == (("tuned", "vocabulary"), "a")
    assert result.measures["embedding_change"] == pytest.approx(plain.measures["embedding_change"], rel=1e-6)
    assert result.measures["decay_t"] == pytest.approx(plain.measures["decay_t"], rel=1e-6)


def test_rows_of_the_tokens_that_both_know_are_counted(tmp_path: Path) -> None:
    """Every second token is another one, with a row of its own."""
    child, numbers = base(), {f"t{number}" if number % 2 else f"u{number}": number for number in range(V)}
    with torch.no_grad():
        child.model.embed_tokens.weight[::2] = 0.3 * torch.randn(V // 2, SIZES["hidden_size"])
    result = both_orders(saved(tmp_path / "a", base(), NUMBERS), saved(tmp_path / "b", child, numbers))
    assert (result.kind, result.parent) == ("vocabulary", None)
    assert f"{V // 2} of {V // 2} shared tokens hold equal rows" in result.evidence


def test_rows_that_were_added_are_named(tmp_path: Path) -> None:
    with torch.no_grad():
        child = pad_rows(base(), torch.Generator().manual_seed(0), num_rows=20)
    result = both_orders(saved(tmp_path / "a", base(), NUMBERS), saved(tmp_path / "b", child, NUMBERS))
    assert (result.kind, result.parent) == ("vocabulary", None)
    assert f"a has {V} rows of the vocabulary, b {V + 20}" in result.evidence or f"a has {V + 20}" in result.evidence


def test_a_tokenizer_that_was_put_beside_the_weights_moves_no_rows(tmp_path: Path) -> None:
    result = both_orders(saved(tmp_path / "a", base(), NUMBERS), saved(tmp_path / "b", base(), moved()))
    assert (result.kind, result.parent) == ("vocabulary", None)
    assert "all other corresponding tensors are equal" in result.evidence
    assert f"rows of one number are more alike than rows of one token ({V} of {V} equal)" in result.evidence


def test_numbers_that_no_row_has_are_no_tokens(tmp_path: Path) -> None:
    numbers = {**moved(), "t5": V + 7}
    with torch.no_grad():
        child = renumber_rows(base(), order())
    result = both_orders(saved(tmp_path / "a", base(), NUMBERS), saved(tmp_path / "b", child, numbers))
    assert f"{V - 1} of {V - 1} shared tokens hold equal rows" in result.evidence


def test_rows_that_do_not_correspond_are_no_training(tmp_path: Path) -> None:
    """No file names a token: the body is equal, and rows in another order must not look like a change of every row."""
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(V))
    with torch.no_grad():
        child = renumber_rows(base(), shuffled)
    result = outcome(tmp_path, base(), child)
    assert (result.kind, result.parent) == ("vocabulary", None)
    assert "rows of embed_tokens.weight do not correspond" in result.evidence.replace("model.embed", "embed")
    assert "all other corresponding tensors are equal" in result.evidence


def test_a_renumbered_copy_in_a_coarser_format_says_so(tmp_path: Path) -> None:
    with torch.no_grad():
        child = renumber_rows(base(), order()).to(torch.bfloat16)
    result = both_orders(saved(tmp_path / "a", base(), NUMBERS), saved(tmp_path / "b", child, moved()))
    assert (result.kind, result.parent) == ("vocabulary", None)
    assert (
        f"{V} of {V} shared tokens hold equal rows; all other corresponding tensors are equal once rounded to"
        in result.evidence
    )


def test_without_shared_tokens_rows_are_compared_by_number(tmp_path: Path) -> None:
    numbers = {f"u{number}": number for number in range(V)}
    result = both_orders(saved(tmp_path / "a", base(), NUMBERS), saved(tmp_path / "b", base(), numbers))
    assert result.kind == "vocabulary"
    assert "too few tokens are shared to compare rows by text" in result.evidence


def test_an_output_matrix_of_its_own_is_compared_with_the_embedding(tmp_path: Path) -> None:
    with torch.no_grad():
        child = untie(base(), torch.Generator())
    result = outcome(tmp_path, base(), child)
    assert (result.kind, result.parent) == ("untied", None)
    assert "the same bits as its embedding" in result.evidence
    with torch.no_grad():
        child.lm_head.weight.add_(0.1 * torch.randn(child.lm_head.weight.shape))
    changed = outcome(tmp_path / "changed", base(), child)
    assert changed.kind == "untied"
    assert "at a cosine of 0.9" in changed.evidence


def test_experts_that_are_the_dense_network_are_counted(tmp_path: Path) -> None:
    settings = {"num_experts": 4, "experts_per_token": 2, "relative_std": 0.0}
    child = zoo_transforms.apply(base("llama"), "moe", seed=1, settings=settings)
    result = outcome(tmp_path, base("llama"), child)
    assert (result.kind, result.parent) == ("moe", "a")
    assert "6 of 6 dense matrices equal to an expert's" in result.evidence


def test_no_parent_is_named_without_the_rate_of_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(DIRECTIONS, "int8")  # type: ignore[arg-type]
    child = zoo_transforms.apply(base(), "int8", seed=1, settings={})
    result = outcome(tmp_path, base(), child)
    assert (result.kind, result.parent) == ("int8", None)
    assert "was not measured for this kind" in result.evidence
    assert "is not named as the parent" in result.evidence
    assert lineages.DIRECTIONS is DIRECTIONS


def test_tokens_that_a_gguf_file_marks_as_added_are_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer.json may list them among its words or not; under another number they are a change."""
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    source = {name: tensor.float().numpy() for name, tensor in model_forms.weights().items()}
    tokens = [f"t{at}" for at in range(model_forms.VOCAB)]

    def converted(name: str, tokens: list[str], num_added: int) -> Checkpoint:
        types = [1] * (len(tokens) - num_added) + [3] * num_added
        heads = (model_forms.HEADS, model_forms.KV_HEADS)
        path = converted_llama(
            tmp_path / name, source, "F16", heads=heads, head_dim=model_forms.HEAD_DIM, tokens=tokens, token_types=types
        )
        return open_checkpoint(path)

    whole = open_checkpoint(model_forms.folder(tmp_path / "m", model_forms.weights()))
    assert shared_tokens(whole, converted("added.gguf", tokens, 5)) is None
    moved = [*tokens[:-2], tokens[-1], tokens[-2]]
    assert shared_tokens(whole, converted("moved.gguf", moved, 5)) is not None
