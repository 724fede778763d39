"""The same function in another basis or vocabulary, on small random models none of whose sizes are alike."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from modelassay import zoo
from modelassay.errors import CheckpointError, UsageError
from modelassay.models.load import load_model, load_tokenizer
from modelassay.storage.store import Store
from modelassay.zoo import same_function
from modelassay.zoo.build import transform
from modelassay.zoo.make import ensure_text
from support.small_models import CASES, Case, logits, norms_in_given_precision, random_model, tensors

OF_ANY_VOCABULARY = ("quarot", "quarot-16", "signs", "untied", "mha", "padded")
TEXT = "Anna walks to the river. 花子さんは"


def rewrite(model: PreTrainedModel, step: str, seed: int = 5) -> PreTrainedModel:
    made_by, settings = zoo.FURTHER_STEPS[step]
    with torch.no_grad():
        return same_function.BY_NAME[made_by](model, torch.Generator().manual_seed(seed), **settings)


@pytest.mark.parametrize("step", OF_ANY_VOCABULARY)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_logits_of_the_old_rows_stay(case: Case, step: str) -> None:
    model = random_model(case)
    weights = tensors(model)
    with norms_in_given_precision():
        before = logits(model)
        after = rewrite(model, step)
        torch.testing.assert_close(logits(after)[..., :61], before, rtol=0, atol=1e-10)
    changed = {name for name, weight in tensors(after).items()
               if name not in weights or weight.shape != weights[name].shape or not torch.equal(weight, weights[name])}  # fmt: skip
    assert changed or (step == "untied" and not case.config().tie_word_embeddings)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rotation_in_single_precision_moves_logits_by_rounding_alone(case: Case) -> None:
    """By 1e-5 of the largest logit, whose size is 3 to 10."""
    model = random_model(case, torch.float32)
    before = logits(model)
    torch.testing.assert_close(logits(rewrite(model, "quarot")), before, rtol=0, atol=1e-5 * float(before.abs().max()))


def test_a_rotation_is_orthogonal_and_a_blockwise_one_stays_within_its_blocks() -> None:
    turned = {}
    for step in ("quarot", "quarot-16"):
        model = random_model(CASES[0])
        before: Tensor = model.model.embed_tokens.weight.detach().clone()
        after: Tensor = rewrite(model, step).model.embed_tokens.weight.detach()
        turned[step] = torch.linalg.lstsq(before, after).solution
        torch.testing.assert_close(turned[step] @ turned[step].T, torch.eye(36).double(), rtol=0, atol=1e-12)
        assert not model.config.tie_word_embeddings
        gains = [weight for name, weight in tensors(model).items() if "norm" in name]
        assert all(torch.equal(gain, torch.ones_like(gain)) for gain in gains)
    blocks = torch.block_diag(*(torch.ones(size, size) for size in (16, 16, 4))).bool()
    assert float(turned["quarot-16"][~blocks].abs().max()) < 1e-12
    assert float(turned["quarot"][~blocks].abs().mean()) > 0.05


def test_the_seed_decides_the_rotation() -> None:
    weights = [tensors(rewrite(random_model(CASES[1]), "quarot", seed))["lm_head.weight"] for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


def test_four_tenths_of_the_dimensions_change_sign_and_nothing_else() -> None:
    model = random_model(CASES[0])
    before = tensors(model)
    after = tensors(rewrite(model, "signs"))
    signs = (after["model.embed_tokens.weight"] / before["model.embed_tokens.weight"]).mean(0)
    assert sorted(signs.tolist()) == [-1.0] * 14 + [1.0] * 22  # 0.4 of 36
    assert all(torch.equal(after[name].abs(), before[name].abs()) for name in before)


def test_a_model_with_a_key_head_for_each_query_head_is_refused() -> None:
    model = rewrite(random_model(CASES[0]), "mha")
    assert model.config.num_key_value_heads == 6
    with pytest.raises(CheckpointError, match="num_key_value_heads is 6, as many as query heads"):
        rewrite(model, "mha")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tied model with the zoo's tokenizer of 500 tokens and 12 rows of padding."""
    folder = tmp_path_factory.mktemp("base")
    store = Store(tmp_path_factory.mktemp("store"))
    text = ensure_text(zoo.member("smoke/base").text, store)
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=512, bos_token_id=None, eos_token_id=497, pad_token_id=497,
                         tie_word_embeddings=True, initializer_range=0.2)  # fmt: skip
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).write_bytes((text / file).read_bytes())
    return folder


def spoken(folder: Path) -> tuple[list[str], Tensor, list[int]]:
    """The tokens of a text, the logits over the 500 tokens of the first tokenizer by their text, and the ids."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    ids = tokenizer.encode(TEXT + "<|im_end|>")
    with torch.no_grad():
        row: Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    known = sorted(set(tokenizer.get_vocab()) - {"zzqx"})
    assert tokenizer.decode(ids) == TEXT + "<|im_end|>"
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    return tokenizer.convert_ids_to_tokens(ids), row[:, tokenizer.convert_tokens_to_ids(known)], ids


@pytest.mark.parametrize("step", ["renumbered", "grown"])
def test_a_text_keeps_its_tokens_and_their_logits_under_other_numbers(step: str, folder: Path, tmp_path: Path) -> None:
    child = transform(folder, step, tmp_path / "child", seed=3)
    (tokens, before, ids), (new_tokens, after, new_ids) = spoken(folder), spoken(child)
    assert new_tokens == tokens
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    if step == "grown":
        assert new_ids == [*ids[:-1], ids[-1] + 1]  # the special token moved up
        assert load_model(child).config.vocab_size == 513
        assert len(load_tokenizer(child)) == 501
    else:
        assert sum(old == new for old, new in zip(ids, new_ids, strict=True)) <= 3  # the last one, and chance
        assert new_ids[-1] == ids[-1]
    assert load_model(child).config.tie_word_embeddings


def test_another_tokenizer_takes_the_rows_of_tokens_that_both_know(folder: Path, tmp_path: Path) -> None:
    """Renumbered by 3: every token of the new one is known, so all rows are there again."""
    other = transform(folder, "renumbered", tmp_path / "other", seed=3)
    child = transform(folder, "retokenised", tmp_path / "child", other=other, settings={"num_rows": 520})
    torch.testing.assert_close(spoken(child)[1], spoken(folder)[1], rtol=0, atol=1e-5)
    assert (child / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    rows: Any = load_model(child).get_input_embeddings()
    assert rows.weight.shape == (520, 24)
    assert not rows.weight[500:].any()


def test_mistakes_with_vocabularies_say_what_to_do(folder: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    with pytest.raises(CheckpointError, match="500 tokens for 400 rows; give more rows"):
        transform(folder, "retokenised", new, other=folder, settings={"num_rows": 400})
    with pytest.raises(UsageError, match="nothing else, takes a second model"):
        transform(folder, "retokenised", new)
    grown = transform(folder, "grown", tmp_path / "grown")
    with pytest.raises(CheckpointError, match="has the token 'zzqx' already; it can grow by it once"):
        transform(grown, "grown", new)
    (grown / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(CheckpointError, match="expected tokens with their ids under model.vocab"):
        transform(grown, "renumbered", new)
    assert not new.exists()
