"""The zoo at its smoke scale: ancestry, the bits of what is made, and that it is an ordinary checkpoint."""

import hashlib
import logging
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelassay import zoo
from modelassay.data import corpus
from modelassay.errors import CheckpointError
from modelassay.evaluation import loss
from modelassay.evaluation.loss import held_out_loss
from modelassay.models.load import load_model, load_tokenizer
from modelassay.storage.store import Store, content_key
from modelassay.training.chat import answered
from modelassay.zoo import ancestry as zoo_kinship
from modelassay.zoo import catalogue as zoo_members
from modelassay.zoo import make, recipes

SETTLED = {
    "base": "971df5ca8fc5bc99", "child-sft": "1f110db43ba2af4f", "child-noise": "a566d63d054f91a9",
    "stranger-1": "5afc9e7360afc9c9", "stranger-6": "715385b05a022ae4", "stranger-shape": "6d6dd0351cd933b8",
    "smoke/base": "655d24dddd83d6af", "smoke/child-sft": "e00e1fc78d04c16d", "smoke/child-noise": "a566d63d054f91a9",
    "smoke/stranger-1": "a19fc80d803004ae", "smoke/stranger-shape": "41fd7f706e307898",
}  # fmt: skip
"""Members that published runs name -> key of how they are made, without the versions of libraries."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """A process that has used a pool of threads, which neither the result nor a forked child may notice."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.rand(600, 600) @ torch.rand(600, 600)
    yield
    torch.set_num_threads(before)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def make_in_child(root: Path, queue: Any) -> None:
    queue.put(digest(zoo.ensure("smoke/child-sft", store=Store(root))))


def test_importing_the_zoo_imports_no_torch() -> None:
    program = f"import sys; sys.path[:0] = {sys.path!r}; import modelassay.zoo; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout == "False\n"
    )


@pytest.mark.parametrize("name", SETTLED)
def test_the_oldest_members_keep_their_recipes(name: str) -> None:
    """Else the artifacts and runs that name them would silently mean other models."""
    recipe = zoo.recipe(name)
    assert content_key([recipe[key] for key in ("made_by", "seed", "settings")]) == SETTLED[name]
    assert recipe.keys() >= {"kind", "text", "parent", "num_threads", "version", "torch", "transformers", "tokenizers"}
    assert len(recipe) == 11
    text = recipes._fields(zoo.member(name).text)
    assert content_key(text) == ("36977df33c1dd321" if name.startswith("smoke/") else "943f0f67be1ff8f0")


def test_a_child_of_another_parent_has_another_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    before = zoo.recipe("smoke/child-noise")
    base = zoo.MEMBERS["smoke/base"]
    members = {**zoo.MEMBERS, "smoke/base": zoo.Member(**{**vars(base), "seed": 99})}
    monkeypatch.setattr(zoo_members, "MEMBERS", members)
    after = zoo.recipe("smoke/child-noise")
    assert {key for key in before if before[key] != after[key]} == {"parent"}


def test_unknown_member_suggests_the_closest(store: Store) -> None:
    with pytest.raises(CheckpointError, match="zoo:chld-sft: no such model in the zoo; did you mean 'child-sft'"):
        zoo.ensure("zoo:chld-sft", store=store)


@pytest.mark.parametrize("name", zoo.SMOKE)
def test_a_member_is_an_ordinary_checkpoint(name: str, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    folder = zoo.ensure(f"zoo:{name}", store=store)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    finally:
        logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert {key: len(value) for key, value in info.items() if value} == {}
    assert model.config.model_type == ("qwen2_moe" if zoo.member(name).num_experts else "qwen2")
    shape = zoo.member(name).shape
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (shape.num_layers, shape.hidden_size)
    assert model.config.num_key_value_heads == shape.num_kv_heads
    assert model.dtype == torch.float32
    assert len(tokenizer) == 500 < model.config.vocab_size == 512
    text = "Anna 花子さんは walks.\n<|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text)[-1] == 499


def test_the_text_of_the_corpus_needs_no_unknown_token(store: Store) -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo.ensure("smoke/base", store=store))
    for language in corpus.LANGUAGES:
        for paragraph in corpus.generate(language, seed=77, num_sentences=40):
            ids = tokenizer.encode(paragraph)
            assert tokenizer.decode(ids) == paragraph
            assert tokenizer.eos_token_id not in ids


