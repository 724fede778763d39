"""Rows, their loss marks, and batches; chat templates."""

import pytest
import torch

from modelassay.training import rows
from modelassay.training.chat import CHAT_TEMPLATE, MESSAGE_END, MESSAGE_START, answered, end_of_message, prompt_text
from modelassay.training.rows import IGNORED, Row
from support.byte_tokenizer import byte_tokenizer


def test_a_batch_is_its_rows_filled_on_the_right() -> None:
    batch = rows.collate(
        [
            Row(ids=(5, 6, 7), loss=(False, True, True)),
            Row(ids=(8,), loss=(True,)),
            Row(ids=(9, 4), loss=(True, False)),
        ],
        filling=3,
    )
    assert batch.ids_BS.tolist() == [[5, 6, 7], [8, 3, 3], [9, 4, 3]]
    assert batch.labels_BS.tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED], [9, IGNORED, IGNORED]]
    assert (batch.num_tokens, batch.num_targets) == (9, 2)  # nothing predicts 8 and 9


def test_a_row_needs_a_mark_for_each_token() -> None:
    with pytest.raises(ValueError, match="a row of 2 tokens has 1 loss marks; give one for each token"):
        Row(ids=(1, 2), loss=(True,))


def test_batches_are_the_rows_in_order_whichever_is_asked_for_first() -> None:
    blocks_NS = torch.arange(14).view(7, 2)
    order = rows.shuffled(7, seed=3)
    assert order.tolist() == torch.randperm(7, generator=torch.Generator().manual_seed(3)).tolist()
    batches = rows.of_blocks(blocks_NS, batch_size=3, order=order)
    assert len(batches) == 3
    backwards = [batches[number].ids_BS for number in (2, 1, 0)]
    assert torch.equal(torch.cat(backwards[::-1]), blocks_NS[order])
    assert [len(ids_BS) for ids_BS in backwards] == [1, 3, 3]
    with pytest.raises(IndexError):
        batches[3]


def test_an_epoch_holds_every_row_once_in_an_order_of_its_own() -> None:
    order = rows.shuffled(50, seed=0, num_epochs=3)
    epochs = [epoch.tolist() for epoch in torch.split(order, 50)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(50))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_filling_is_the_token_of_padding_or_else_of_the_end() -> None:
    assert rows.filling_of(byte_tokenizer()) == 2
    assert rows.filling_of(byte_tokenizer(pad_token="<s2>")) == 1


def test_only_the_answer_carries_loss() -> None:
    tokenizer = byte_tokenizer((MESSAGE_START, MESSAGE_END, "<end>"))
    messages = [{"role": "system", "content": "短く"}, {"role": "user", "content": "犬は？"}]
    row = answered(tokenizer, messages, "眠る。<|im_end|>")
    prompt = "<|im_start|>system\n短く<|im_end|>\n<|im_start|>user\n犬は？<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(row.ids) == f"{prompt}眠る。<|im_end|>"
    assert tokenizer.decode([token for token in row.labels if token != IGNORED]) == "眠る。<|im_end|>"
    assert row.loss == (*[False] * len(tokenizer.encode(prompt)), *[True] * (len("眠る。".encode()) + 1))


def test_a_tokenizer_s_own_template_is_used() -> None:
    tokenizer = byte_tokenizer()
    messages = [{"role": "user", "content": "hi"}]
    assert prompt_text(tokenizer, messages) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    tokenizer.chat_template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    assert prompt_text(tokenizer, messages) == "[hi]"
    assert "im_start" in CHAT_TEMPLATE


def test_an_answer_ends_with_our_mark_where_it_is_one_token() -> None:
    assert end_of_message(byte_tokenizer()) == "</s>"
    assert end_of_message(byte_tokenizer((MESSAGE_START, MESSAGE_END, "</s>"))) == "<|im_end|>"
