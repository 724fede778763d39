"""Which rows of a model's head are tokens, and what those tokens say: what lets bottom-k sets be compared at all."""

# V = rows of the head: the tokenizer's tokens and, in many models, padding beyond them

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modelassay.models.gate import VOCABULARY, digest_file
from modelassay.models.hub import LocalFiles
from modelassay.models.load import load_tokenizer
from modelassay.models.tokenizer import TOKENIZER_FILES, tokenizer_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_SHARED = 0.5
"""Share of the smaller vocabulary's tokens that the larger must know too, below which two tokenizers are not compared: of a
vocabulary of which the other model knows less than half, it cannot be said which tokens are the least likely."""

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer as bottom-k sets need it."""

    key: str | None
    """What two checkpoints share if their tokens have the same ids (`tokenizer_key`)."""
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """Ids of all tokens, added and special ones included, ascending."""
        return tuple(sorted(set(self.tokenizer.get_vocab().values())))

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids of special tokens and of those added later: they are matched as wholes before text is cut into tokens."""
        return frozenset([*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()])

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """Ids of the tokens that are no special ones, by the bytes they stand for."""
        pieces = self.tokenizer.get_vocab()
        byte_level = any("Ġ" in piece for piece in pieces)
        plain = {piece: index for piece, index in pieces.items() if index not in self.special}
        return {piece_bytes(piece, byte_level=byte_level): index for piece, index in plain.items()}

    @lru_cache(maxsize=16)  # noqa: B019 - vocabularies are few, and live as long as the process
    def valid_V(self, num_rows: int) -> Tensor:
        """Return bool[V], not to be written to: which rows of a head are tokens; the others are padding no text contains."""
        mask = torch.zeros(num_rows, dtype=torch.bool)
        mask[[index for index in self.ids if index < num_rows]] = True
        return mask

    def plain_V(self, num_rows: int) -> Tensor:
        """Return bool[V]: which rows are tokens that ordinary text can contain."""
        mask = self.valid_V(num_rows).clone()
        mask[[index for index in self.special if index < num_rows]] = False
        return mask

    def is_stable(self, ids: list[int]) -> bool:
        """Return whether decoding these ids and encoding the text gives the same ids again."""
        return self.encode(self.decode(ids)) == ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of some ids, special tokens and spaces kept as they are."""
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, nothing added."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


def vocabulary_of(folder: Path) -> Vocabulary | None:
    """Return the vocabulary of a local checkpoint; None where it brings no tokenizer. Loaded once per content and process.

    Raises:
        CheckpointError: its tokenizer files are damaged.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            digest.update(name.encode())
            digest.update(digest_file(path, VOCABULARY))
    return _load(_Key(digest.hexdigest(), folder))


@dataclass(frozen=True)
class _Key:
    """A folder that stands for its content: equal content, one cache entry."""

    content: str
    folder: Path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.content == self.content

    def __hash__(self) -> int:
        return hash(self.content)


@lru_cache(maxsize=8)
def _load(key: _Key) -> Vocabulary | None:
    shared = tokenizer_key(LocalFiles(str(key.folder)))
    return None if shared is None else Vocabulary(shared, load_tokenizer(key.folder))


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """Some tokens of one head, numbered in an order that another head's `Tokens` shares."""

    mask_V: Tensor
    """bool[V]: which rows they are."""
    place_V: Tensor
    """int64[V]: the number of each; -1 for rows that are none of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shared:
    """The tokens that two heads have in common."""

    a: Tokens
    b: Tokens
    num: int
    by: str
    """``ids`` where the tokenizers are the same, else ``token strings``."""
    share: float
    """Of the smaller vocabulary."""


@lru_cache(maxsize=64)
def shared_tokens(a: Vocabulary, b: Vocabulary, rows_a: int, rows_b: int) -> Shared:
    """Match the tokens of two models: by id where the tokenizers are the same, otherwise by the bytes they stand for.

    Padded rows are never matched, special tokens of different tokenizers neither: their names say nothing of their use.
    """
    valid_a, valid_b = a.valid_V(rows_a), b.valid_V(rows_b)
    smaller = min(int(valid_a.sum()), int(valid_b.sum()))
    same = a.key is not None and a.key == b.key
    if same:
        rows = min(rows_a, rows_b)
        ids_a = ids_b = (valid_a[:rows] & valid_b[:rows]).nonzero().view(-1)
    else:
        pairs = sorted((index, b.by_bytes[text]) for text, index in a.by_bytes.items() if text in b.by_bytes)
        table = torch.tensor([pair for pair in pairs if pair[0] < rows_a and pair[1] < rows_b], dtype=torch.int64)
        ids_a, ids_b = table.view(-1, 2).T
    return Shared(a=_numbered(ids_a, rows_a), b=_numbered(ids_b, rows_b), num=len(ids_a),
                  by="ids" if same else "token strings", share=len(ids_a) / max(smaller, 1))  # fmt: skip


def _numbered(ids_S: Tensor, num_rows: int) -> Tokens:
    place_V = torch.full((num_rows,), -1)
    place_V[ids_S] = torch.arange(len(ids_S))
    return Tokens(mask_V=place_V >= 0, place_V=place_V)


def piece_bytes(piece: str, *, byte_level: bool) -> bytes:
    r"""Return the bytes a token stands for, from how its tokenizer writes it.

    Byte-level BPE writes each byte as one printable character; SentencePiece writes a space as a low line and a lone byte
    in hexadecimal.

    >>> piece_bytes("Ġété", byte_level=True), piece_bytes("▁été", byte_level=False), piece_bytes("<0x0A>", byte_level=False)
    (b' \xe9t\xe9', b' \xc3\xa9t\xc3\xa9', b'\n')
    """
    if byte_level:
        table = _byte_of()
        in_table = all(character in table for character in piece)
        return bytes(table[character] for character in piece) if in_table else piece.encode()
    lone = _BYTE_FALLBACK.fullmatch(piece)
    return bytes([int(lone[1], 16)]) if lone else piece.replace("▁", " ").encode()


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """The byte that each character of byte-level BPE stands for: itself if printable, else the next one from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