@pytest.mark.usefixtures("two_threads")
def test_the_same_recipe_gives_the_same_bits(store: Store, tmp_path: Path) -> None:
    again = Store(tmp_path)
    torch.manual_seed(4321)
    for name in zoo.SMOKE:
        assert digest(zoo.ensure(name, store=again)) == digest(zoo.ensure(name, store=store)), name
    assert torch.get_num_threads() == 2
    assert len({digest(zoo.ensure(name, store=store)) for name in zoo.SMOKE}) == len(zoo.SMOKE)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_makes_the_same_bits(store: Store, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=make_in_child, args=(tmp_path, queue))
    child.start()
    child_digest = queue.get(timeout=120)
    child.join(timeout=60)
    assert child.exitcode == 0
    assert child_digest == digest(zoo.ensure("smoke/child-sft", store=store))


def test_making_a_model_leaves_the_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    zoo.ensure("smoke/base", store=Store(tmp_path))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_each_training_step_is_timed_once(tmp_path: Path) -> None:
    units: list[tuple[str, int | None, dict[str, Any]]] = []

    @contextmanager
    def timer(stage: str, *, tokens: int | None = None, **labels: Any) -> Iterator[None]:
        units.append((stage, tokens, labels))
        yield

    store = Store(tmp_path)
    zoo.ensure("smoke/child-sft", store=store, timer=timer)
    steps = [(labels["member"], labels["step"]) for _, _, labels in units]
    assert steps == [("smoke/base", step) for step in range(16)] + [("smoke/child-sft", step) for step in range(4)]
    assert {stage for stage, _, _ in units} == {"zoo-train"}
    assert [tokens for _, tokens, _ in units[:16]] == [4 * 32] * 16
    zoo.ensure("smoke/child-sft", store=store, timer=timer)
    assert len(units) == 20


def test_noise_is_relative_to_each_matrix(store: Store) -> None:
    base = load_file(zoo.ensure("smoke/base", store=store) / "model.safetensors")
    noisy = load_file(zoo.ensure("smoke/child-noise", store=store) / "model.safetensors")
    for name, weight in base.items():
        difference = (noisy[name].double() - weight.double()).std() / weight.double().std()
        # The std of n standard normals is 1 +- 1/sqrt(2n); five of those on the smallest matrix, 512 elements.
        assert float(difference) == (0.0 if weight.ndim < 2 else pytest.approx(0.01, rel=0.16)), name


def test_training_lowers_the_loss_and_a_child_stays_near_its_parent(store: Store) -> None:
    """An untrained model of 512 rows is at log 512 = 6.24 nats or above."""
    base = zoo.ensure("smoke/base", store=store)
    assert held_out_loss(base, "en", num_sentences=60) < 6.0
    names = [f"smoke/{name}" for name in ("base", "child-sft", "child-noise", "stranger-1")]
    weights = [load_file(zoo.ensure(name, store=store) / "model.safetensors") for name in names]
    flat = [torch.cat([tensors[name].flatten() for name in sorted(tensors)]) for tensors in weights]
    tuned, noisy, stranger = (float((other - flat[0]).norm() / flat[0].norm()) for other in flat[1:])
    assert 0 < tuned < 0.1
    assert 0 < noisy < 0.02
    assert stranger > 0.5


@pytest.mark.slow
def test_the_length_of_examples_is_what_training_distance_counts(tmp_path: Path) -> None:
    folder = make.ensure_text(zoo.member("base").text, Store(tmp_path))
    tokenizer = load_tokenizer(folder)
    for language, expected in zoo_kinship.TOKENS_PER_EXAMPLE.items():
        pairs = corpus.instructions(language, seed=0, num_examples=400)
        lengths = [
            len(answered(tokenizer, [{"role": "user", "content": request}], answer + "<|im_end|>").ids)
            for request, answer in pairs
        ]
        assert sum(lengths) / len(lengths) == pytest.approx(expected, rel=0.02)


