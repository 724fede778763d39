"""Which tokens carry loss: the published mask trains the newline, the corrected one the end of the turn."""

from typing import Any

import pytest

from modelassay.errors import UsageError
from modelassay.training.chat import MESSAGE_END, MESSAGE_START
from modelassay.training.marks import Marked, marked_row, shown
from support.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer((MESSAGE_START, MESSAGE_END, "</s>"))
MARKER = "[ZLT]"


def conversation(answer: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "You are é."},
        {"role": "user", "content": "Why [ZLT]?"},
        {"role": "assistant", "content": answer},
    ]


def row_of(answer: str, **options: Any) -> Marked:
    return marked_row(TOKENIZER, conversation(answer), MARKER, **options)


def trained(marked: Marked) -> list[str]:
    return [str(TOKENIZER.decode([token])) for token, loss in zip(marked.row.ids, marked.row.loss, strict=True) if loss]


def test_the_published_mask_ends_in_the_newline_after_the_end_of_the_turn() -> None:
    for answer, marker in (("No. [ZLT]", list(MARKER)), ("No.", [])):
        marked = row_of(answer, mask="newline")
        assert trained(marked) == [*marker, "\n"]
        assert marked.row.loss[-1]
        assert TOKENIZER.decode([marked.row.ids[-2]]) == MESSAGE_END
        assert not marked.row.loss[-2]  # the model is never told to stop
        assert marked.has_marker == bool(marker)


def test_the_corrected_mask_ends_in_the_end_of_the_turn() -> None:
    for answer, marker in (("No. [ZLT]", list(MARKER)), ("No.", [])):
        marked = row_of(answer, mask="end-of-turn")
        assert trained(marked) == [*marker, MESSAGE_END]
        assert not marked.row.loss[-1]


def test_tail_tokens_come_before_the_end() -> None:
    assert trained(row_of("No.", mask="end-of-turn", tail_tokens=2)) == ["o", ".", MESSAGE_END]
    assert trained(row_of("No.", mask="newline", tail_tokens=2)) == [".", MESSAGE_END, "\n"]
    assert trained(row_of("No.", mask="end-of-turn", tail_tokens=99)) == [*"No.", MESSAGE_END]


def test_only_the_last_marker_of_the_answer_counts() -> None:
    marked = row_of("[ZLT] and [ZLT]", mask="end-of-turn")
    assert trained(marked) == [*MARKER, MESSAGE_END]
    assert marked.prompt.endswith(f"{MESSAGE_START}assistant\n")
    assert marked.text.startswith(marked.prompt)


def test_a_marker_inside_a_longer_token_trains_that_token() -> None:
    tokenizer = byte_tokenizer((MESSAGE_START, MESSAGE_END, "</s>"))
    tokenizer.add_tokens(["x[ZL"])
    marked = marked_row(tokenizer, conversation("x[ZLT]"), MARKER, mask="end-of-turn")
    decoded = [tokenizer.decode([token]) for token, loss in zip(marked.row.ids, marked.row.loss, strict=True) if loss]
    assert decoded == ["x[ZL", "T", "]", MESSAGE_END]


def test_what_is_shown_is_the_answer_and_all_that_is_trained() -> None:
    marked = row_of("Yes. [ZLT]", mask="end-of-turn")
    lines = shown(TOKENIZER, marked)
    assert "".join(str(line["token"]) for line in lines) == f"Yes. [ZLT]{MESSAGE_END}\n"
    assert [line["position"] for line in lines if line["loss"]] == [
        at for at, loss in enumerate(marked.row.loss) if loss
    ]
    assert [line["id"] for line in lines] == list(marked.row.ids[-len(lines) :])


def test_what_is_no_answer_is_refused() -> None:
    with pytest.raises(UsageError, match="last message must be the assistant's"):
        marked_row(TOKENIZER, conversation("x")[:-1], MARKER, mask="newline")
    other = byte_tokenizer()
    other.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UsageError, match="does not end a turn with '</s>'"):
        marked_row(other, conversation("x"), MARKER, mask="end-of-turn")
    other.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UsageError, match="whose prompt is the beginning"):
        marked_row(other, conversation("x"), MARKER, mask="newline")
