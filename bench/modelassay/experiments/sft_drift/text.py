"""The text of a cell as rows of tokens: the user's file, a book, the project's sentences, or Wikipedia."""

# B = rows, T = tokens of a row

from __future__ import annotations

import hashlib
import importlib.util
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modelassay.data.books import BOOKS, book_path, check_book
from modelassay.data.text import rows_of
from modelassay.errors import UsageError
from modelassay.experiments.sft_drift.params import Params, known_texts

WIKIPEDIA = "wikimedia/wikipedia"
WIKIPEDIA_COMMIT = "b04c8d1ceb2f5cd4588862100d08de323dccfbaa"
WIKIPEDIA_DUMP = "20231101"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A text, cut."""

    trained_BT: Tensor
    held_out_BT: Tensor
    """The rows behind those that are trained on."""
    digest: str
    """Of all tokens: equal texts are one text, whatever they are called."""


def check_text(params: Params) -> None:
    """Refuse a text that is not there, before a model is loaded: the cell has failed, and a run that goes on later tries it again.

    Raises:
        UsageError: so, or the text has no such name.
    """
    text, language = params.setting.text, params.language
    if params.file is not None or text == "corpus":
        return
    if text in BOOKS:
        check_book(text, language)
    elif text == "wikipedia":
        if importlib.util.find_spec("datasets") is None:
            raise UsageError(
                "text wikipedia is streamed by the package datasets, which is not installed: pip install datasets"
            )
    else:
        raise UsageError(
            f"text {text!r}: no such text; there are {', '.join(known_texts())}, or give -o data.{language}=FILE"
        )


def rows_for(params: Params, tokenizer: Any) -> Rows:
    """Return the rows that are trained on, from the beginning of the text, and those behind them.

    Raises:
        UsageError: the text is too short, or cannot be read.
    """
    setting = params.setting
    num = setting.num_rows + setting.held_out_rows
    if params.file is None and setting.text == "wikipedia":
        rows_BT = _streamed(params.language, tokenizer, num=num, length=setting.length)
    else:
        source = params.file or (
            "corpus:" + params.language if setting.text == "corpus" else str(book_path(setting.text, params.language))
        )
        rows_BT = rows_of(source, tokenizer, tokens=num * setting.length, length=setting.length)
    digest = hashlib.sha256(rows_BT.numpy().tobytes()).hexdigest()[:16]
    trained_BT, held_out_BT = rows_BT[: setting.num_rows], rows_BT[setting.num_rows :]
    if setting.shuffled:
        generator = torch.Generator().manual_seed(params.seed)
        trained_BT = trained_BT.reshape(-1)[torch.randperm(trained_BT.numel(), generator=generator)].view_as(trained_BT)
    return Rows(trained_BT=trained_BT, held_out_BT=held_out_BT, digest=digest)


def _streamed(language: str, tokenizer: Any, *, num: int, length: int) -> Tensor:
    """Return rows of Wikipedia as the published script made them: an article is a row, what is longer than a row is cut off.

    Articles that fill no row are passed over, so that every token of a row is text: the published rows are padded instead.
    """
    rows: list[list[int]] = []
    for article in itertools.islice(_articles(language), 100 * num):
        ids = tokenizer.encode(article, add_special_tokens=False)[:length]
        if len(ids) == length:
            rows.append(ids)
        if len(rows) == num:
            return torch.tensor(rows)
    raise UsageError(
        f"wikipedia {language}: {len(rows)} of {num} rows of {length} tokens; use fewer steps or a smaller length"
    )


def _articles(language: str) -> Iterator[str]:
    from datasets import load_dataset

    stream = load_dataset(
        WIKIPEDIA, f"{WIKIPEDIA_DUMP}.{language}", split="train", streaming=True, revision=WIKIPEDIA_COMMIT
    )
    for article in stream:
        yield article["text"]
