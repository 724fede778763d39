"""The files of a tokenizer, and what tells whether two models share one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelassay.errors import CheckpointError
from modelassay.models.gate import CONFIG, VOCABULARY, digest_file, is_pointer, one_line, read_json, read_text, shown
from modelassay.models.hub import Files

MAX_ID = 2**24
"""Token ids are smaller, 64 times the largest vocabularies' count: tokenizers writes a list as long as the largest is high."""
_PIECE = 20_000

VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
"""Files that hold a vocabulary, the ones that say most first."""

TOKENIZER_FILES = (
    *VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""Every file that a tokenizer may be made of, in the layout of the Hub."""


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy what makes up the tokenizer of one folder into another."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def tokenizer_key(files: Files) -> str | None:
    """Return 16 hex digits that two checkpoints share if their tokens have the same ids; None without a tokenizer.

    The key is over the token-to-id table without what was added later, so a tokenizer that was saved again, given another
    chat template or further special tokens keeps its key, in tokenizer.json as in vocab.json. Of a SentencePiece model
    alone the bytes are hashed.

    Raises:
        CheckpointError: the file that should hold the vocabulary does not, or is larger than one can be.
    """
    name, path = _vocabulary_file(files)
    if path is None:
        return None
    if name in _SENTENCEPIECE:
        return digest_file(path, VOCABULARY).hex()
    return _key(_table(path))


def token_ids(files: Files) -> Mapping[str, int] | None:
    """Return the id of each token without what was added later; None where no file says, as with SentencePiece models alone.

    Raises:
        CheckpointError: as `tokenizer_key`.
    """
    name, path = _vocabulary_file(files)
    return None if path is None or name in _SENTENCEPIECE else _table(path)


_SENTENCEPIECE = ("tokenizer.model", "spiece.model")


def tokenizer_notes(files: Files) -> tuple[str, ...]:
    """Return which of the tokenizer's files are no more than pointers of git-LFS, so that the model counts as one without, a sentence each."""
    pointers = [name for name in VOCABULARIES if (path := files.get(name)) is not None and is_pointer(path)]
    return tuple(f"{name} is a pointer of git-LFS and not read; `git lfs pull` fetches it" for name in pointers)


def _vocabulary_file(files: Files) -> tuple[str, Path | None]:
    present = ((name, path) for name in VOCABULARIES if (path := files.get(name)) is not None and not is_pointer(path))
    return next(present, ("", None))


def _table(path: Path) -> dict[str, int]:
    if path.name == "vocab.txt":
        lines = (
            read_text(path, VOCABULARY).removesuffix("\n").split("\n")
        )  # no splitlines, which would cut tokens that are line breaks
        table: Any = {token.removesuffix("\r"): index for index, token in enumerate(lines) if token or index}
    else:
        table = read_json(path, VOCABULARY)
        if path.name == "tokenizer.json":
            model = table.get("model")
            table = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(table, list):
            table = _scored(path, table)
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{one_line(path)}: expected a vocabulary, got {shown(table)}; save the tokenizer again")
    if (entry := next((entry for entry in table.items() if not _is_id(entry[1])), None)) is not None:
        raise CheckpointError(
            f"{one_line(path)}: token {shown(entry[0])}: expected its id, a whole number from 0 on, got {shown(entry[1])}; "
            f"save the tokenizer again"
        )
    return table


def _scored(path: Path, entries: list[Any]) -> dict[str, int]:
    """Return the ids of a Unigram model's tokens: [token, score] in order of ids."""
    for entry in entries:
        match entry:
            case [str(), int() | float()]:
                pass
            case _:
                raise CheckpointError(
                    f"{one_line(path)}: vocabulary: expected tokens with their scores, got {shown(entry)}; save the tokenizer again"
                )
    return {entry[0]: index for index, entry in enumerate(entries)}


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_ID


def _key(table: Mapping[str, int]) -> str:
    """Return the digest of a table as JSON with sorted keys, written by pieces."""
    digest, tokens = hashlib.blake2b(digest_size=8), sorted(table)
    digest.update(b"{")
    for start in range(0, len(tokens), _PIECE):
        piece = json.dumps({token: table[token] for token in tokens[start : start + _PIECE]})[1:-1]
        digest.update((", " if start else "").encode() + piece.encode())
    digest.update(b"}")
    return digest.hexdigest()


def _require_low_ids(path: Path, data: Mapping[str, Any]) -> None:
    model = data.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else data
    for token, number in vocabulary.items() if isinstance(vocabulary, dict) else ():
        if type(number) is int and number >= MAX_ID and path.name in VOCABULARIES:
            raise CheckpointError(
                f"{one_line(path)}: token {shown(token)}: its id {shown(number)} is not below {MAX_ID:,}; save the tokenizer again"
            )


def require_small(folder: Path) -> None:
    """Refuse a tokenizer of which a file is larger than its kind may be, or no JSON object where it should be one.

    Raises:
        CheckpointError: with the file.
    """
    for name in TOKENIZER_FILES:
        path = folder / name
        limits = VOCABULARY if name in {*VOCABULARIES, "merges.txt"} else CONFIG
        if path.suffix == ".json" and path.is_file():
            _require_low_ids(path, read_json(path, limits))
        elif path.suffix == ".txt" and path.is_file():
            read_text(path, limits)
        elif path.is_file():
            digest_file(path, limits)
