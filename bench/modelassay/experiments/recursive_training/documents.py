"""Documents of a generation: human ones, each used once, and how documents become rows of one length."""

# N = rows, T = tokens of a row

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from modelassay.data import corpus
from modelassay.data.text import documents_of
from modelassay.errors import UsageError
from modelassay.experiments.recursive_training.params import Params
from modelassay.generation.engine import seed_of

DOCUMENTS = "documents.json"
_EVALUATION = corpus.HELD_OUT_SEED + 19
_SENTENCES = 10**9  # more than is ever asked of a generator


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text, with its tokens."""

    ids: tuple[int, ...]
    """The token that ends texts among them, where the text ended."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Human:
    """All human text of a trajectory: of one seed, but for the evaluation text, which all share."""

    params: Params
    tokenizer: PreTrainedTokenizerBase

    def generation(self, number: int) -> list[Document]:
        """Return the ``samples`` documents of a generation, which no other generation has.

        Raises:
            UsageError: a file has too few documents for all generations.
        """
        count = self.params.samples
        if self.params.language is not None:
            stream = seed_of("recursive-training", self.params.seed, number)
            return self._taken(corpus.generate(self.params.language, seed=stream, num_sentences=_SENTENCES), count)
        _, rest = self._file()
        order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(self.params.seed)).tolist()
        return self._taken((rest[at] for at in order[number * count : (number + 1) * count]), count)

    def evaluation(self) -> Tensor:
        """Return the fixed evaluation text as rows [N, T].

        Raises:
            UsageError: a file has too little text.
        """
        texts: Iterable[str]
        if self.params.language is not None:
            texts = corpus.generate(self.params.language, seed=_EVALUATION, num_sentences=_SENTENCES)
        else:
            texts, _ = self._file()
        return self._rows(texts, self.params.evaluation_rows)

    def _file(self) -> tuple[list[str], list[str]]:
        """Return the documents for evaluation, the first of the file, and all others."""
        every = list(documents_of(self.params.data))
        held = max(1, len(every) - self.params.num_documents)
        if len(every) <= self.params.num_documents:
            raise UsageError(
                f"data {self.params.data}: holds {len(every)} documents; {self.params.generations} generations of {self.params.samples} that are "
                f"never used twice take {self.params.num_documents}, and some more for evaluation; give more, or -o samples=..."
            )
        return every[:held], every[held:]

    def _taken(self, texts: Iterable[str], count: int) -> list[Document]:
        return [self._document(text) for text in itertools.islice(texts, count)]

    def _document(self, text: str) -> Document:
        ids = [*self.tokenizer.encode(text, add_special_tokens=False), *self._end()][: self.params.length]
        return Document(ids=tuple(ids), text=text)

    def _end(self) -> list[int]:
        return [] if self.tokenizer.eos_token_id is None else [int(self.tokenizer.eos_token_id)]

    def _rows(self, texts: Iterable[str], count: int) -> Tensor:
        packed = list(itertools.islice(_packed(map(self._document, texts), self.params.length), count))
        if len(packed) == count:
            return torch.tensor(packed)
        raise UsageError(f"data {self.params.data}: makes {len(packed)} rows of {self.params.length} tokens for evaluation, {count} are asked for; give more text, or -o evaluation_rows=...")  # fmt: skip


def pack(documents: Sequence[Document], length: int) -> Tensor:
    """Return documents as rows [N, T]: each row begins with a document and goes on with the next ones; the last is cut.

    What is left over at the end makes no row.

    >>> pack([Document(ids=(1, 2, 9), text=""), Document(ids=(3, 4, 5, 9), text=""), Document(ids=(6,), text="")], 4).tolist()
    [[1, 2, 9, 3]]
    """
    return torch.tensor(list(_packed(documents, length)), dtype=torch.int64).reshape(-1, length)


def _packed(documents: Iterable[Document], length: int) -> Iterator[list[int]]:
    """Yield the rows of `pack`, each when it is full."""
    row: list[int] = []
    for document in documents:
        row += document.ids
        if len(row) >= length:
            yield row[:length]
            row = []


def save(documents: Sequence[Document], folder: Path) -> None:
    """Write documents to a stage's folder."""
    told = [{"ids": document.ids, "text": document.text} for document in documents]
    (folder / DOCUMENTS).write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")


def load(folder: Path) -> list[Document]:
    """Read what `save` wrote."""
    told: list[dict[str, Any]] = json.loads((folder / DOCUMENTS).read_text(encoding="utf-8"))
    return [Document(ids=tuple(each["ids"]), text=each["text"]) for each in told]
