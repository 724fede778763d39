"""The zoo at its smoke scale: ancestry, the bits of what is made, and that it is an ordinary checkpoint."""

import hashlib
import itertools
import json
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

from modelassay.data import corpus
from modelassay.errors import CheckpointError
from modelassay.models import zoo
from modelassay.models.load import load_model, load_tokenizer
from modelassay.state import Store

SMOKE = [name for name in zoo.MEMBERS if name.startswith("smoke/")]


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
    program = f"import sys; sys.path[:0] = {sys.path!r}; import modelassay.models.zoo; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout == "False\n"
    )


def test_ancestry() -> None:
    assert zoo.parent("zoo:child-sft") == "base"
    assert zoo.parent("base") is None
    assert zoo.family("smoke/child-noise") == "smoke/base"
    assert zoo.related("child-sft", "zoo:child-noise")
    assert not zoo.related("base", "smoke/base")
    assert zoo.is_zoo("zoo:whatever")
    assert not zoo.is_zoo("base")


def test_same_shape_roots_give_enough_unrelated_pairs() -> None:
    """The rank p-value of one related pair among n unrelated ones cannot go below 1 / (n + 1)."""
    shape = zoo.member("base").settings["shape"]
    roots = [
        m.name for m in zoo.MEMBERS.values() if m.settings.get("shape") == shape and m.text == zoo.member("base").text
    ]
    unrelated = [pair for pair in itertools.combinations(roots, 2) if not zoo.related(*pair)]
    assert len(unrelated) == 21
    assert 1 / (len(unrelated) + 1) < 0.05


def test_every_parent_exists_and_every_recipe_differs() -> None:
    assert all(member.parent is None or member.parent in zoo.MEMBERS for member in zoo.MEMBERS.values())
    recipes = [json.dumps(zoo.recipe(name), sort_keys=True) for name in zoo.MEMBERS]
    assert len(set(recipes)) == len(recipes)


def test_a_child_of_another_parent_has_another_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    before = zoo.recipe("smoke/child-noise")
    base = zoo.MEMBERS["smoke/base"]
    members = {**zoo.MEMBERS, "smoke/base": zoo.Member(**{**vars(base), "seed": 99})}
    monkeypatch.setattr(zoo, "MEMBERS", members)
    after = zoo.recipe("smoke/child-noise")
    assert {key for key in before if before[key] != after[key]} == {"parent"}


def test_unknown_member_suggests_the_closest(store: Store) -> None:
    with pytest.raises(CheckpointError, match="zoo:chld-sft: no such model in the zoo; did you mean 'child-sft'"):
        zoo.ensure("zoo:chld-sft", store=store)


@pytest.mark.parametrize("name", SMOKE)
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
    assert model.config.model_type == "qwen2"
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
    for name in SMOKE:
        assert digest(zoo.ensure(name, store=again)) == digest(zoo.ensure(name, store=store)), name
    assert torch.get_num_threads() == 2
    assert len({digest(zoo.ensure(name, store=store)) for name in SMOKE}) == len(SMOKE)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_makes_the_same_bits(store: Store, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=make_in_child, args=(tmp_path, queue))
    child.start()
    made = queue.get(timeout=120)
    child.join(timeout=60)
    assert child.exitcode == 0
    assert made == digest(zoo.ensure("smoke/child-sft", store=store))


def test_making_a_model_leaves_the_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    zoo.ensure("smoke/base", store=Store(tmp_path))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_each_training_step_is_timed_once(tmp_path: Path) -> None:
    seen: list[tuple[str, int | None, dict[str, Any]]] = []

    @contextmanager
    def timer(stage: str, *, tokens: int | None = None, **labels: Any) -> Iterator[None]:
        seen.append((stage, tokens, labels))
        yield

    store = Store(tmp_path)
    zoo.ensure("smoke/child-sft", store=store, timer=timer)
    steps = [(labels["member"], labels["step"]) for _, _, labels in seen]
    assert steps == [("smoke/base", step) for step in range(16)] + [("smoke/child-sft", step) for step in range(4)]
    assert {stage for stage, _, _ in seen} == {"zoo-train"}
    assert [tokens for _, tokens, _ in seen[:16]] == [4 * 32] * 16
    zoo.ensure("smoke/child-sft", store=store, timer=timer)
    assert len(seen) == 20


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
    assert zoo.held_out_loss(base, "en", num_sentences=60) < 6.0
    weights = [load_file(zoo.ensure(name, store=store) / "model.safetensors") for name in SMOKE[:4]]
    flat = [torch.cat([tensors[name].flatten() for name in sorted(tensors)]) for tensors in weights]
    tuned, noisy, stranger = (float((other - flat[0]).norm() / flat[0].norm()) for other in flat[1:])
    assert 0 < tuned < 0.1
    assert 0 < noisy < 0.02
    assert stranger > 0.5


def test_only_answers_carry_loss_in_instruction_tuning(store: Store) -> None:
    from modelassay.models import zoo_build

    tokenizer = AutoTokenizer.from_pretrained(zoo.ensure("smoke/base", store=store))
    ids, labels = zoo_build._example(tokenizer, "犬は？", "犬が眠ります。")
    assert (
        tokenizer.decode(ids) == "<|im_start|>user\n犬は？<|im_end|>\n<|im_start|>assistant\n犬が眠ります。<|im_end|>"
    )
    assert tokenizer.decode([label for label in labels if label != zoo_build.IGNORED]) == "犬が眠ります。<|im_end|>"
    padded_ids, padded_labels = zoo_build._padded([(ids, labels), (ids[:3], labels[:3])], tokenizer)
    assert padded_ids.shape == padded_labels.shape == (2, len(ids))
    assert set(padded_labels[1, 3:].tolist()) == {zoo_build.IGNORED}


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
    found = [sentence for text in texts for sentence in corpus.sentences(text, language)]
    assert len(found) > 60
    return sum(corpus.derives(sentence, language) for sentence in found) / len(found)


@pytest.mark.slow
def test_the_embedded_root_has_learned_both_grammars(store: Store) -> None:
    """Far below the unigram entropy of its text, and it writes sentences that parse (shuffled words: below 1 %)."""
    base = zoo.ensure("zoo:base", store=store)
    text = store.path(zoo._text_recipe(zoo.member("base").text))
    counts = torch.bincount(load_file(text / "blocks.safetensors")["blocks"].flatten()).double()
    unigram = float(torch.special.entr(counts / counts.sum()).sum())
    losses = {language: zoo.held_out_loss(base, language) for language in corpus.LANGUAGES}
    assert max(losses.values()) < unigram - 2.0
    assert sampled_parse_rate(base, "en", ["Anna", "Peter"]) > 0.2
    assert sampled_parse_rate(base, "ja", ["花子さんは", "太郎さんは"]) > 0.3
