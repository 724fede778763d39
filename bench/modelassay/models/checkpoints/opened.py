"""A reference, as a user writes it -> the files of a model, in whichever form they have it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from modelassay.errors import CheckpointError, HostError, printable
from modelassay.models.checkpoints.adapters import AdapterFiles, base_of
from modelassay.models.checkpoints.architectures import language_config, stated
from modelassay.models.checkpoints.forms import stored_in
from modelassay.models.checkpoints.gguf import TOKEN_TYPES, TOKENS
from modelassay.models.checkpoints.gguf_tensors import GgufTensors
from modelassay.models.delegated import DelegatedFiles
from modelassay.models.gate import one_line, read_json
from modelassay.models.hub import Files, open_files
from modelassay.models.places import ADAPTER, CONFIG
from modelassay.models.tokenizer import TOKENIZER_FILES, token_ids
from modelassay.storage.store import cache_root

_WORDS: Final = (1, 6)
"""ggml's types of tokens that a vocabulary has of its own: normal ones, and single bytes. Others were added, or are unused."""


def open_form(reference: str | Path) -> Files:
    """Return the files of a model as `open_files` does; of a GGUF file, which tells of itself, with the config.json it stands for.

    An adapter is read together with its base.

    Raises:
        CheckpointError: as `open_files`, or a GGUF file is damaged or of an architecture whose names are not known.
        HostError: as `open_files`.
    """
    files = open_files(reference)
    if _is_gguf(files):
        return GgufFiles(files)
    if not _is_adapter(files):
        return files
    base = base_of(files)
    below = open_files(base)
    if _is_adapter(below):
        raise CheckpointError(
            f"{one_line(files.reference)}: its base {one_line(base)} is an adapter itself; merge that into its base, save, and name it as the base"
        )
    return AdapterFiles(GgufFiles(below) if _is_gguf(below) else below, files)


def _is_adapter(files: Files) -> bool:
    """Return whether files are a LoRA adapter's and no model's: beside an adapter's there may be a config.json, and even the whole model.

    Of a repository costs one request, whose answer is kept for its commit.
    """
    if files.chosen is not None or files.get(ADAPTER) is None:
        return False
    try:
        stored_in(files, files.open_weights)
    except CheckpointError:
        return True
    return files.get(CONFIG) is None


def _is_gguf(files: Files) -> bool:
    """Return whether a GGUF file holds the model; a repository's files are listed only where its config.json says too little."""
    if files.chosen is not None:
        return files.chosen.endswith(".gguf")
    path = files.get(CONFIG)
    if path is not None and (not files.local or files.get("model.safetensors") is not None):
        try:
            if stated(language_config(read_json(path))[1], "hidden_size") is not None or files.local:
                return False
        except CheckpointError:  # damaged; said by whoever reads it
            return False
    try:
        return stored_in(files, files.open_weights).form == "gguf"
    except CheckpointError:  # said by whoever reads the weights, or misses config.json
        return False


class GgufFiles(DelegatedFiles):
    """The files of a model that a GGUF file holds: its header tells what config.json and the vocabulary would."""

    adapter: Files | None = None
    not_run: str | None = "a GGUF file is read, but not run; name the model it was converted from"

    def __init__(self, files: Files) -> None:
        """Read the header."""
        super().__init__(files)
        stored = stored_in(files, files.open_weights)
        self.source = GgufTensors(files, stored)
        self.notes: tuple[str, ...] = (
            *files.notes,
            *(() if self._own_vocabulary is None or self._beside is None else self._vocabulary_note),
        )

    @cached_property
    def added(self) -> Mapping[str, int]:
        """The tokens that the file lists as no words of the vocabulary: control tokens and such as were added."""
        tokens, types = self.source.metadata.get(TOKENS), self.source.metadata.get(TOKEN_TYPES)
        if not isinstance(tokens, tuple) or not isinstance(types, tuple) or len(types) != len(tokens):
            return {}
        return {token: at for at, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind not in _WORDS}

    @cached_property
    def _own_vocabulary(self) -> Mapping[str, int] | None:
        """The tokens that the file lists, by text; None where that is no vocabulary: texts that repeat, or more than the embedding has rows."""
        tokens, types = self.source.metadata.get(TOKENS), self.source.metadata.get(TOKEN_TYPES)
        rows = self.source.shapes.get("token_embd.weight", (0,))[0]
        if not isinstance(tokens, tuple) or not 0 < len(tokens) <= rows or len(set(tokens)) < len(tokens):
            return None
        if not isinstance(types, tuple) or len(types) != len(tokens):
            types = (1,) * len(tokens)
        return {token: at for at, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind in _WORDS} or None

    @cached_property
    def _beside(self) -> bool | None:
        """Whether the tokenizer that lies beside the file gives each token the number that the file gives it; None without one."""
        try:
            beside = token_ids(self._files)
        except CheckpointError:
            return False
        tokens = self.source.metadata.get(TOKENS)
        if beside is None or not isinstance(tokens, tuple):
            return None
        return all(at < len(tokens) and tokens[at] == token for token, at in beside.items())

    @property
    def _vocabulary_note(self) -> tuple[str, ...]:
        if self._beside:
            return ()
        return (
            "the tokenizer beside the GGUF file numbers tokens otherwise than the file, whose own numbers are taken",
        )

    def get(self, name: str, *, required: bool = False) -> Path | None:
        """Return the file; config.json and the vocabulary as the GGUF file tells them, a tokenizer beside it where the two agree."""
        if name == CONFIG:
            return _written(CONFIG, self.source.config())
        if name in TOKENIZER_FILES and not self._beside:
            own = self._own_vocabulary
            return _written(name, dict(own)) if name == "vocab.json" and own is not None else None
        return self._files.get(name, required=required)


def _written(name: str, content: Mapping[str, Any]) -> Path:
    """Return a file of the cache that holds some JSON, under its digest."""
    data = json.dumps(content, ensure_ascii=True, sort_keys=True).encode()
    folder = cache_root().absolute() / "gguf" / hashlib.blake2b(data, digest_size=12).hexdigest()
    path = folder / name
    try:
        if not path.is_file() or path.stat().st_size != len(data):
            folder.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f"{name}.{os.getpid()}.new")
            draft.write_bytes(data)
            draft.rename(path)
    except OSError as error:
        raise HostError(
            f"{printable(str(path))}: cannot be written: {error.strerror}; free some space, or point MODELASSAY_CACHE elsewhere"
        ) from None
    return path