def sampled_parse_rate(folder: Path, language: str, prompts: list[str]) -> float:
    """Fraction of finished sentences that the grammar derives, 32 samples of 64 tokens a prompt at temperature 0.6."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    texts: list[str] = []
    torch.manual_seed(0)
    for prompt in prompts:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer.encode(prompt)]] * 32)
        rows = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=True, top_k=0, temperature=0.6
        )  # fmt: skip
        texts += [tokenizer.decode(row[1:].tolist()).split("<|endoftext|>")[0] for row in rows]
    sentences = [sentence for text in texts for sentence in corpus.sentences(text, language)]
    assert len(sentences) > 60
    return sum(corpus.derives(sentence, language) for sentence in sentences) / len(sentences)


def test_utility_is_the_change_against_the_parent(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = (zoo.utility(f"smoke/{name}", store=store) for name in ("base", "child-sft"))
    assert base.keys() == {"loss_en", "loss_ja"}
    folder = zoo.ensure("smoke/child-sft", store=store)
    for language in corpus.LANGUAGES:
        assert tuned[f"loss_{language}"] == pytest.approx(held_out_loss(folder, language), abs=1e-5)  # fp32
        assert tuned[f"parent_loss_{language}"] == base[f"loss_{language}"]
        assert tuned[f"change_{language}"] == tuned[f"loss_{language}"] - base[f"loss_{language}"]
    assert tuned["change_ja"] < 0
    preserved = zoo.utility("smoke/base+scale-qk", store=store)
    assert preserved["change_en"] == pytest.approx(0, abs=1e-6)
    monkeypatch.setattr(loss, "held_out_loss", None)
    assert zoo.utility("smoke/child-sft", store=store) == tuned


@pytest.mark.parametrize("step", zoo.PRESERVING)
def test_a_preserving_member_says_what_its_parent_says(step: str, store: Store) -> None:
    """Logits of size 1 to 4 in fp32, after two layers: a few units in the last place, 5e-7 each."""
    base, child = (load_model(zoo.ensure(name, store=store)) for name in ("smoke/base", f"smoke/base+{step}"))
    ids = torch.randint(500, (4, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(child(input_ids=ids).logits, base(input_ids=ids).logits, rtol=0, atol=2e-5)
    assert digest(zoo.ensure("smoke/base", store=store)) != digest(zoo.ensure(f"smoke/base+{step}", store=store))


def test_an_adapter_changes_attention_in_low_rank_and_nothing_else(store: Store) -> None:
    base, merged = (
        load_file(zoo.ensure(name, store=store) / "model.safetensors") for name in ("smoke/base", "smoke/base+lora")
    )
    assert base.keys() == merged.keys()
    for name, weight in base.items():
        difference = merged[name].double() - weight.double()
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")):
            values = torch.linalg.svdvals(difference)
            assert float(values[0]) > 1e-4
            assert float(values[8:].max()) < 1e-6  # rank 8, but for the rounding of the sum to fp32
        else:
            assert torch.equal(merged[name], weight), name


def test_a_merge_is_the_mean_of_both_tuned_children(store: Store) -> None:
    one, two, merged = (
        load_file(zoo.ensure(f"smoke/{name}", store=store) / "model.safetensors")
        for name in ("base+sft-en", "child-sft", "base+merge")
    )
    for name, weight in merged.items():
        torch.testing.assert_close(
            weight.double(), (one[name].double() + two[name].double()) / 2, rtol=1e-7, atol=1e-12
        )


def test_texts_share_a_tokenizer_and_differ_in_what_they_say(store: Store) -> None:
    def blocks(name: str) -> torch.Tensor:
        folder = store.path(recipes.text_recipe(zoo.member(name).text))
        return load_file(folder / "blocks.safetensors")["blocks"]

    names = [f"smoke/{name}" for name in ("base", "stranger-data", "stranger-mix", "base+cpt-100")]
    folders = [zoo.ensure(name, store=store) for name in names]
    assert len({(folder / "tokenizer.json").read_bytes() for folder in folders}) == 1
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    texts = [tokenizer.decode(blocks(name).flatten().tolist()) for name in names]
    assert len({text[:60] for text in texts[1:]}) == 2
    share = [sum(character > "\u3000" for character in text) / len(text) for text in texts]
    assert share[0] == pytest.approx(share[1], abs=0.08)
    assert min(share[2:]) > share[0] + 0.15
    assert texts[2][:40] != texts[3][:40]


@pytest.mark.nightly
@pytest.mark.slow
def test_the_embedded_root_has_learned_both_grammars(store: Store) -> None:
    """Far below the unigram entropy of its text, and it writes sentences that parse (shuffled words: below 1 %)."""
    base = zoo.ensure("zoo:base", store=store)
    text = store.path(recipes.text_recipe(zoo.member("base").text))
    counts = torch.bincount(load_file(text / "blocks.safetensors")["blocks"].flatten()).double()
    unigram = float(torch.special.entr(counts / counts.sum()).sum())
    losses = {language: held_out_loss(base, language) for language in corpus.LANGUAGES}
    assert max(losses.values()) < unigram - 2.0
    assert sampled_parse_rate(base, "en", ["Anna", "Peter"]) > 0.2
    assert sampled_parse_rate(base, "ja", ["花子さんは", "太郎さんは"]) > 0.3
