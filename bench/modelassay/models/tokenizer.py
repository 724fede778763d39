"""The files of a tokenizer, and what tells whether two models share one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelassay.errors import CheckpointError
from modelassay.models.hub import Files, read_json

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
        CheckpointError: the file that should hold the vocabulary does not.
    """
    name, path = _vocabulary_file(files)
    if path is None:
        return None
    if name in _SENTENCEPIECE:
        return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    table = _table(path)
    return hashlib.blake2b(json.dumps(table, sort_keys=True).encode(), digest_size=8).hexdigest()


def token_ids(files: Files) -> Mapping[str, int] | None:
    """Return the id of each token without what was added later; None where no file says, as with SentencePiece models alone.

    Raises:
        CheckpointError: as `tokenizer_key`.
    """
    name, path = _vocabulary_file(files)
    return None if path is None or name in _SENTENCEPIECE else _table(path)


_SENTENCEPIECE = ("tokenizer.model", "spiece.model")


def _vocabulary_file(files: Files) -> tuple[str, Path | None]:
    present = ((name, path) for name in VOCABULARIES if (path := files.get(name)) is not None)
    return next(present, ("", None))


def _table(path: Path) -> dict[str, int]:
    if path.name == "vocab.txt":
        table: Any = {token: index for index, token in enumerate(path.read_text(encoding="utf-8").splitlines())}
    else:
        table = read_json(path)
        if path.name == "tokenizer.json":
            model = table.get("model")
            table = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(table, list):  # Unigram: [token, score] in order of ids
            table = {entry[0]: index for index, entry in enumerate(table)}
        if not isinstance(table, dict) or not table:
            raise CheckpointError(f"{path}: expected a vocabulary, got {table!r:.80}; save the tokenizer again")
    return table
