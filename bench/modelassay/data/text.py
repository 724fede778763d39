"""Rows of tokens from any text."""

# B = rows, T = tokens of a row

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelassay.data import corpus
from modelassay.errors import UsageError


def rows_of(data: str, tokenizer: Any, *, tokens: int, length: int) -> Tensor:
    """Return the first ``tokens // length`` rows of a text, [B, T]: documents end to end, each followed by the end token.

    Raises:
        UsageError: no such text, one that cannot be read, or one that is too short.
    """
    num_tokens = tokens // length * length
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[int] = []
    for document in documents_of(data):
        ids += [*tokenizer.encode(document, add_special_tokens=False), *end]
        if len(ids) >= num_tokens:
            return torch.tensor(ids[:num_tokens]).view(-1, length)
    raise UsageError(
        f"data {data}: holds {len(ids)} tokens of this model, {num_tokens} are asked for; give more text, or -o tokens={len(ids)}"
    )


def documents_of(data: str) -> Iterator[str]:
    """Yield the documents of a text, of ``corpus:en`` without an end.

    Raises:
        UsageError: a file that cannot be read.
    """
    if data.startswith(corpus.CORPUS):
        return _corpus(data.removeprefix(corpus.CORPUS))
    path = Path(data)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"data {data}: cannot be read as text: {error}; give a UTF-8 file, or corpus:en") from error
    if path.suffix == ".jsonl":
        return _lines(data, text)
    return (part.strip() for part in text.split("\n\n") if part.strip())


def _corpus(language: str) -> Iterator[str]:
    for seed in itertools.count(corpus.HELD_OUT_SEED):
        yield from corpus.generate(language, seed=seed, num_sentences=10_000)


def _lines(data: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{data}:{number}: not JSON: {error}; one object per line") from error
        content = record.get("text") if isinstance(record, dict) else None
        if not isinstance(content, str):
            raise UsageError(f"{data}:{number}: no 'text' with a string in it, got {line[:60]!r}")
        yield content
