"""Prompts that models of the zoo grow, and their answers, each against the model's own float64 forward pass."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from modelassay import zoo
from modelassay.commands.fingerprint import fingerprint
from modelassay.errors import CheckpointError, UsageError
from modelassay.experiments.fingerprinting.params import Params
from modelassay.fingerprints.bottom_k import (
    CannotPrompt,
    PromptConfig,
    PromptedModel,
    Prompts,
    compute_responses,
    overlap_corrected,
    overlap_exact,
    rank_biased_overlap,
    signals,
)
from modelassay.fingerprints.bottom_k.responses import last_hidden
from modelassay.fingerprints.methods import BY_BEHAVIOUR
from modelassay.models.load import load_model, load_tokenizer
from modelassay.models.reference import Model
from modelassay.storage.store import Store
from modelassay.zoo.resolve import resolve
from support.hub_server import serve_hub
from support.tiny_models import make_model, save
from support.toy_suite import environ, metrics_of, modelassay_with_models, only_run
from support.zoo_needs import make_needs, store_with_zoo

BASE, CHILD, STRANGER, COPY = (f"zoo:smoke/{name}" for name in ("base", "base+noise-5", "stranger-1", "base+rotate"))
ROWS, TOKENS = 512, 500


def ask_model(reference: str, store: Store, config: PromptConfig | None = None) -> PromptedModel:
    return PromptedModel(resolve(reference, store=store), store=store, config=config)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_with_zoo(tmp_path_factory.mktemp("cache") / "artifacts")


@pytest.fixture(scope="module")
def logits(store: Store) -> Callable[[str, Sequence[int]], Tensor]:
    """The last logits of a zoo model after some ids, in float64 and from the first token on."""
    models: dict[str, Any] = {}

    def ask(reference: str, ids: Sequence[int]) -> Tensor:
        if reference not in models:
            models[reference] = load_model(zoo.ensure(reference, store=store), dtype=torch.float64)
        with torch.no_grad():
            logits_V: Tensor = models[reference](input_ids=torch.tensor([list(ids)])).logits[0, -1]
        return logits_V

    return ask


@pytest.fixture(scope="module")
def grown(store: Store) -> Prompts:
    return ask_model(BASE, store).prompts


def test_every_token_is_one_of_the_least_likely_all_alike(
    grown: Prompts, logits: Callable[[str, Sequence[int]], Tensor]
) -> None:
    ranks: list[int] = []
    for prompts, rows in ((grown.exact, slice(None)), (grown.stable, slice(0, TOKENS - 3))):  # special tokens come last
        for prompt in prompts:
            assert len(prompt.ids) == 64
            for at in range(8, 64):
                values = logits(BASE, prompt.ids[:at])[rows]
                rank = int((values < values[prompt.ids[at]] - 1e-5).sum())
                assert rank < 50 or (prompts is grown.stable and grown.beyond)
                if prompts is grown.exact:
                    ranks.append(rank)
    counts = torch.histc(torch.tensor(ranks, dtype=torch.float64), bins=10, min=0, max=50)
    assert chisquare(counts).pvalue > 0.001
    assert len({prompt.ids for prompt in (*grown.exact, *grown.stable)}) == 10


def test_stable_prompts_survive_decoding_and_exact_ones_do_not(grown: Prompts, store: Store) -> None:
    tokenizer = load_tokenizer(zoo.ensure(BASE, store=store))
    for prompt in grown.stable:
        assert tokenizer.encode(prompt.text) == list(prompt.ids)
        assert max(prompt.ids) < TOKENS - 3
    assert any(tokenizer.encode(prompt.text) != list(prompt.ids) for prompt in grown.exact)
    for prompt in grown.exact:
        ids = [index for index in prompt.ids if index < TOKENS - 3]
        assert prompt.text == tokenizer.decode(ids)
    vocabulary = ask_model(BASE, store).vocabulary
    assert vocabulary is not None
    assert grown.inputs("stable", vocabulary) == [list(prompt.ids) for prompt in grown.stable]
    assert grown.inputs("exact", vocabulary) == [tokenizer(prompt.text).input_ids for prompt in grown.exact]


def test_a_model_of_another_tokenizer_is_given_the_text(grown: Prompts, store: Store) -> None:
    vocabulary = ask_model(BASE, store).vocabulary
    assert vocabulary is not None
    foreign = replace(grown, tokenizer_key="another", stable=(replace(grown.stable[0], ids=(1, 2, 3)),))
    assert foreign.inputs("stable", vocabulary) == [list(grown.stable[0].ids)]


def test_growth_is_settled_by_the_seed_and_not_by_the_number_of_prompts(
    grown: Prompts, store: Store, tmp_path: Path
) -> None:
    folder = zoo.ensure(BASE, store=store)
    again = ask_model(str(folder), store).prompts  # not the zoo's by name, so it grows anew
    assert (again.key, again.exact, again.source) == (grown.key, grown.exact, str(folder))
    assert ask_model(BASE, store, PromptConfig(seed=1)).prompts.key != grown.key
    fewer = ask_model(BASE, store, PromptConfig(num_prompts=2)).prompts
    assert [prompt.ids[:12] for prompt in fewer.stable] == [prompt.ids[:12] for prompt in grown.stable[:2]]
    assert ask_model(STRANGER, store).prompts.key != grown.key


def published(
    ask: Callable[[str, Sequence[int]], Tensor], grown: Prompts, tokenizer: Any, one: str, two: str
) -> list[float]:
    """The published score in a few lines of float64."""
    k, values = round(2000 / 151_936 * ROWS), []
    for prompt in grown.exact:
        ids = tokenizer(prompt.text).input_ids
        a, b = (set(ask(model, ids).argsort(stable=True)[:k].tolist()) for model in (one, two))
        values.append(len(a & b) / k)
    return values


@pytest.mark.parametrize("model", [CHILD, STRANGER])
def test_exact_is_the_published_definition(
    model: str, grown: Prompts, store: Store, logits: Callable[[str, Sequence[int]], Tensor]
) -> None:
    tokenizer = load_tokenizer(zoo.ensure(BASE, store=store))
    overlap = overlap_exact(ask_model(model, store).responses(grown), ask_model(BASE, store).responses(grown))
    assert overlap.k == 7
    assert overlap.per_prompt == pytest.approx(published(logits, grown, tokenizer, model, BASE), abs=1e-12)
    assert (0.5 < overlap.value < 1) if model == CHILD else overlap.value < 0.3


def test_corrected_ignores_padding_and_order_counts_in_rbo(
    grown: Prompts, store: Store, logits: Callable[[str, Sequence[int]], Tensor]
) -> None:
    a, b = ask_model(CHILD, store), ask_model(BASE, store)
    overlap = overlap_corrected(a.responses(grown), b.responses(grown))
    assert overlap.k == round(0.0132 * TOKENS)
    lists = [
        [logits(model, prompt.ids)[:TOKENS].argsort()[: overlap.k].tolist() for model in (CHILD, BASE)]
        for prompt in grown.stable
    ]
    assert overlap.per_prompt == pytest.approx([len({*x} & {*y}) / overlap.k for x, y in lists], abs=1e-12)
    scores = {name: method.score(a, b) for name, method in BY_BEHAVIOUR.items()}
    assert scores["bottom-k corrected"].value == pytest.approx(overlap.value)
    by_rank = [rank_biased_overlap(x, y) for x, y in lists]
    assert list(scores["bottom-k rbo"].per_role.values()) == pytest.approx(by_rank, abs=1e-9)
    assert "smoke/base generated the prompts" in scores["bottom-k exact"].alignment


def test_a_function_preserving_copy_is_one_model_and_a_stranger_is_none(store: Store) -> None:
    base = ask_model(BASE, store)
    for name, method in BY_BEHAVIOUR.items():
        copy, stranger = (method.score(ask_model(model, store), base).value for model in (COPY, STRANGER))
        assert copy > 0.95, name
        assert stranger < 0.35, name
    scores = signals(ask_model(COPY, store), base)
    assert scores["low"] <= 1 <= scores["high"] + 1e-9
    assert (scores["tied"], scores["chance"]) == (0, pytest.approx(7 / TOKENS))


def test_rows_of_any_length_in_one_batch_equal_each_alone(store: Store) -> None:
    model = load_model(zoo.ensure(BASE, store=store), dtype=torch.float64)
    rows = [
        torch.randint(0, TOKENS, (size,), generator=torch.Generator().manual_seed(size)).tolist()
        for size in (70, 3, 900, 64, 70, 1)
    ]
    alone = [model.model(input_ids=torch.tensor([row])).last_hidden_state[0, -1].detach() for row in rows]
    hidden = last_hidden(model, rows, name="base")
    assert hidden.dtype == torch.float32
    assert torch.allclose(hidden.double(), torch.stack(alone), atol=1e-6)
    assert model(input_ids=torch.tensor([rows[1]])).logits.shape == (1, 3, ROWS)  # nothing is left hooked


def test_what_was_answered_is_kept_and_needs_no_model_again(
    grown: Prompts, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ask_model(STRANGER, store).prompts
    first = ask_model(CHILD, store)
    compute_responses(first, [ask_model(BASE, store), ask_model(STRANGER, store)])
    expected = first.responses(grown).hidden

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Model, "load", refuse)
    again, base = ask_model(CHILD, store), ask_model(BASE, store)
    again.answer([other, base.prompts])
    assert all(torch.equal(again.responses(grown).hidden[kind], hidden) for kind, hidden in expected.items())
    assert 0.5 < overlap_corrected(again.responses(grown), base.responses(base.prompts)).value < 1
    with pytest.raises(AssertionError, match="a model was loaded"):
        ask_model(CHILD, store).answer([replace(grown, key="never heard")])


def test_a_model_that_cannot_be_asked_says_why(store: Store, tmp_path: Path) -> None:
    base = ask_model(BASE, store)
    bare = tmp_path / "bare"
    bare.mkdir()
    save(make_model("qwen2"), bare)
    silent = ask_model(str(bare), store)
    broken = shutil.copytree(zoo.ensure(BASE, store=store), tmp_path / "broken")
    model = load_model(broken)
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    model.save_pretrained(broken)
    mad = ask_model(str(broken), store)
    compute_responses(mad, [silent, base])
    for method in BY_BEHAVIOUR.values():
        for pair in ((silent, base), (base, silent)):
            score = method.score(*pair)
            assert math.isnan(score.value)
            assert score.reason == f"{bare}: the checkpoint has no tokenizer, so it cannot read text; put its tokenizer files beside it"  # fmt: skip
        assert "hidden states are not finite" in str(method.score(mad, base).reason)
        assert "logits are not finite, so it cannot generate prompts" in str(method.score(base, mad).reason)
    assert signals(silent, base) == signals(base, mad) == {}
    with pytest.raises(CannotPrompt, match="has no tokenizer"):
        ask_model(str(bare), store).responses(base.prompts)
    with pytest.raises(CheckpointError, match="not a folder|expected a folder"):
        ask_model(str(tmp_path / "nothing"), store)


@pytest.mark.nightly
def test_a_run_records_who_grew_the_prompts(store: Store, tmp_path: Path) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text(
        f"suite: fingerprinting\nquestion: relatives?\nprofiles:\n  mine: {{behaviour: true, against: [{BASE}, {STRANGER}]}}\n"
        f"matrix: {{model: [{BASE}, {CHILD}, {STRANGER}]}}\n"
    )
    make_needs(store, BASE, CHILD, STRANGER)
    env = environ(MODELASSAY_CACHE=str(store.root.parent))
    code, _, err = modelassay_with_models("run", suite, "--runs", tmp_path / "runs", env=env)
    assert code == 0, err
    metrics = metrics_of(only_run(tmp_path / "runs"))
    scores = {(cell, labels): value for (cell, name, labels), value in metrics.items()
             if name == "score" and "grown_by" in labels}  # fmt: skip
    assert len(scores) == 3 * len(BY_BEHAVIOUR)  # the child against both roots, the stranger against the base
    for name, method in BY_BEHAVIOUR.items():
        labels = str(sorted({"method": name, "other": BASE, "grown_by": BASE}.items()))
        expected = [method.score(ask_model(model, store), ask_model(BASE, store)).value for model in (CHILD, STRANGER)]
        assert sorted(value for (_, shown), value in scores.items() if shown == labels) == sorted(expected)
    assert sum(name == "bottom-k" for _, name, _ in metrics) == 3 * 5
    assert not Params(model=BASE).behaviour


@pytest.mark.nightly
def test_fingerprint_verb_asks_both_ways_and_fetches_a_repository_whole(store: Store, tmp_path: Path) -> None:
    with serve_hub() as hub:
        commit = hub.add("org/child", zoo.ensure(CHILD, store=store))
        env = environ(
            MODELASSAY_CACHE=str(store.root.parent), HF_HOME=str(tmp_path), HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0"
        )
        env.pop("HF_HUB_OFFLINE", None)
        code, out, err = modelassay_with_models(
            "fingerprint", BASE, f"hf:org/child@{commit}", "--behaviour", "--json", env=env
        )
    assert code == 0, err
    (pair,) = json.loads(out)["pairs"]
    a, b = ask_model(BASE, store), ask_model(CHILD, store)
    for name, method in BY_BEHAVIOUR.items():
        assert pair["methods"][f"{name}, base grows"]["value"] == pytest.approx(method.score(b, a).value)
        assert pair["methods"][f"{name}, child grows"]["value"] == pytest.approx(method.score(a, b).value)
    with pytest.raises(UsageError, match="leave one of them out"):
        fingerprint(
            [BASE, CHILD],
            suspect=None,
            background=None,
            figure=None,
            alpha=1e-6,
            attention_only=True,
            behaviour=True,
            evidence=None,
            report=print,
        )
