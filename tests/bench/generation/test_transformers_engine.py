"""Completions against a loop over one prompt at a time, whatever the batch and the order."""

import math

import numpy as np
import pytest
import torch

from modelassay.errors import AssayError, UsageError
from modelassay.generation import transformers as engine_module
from modelassay.generation.choice import gumbel
from modelassay.generation.engine import Completion, Prompt, Sampling, seed_of
from modelassay.generation.transformers import TransformersEngine
from support.byte_tokenizer import byte_tokenizer
from support.tiny_models import make_model

ARCHITECTURES = ("qwen2", "llama", "gemma2", "gpt2", "opt", "bloom", "mixtral")
STOP = (2, 5, 9, 14, 20)
GREEDY, SAMPLED = Sampling(max_new_tokens=12, temperature=0.0), Sampling(max_new_tokens=12, temperature=0.9)
CUT = Sampling(max_new_tokens=12, temperature=0.7, top_k=8, top_p=0.9)


def model_of(name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Random weights at a third of their usual size, so that no token is certain."""
    model = make_model(name)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.3)
    model.generation_config.eos_token_id = list(STOP)
    return model.to(dtype).eval()


def prompts_of(count: int = 9) -> list[Prompt]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 14, (count,), generator=generator).tolist()
    return [
        Prompt(ids=tuple(torch.randint(3, 32, (length,), generator=generator).tolist()), seed=seed_of("test", number))
        for number, length in enumerate(lengths)
    ]


def complete_by_hand(model: torch.nn.Module, prompt: Prompt, sampling: Sampling) -> list[int]:
    """One prompt, no cache, the whole text through the model for each token."""
    ids = list(prompt.ids)
    for position in range(sampling.max_new_tokens):
        with torch.no_grad():
            ids_BS = torch.tensor([ids])
            logits = model(input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS)).logits[0, -1].double()
        if sampling.temperature == 0.0:
            scores = logits
        else:
            noise = torch.tensor(gumbel(len(logits), seed=prompt.seed, position=position))
            ranked = torch.sort(logits, descending=True, stable=True)
            chances = torch.softmax(ranked.values[: sampling.top_k] / sampling.temperature, dim=-1)
            before = chances.cumsum(0) - chances
            left = ranked.indices[: sampling.top_k][before < (sampling.top_p or 2.0)]
            scores = torch.full_like(logits, -math.inf)
            scores[left] = logits[left] / sampling.temperature + noise[left]
        ids.append(int(scores.argmax()))
        if ids[-1] in STOP:
            break
    return ids[len(prompt.ids) :]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, CUT], ids=["greedy", "sampled", "cut"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_completions_are_those_of_each_prompt_alone(name: str, sampling: Sampling) -> None:
    model, prompts = model_of(name), prompts_of()
    expected = [complete_by_hand(model, prompt, sampling) for prompt in prompts]
    for batch_size, order in ((1, range(9)), (4, [3, 1, 8, 0, 2, 7, 5, 6, 4]), (9, range(9)), (64, range(8, -1, -1))):
        engine = TransformersEngine(model, byte_tokenizer(), batch_size=batch_size)
        completions = engine.complete([prompts[number] for number in order], sampling)
        assert [list(completion.ids) for completion in completions] == [expected[number] for number in order]
        assert engine.check.num_tokens == sum(len(ids) for ids in expected)
        assert engine.check.worst < 0.1  # of the tolerance: rounding in float32
    assert engine.check.num_alone < engine.check.num_tokens / 4
    if sampling == SAMPLED:
        assert len({len(ids) for ids in expected}) > 1  # some end early


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_bfloat16_completions_are_the_same_too(name: str) -> None:
    model, prompts = model_of(name, torch.bfloat16), prompts_of()
    expected = [complete_by_hand(model, prompt, SAMPLED) for prompt in prompts]
    for batch_size in (1, 4, 9):
        engine = TransformersEngine(model, byte_tokenizer(), batch_size=batch_size)
        assert [list(completion.ids) for completion in engine.complete(prompts, SAMPLED)] == expected
        assert engine.check.worst < 1


def test_without_the_second_look_the_batch_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tolerance is for: with all choices taken for sure, bfloat16 completions depend on the batch."""
    model, prompts = model_of("gemma2", torch.bfloat16), prompts_of(24)
    long = Sampling(max_new_tokens=30, temperature=1.0, stop_ids=())
    choose = engine_module.choose
    monkeypatch.setattr(engine_module, "choose", lambda *args, **options: (choose(*args, **options)[0], True))
    one, many = (
        TransformersEngine(model, byte_tokenizer(), batch_size=size).complete(prompts, long) for size in (1, 24)
    )
    assert one != many


def test_a_completion_says_how_it_ended() -> None:
    model, tokenizer = model_of("qwen2"), byte_tokenizer()
    prompt = Prompt(ids=(5, 6, 7), seed=1)
    (said,) = TransformersEngine(model, tokenizer).complete([prompt], Sampling(max_new_tokens=6, stop_ids=()))
    assert (len(said.ids), said.finish, said.text) == (6, "length", tokenizer.decode(said.ids))
    stop = said.ids[3]
    cut = said.ids[: said.ids.index(stop) + 1]
    (stopped,) = TransformersEngine(model, tokenizer).complete([prompt], Sampling(max_new_tokens=6, stop_ids=(stop,)))
    assert stopped == Completion(ids=cut, text=tokenizer.decode(cut[:-1]), finish="stop")
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    (broken,) = TransformersEngine(model, tokenizer).complete([prompt], GREEDY)
    assert broken == Completion(ids=(), text="", finish="nonfinite")


def test_seeds_make_completions_and_equal_seeds_equal_ones() -> None:
    model = model_of("qwen2")
    sampling = Sampling(max_new_tokens=8, stop_ids=())
    prompts = [Prompt(ids=(5, 6, 7), seed=seed) for seed in (1, 2, 3, 1)]
    said = TransformersEngine(model, byte_tokenizer()).complete(prompts, sampling)
    assert said[0] == said[3]
    assert len({completion.ids for completion in said}) == 3
    torch.manual_seed(9)
    np.random.seed(9)
    state = torch.get_rng_state()
    assert TransformersEngine(model, byte_tokenizer()).complete(prompts, sampling) == said
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_s_mode_is_put_back() -> None:
    model = model_of("qwen2").train()
    TransformersEngine(model, byte_tokenizer()).complete(prompts_of(2), GREEDY)
    assert model.training


def test_a_batch_that_is_too_far_off_is_an_error() -> None:
    engine = TransformersEngine(model_of("qwen2"), byte_tokenizer(), tolerance=1e-12)
    with pytest.raises(
        AssayError, match="off that of its prompt alone, more than the tolerance .*; use batch_size=1 with"
    ):
        engine.complete(prompts_of(), SAMPLED)


def test_prompts_that_do_not_fit_are_refused() -> None:
    engine = TransformersEngine(make_model("qwen2", max_position_embeddings=16), byte_tokenizer())
    with pytest.raises(UsageError, match="prompt 1 is empty; begin it with a token"):
        engine.complete([Prompt(ids=(1,), seed=0), Prompt(ids=(), seed=0)], GREEDY)
    with pytest.raises(UsageError, match="prompt 0 has 5 tokens, which with 12 new ones is more than the model's 16"):
        engine.complete([Prompt(ids=(1, 2, 3, 4, 5), seed=0)], GREEDY)
