"""Letters' log-probabilities against a naive loop, and tokenizers that cut " A" in several ways."""

import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modelassay.errors import UsageError
from modelassay.evaluation.choices import Question, answer_questions, letter_tokens, prompt_of
from support.byte_tokenizer import byte_tokenizer
from support.tiny_models import make_model

QUESTIONS = [
    Question(text="Which is a fish?", options=("trout", "oak", "granite", "swift"), answer=0),
    Question(text="犬は？", options=("眠る", "光る"), answer=1),
    Question(text=" Two and two? ", options=("1", "2", "3", "4", "5", "6"), answer=3),
]


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Of bytes, in which a space and a capital letter become one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [f"Ġ{letter}" for letter in "ABCDEF"]
    vocabulary = {token: index for index, token in enumerate(["</s>", *alphabet, *merged])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", letter) for letter in "ABCDEF"]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def by_hand(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, text: str, letters: str) -> list[float]:
    """The whole row through the model for each letter, and the log-probability of its last token."""
    found = []
    for letter in letters:
        ids = tokenizer.encode(f"{text} {letter}")
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].double()
        chances = torch.exp(logits[-2] - logits[-2].max())
        found.append(math.log(float(chances[ids[-1]] / chances.sum())))
    return found


@pytest.mark.parametrize("make", [byte_tokenizer, merging_tokenizer])
def test_answers_are_the_letters_probabilities(make: type) -> None:
    tokenizer, model = make(), make_model("qwen2", vocab_size=300)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.3)
    answers = answer_questions(model, tokenizer, QUESTIONS)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        raw = by_hand(model, tokenizer, prompt_of(question), "ABCDEF"[: len(question.options)])
        total = math.log(sum(map(math.exp, raw)))
        assert answer.log_letters == pytest.approx(total, abs=1e-4)
        assert answer.log_probabilities == pytest.approx([value - total for value in raw], abs=1e-4)
        assert sum(map(math.exp, answer.log_probabilities)) == pytest.approx(1, abs=1e-12)
        assert answer.chosen == raw.index(max(raw))
        assert answer.correct == (answer.chosen == question.answer)


def test_an_answer_depends_on_its_question_alone() -> None:
    model = make_model("qwen2", vocab_size=300)
    together = answer_questions(model, byte_tokenizer(), QUESTIONS)
    assert answer_questions(model, byte_tokenizer(), QUESTIONS[::-1]) == together[::-1]
    assert [answer_questions(model, byte_tokenizer(), [question])[0] for question in QUESTIONS] == together


def test_a_space_belongs_to_the_letter_where_the_tokenizer_says_so() -> None:
    merging, bytewise = merging_tokenizer(), byte_tokenizer()
    context, letters = letter_tokens(merging, "Answer: ", 3)
    assert merging.decode(context) == "Answer:"
    assert [merging.decode([token]) for token in letters] == [" A", " B", " C"]
    context, letters = letter_tokens(bytewise, "Answer: ", 3)
    assert bytewise.decode(context) == "Answer: "
    assert [bytewise.decode([token]) for token in letters] == ["A", "B", "C"]
    context, letters = letter_tokens(merging, "assistant\n", 2)
    assert [merging.decode([token]) for token in letters] == ["A", "B"]


def test_a_model_that_knows_is_right() -> None:
    """Its head gives one letter all there is."""
    tokenizer, model = byte_tokenizer(), make_model("qwen2", vocab_size=300)
    (token_a,) = tokenizer.encode("A")
    (answer,) = answer_questions(_Certain(model, token_a), tokenizer, QUESTIONS[:1])
    assert answer.correct
    assert answer.log_probabilities[0] == pytest.approx(0, abs=1e-6)
    (wrong,) = answer_questions(_Certain(model, token_a), tokenizer, QUESTIONS[1:2])
    assert (wrong.chosen, wrong.correct) == (0, False)
    (broken,) = answer_questions(_Certain(model, token_a, math.nan), tokenizer, QUESTIONS[:1])
    assert not broken.correct
    assert math.isnan(broken.log_letters)


class _Certain(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, token: int, size: float = 50.0) -> None:
        super().__init__()
        self.model, self.token, self.size = model, token, size
        self.device = torch.device("cpu")

    def forward(self, **options: object) -> object:
        output = self.model(**options)
        output.logits[..., self.token] = output.logits.max() + self.size
        return output


def test_what_cannot_be_asked_is_refused() -> None:
    model = make_model("qwen2", vocab_size=300)
    for question, message in [
        (Question(text="?", options=("x",), answer=0), "question 0 has 1 options; give 2 to 26"),
        (Question(text="?", options=("x", "y"), answer=2), "question 0: answer 2 of 2 options; count from 0"),
    ]:
        with pytest.raises(UsageError, match=message):
            answer_questions(model, byte_tokenizer(), [question])
    ending = byte_tokenizer()
    ending.encode = lambda text: [*byte_tokenizer().encode(text), 2]  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="letters must differ in their last token alone"):
        answer_questions(model, ending, QUESTIONS)
