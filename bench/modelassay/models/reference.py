"""What a model is: the reference that a user wrote, the files behind it, and what determines its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.errors import CheckpointError, printable
from modelassay.models.checkpoints import Checkpoint, checkpoint_of, config_path
from modelassay.models.checkpoints.architectures import Overrides, Sizes, read_sizes
from modelassay.models.checkpoints.tensors import fetch_weights
from modelassay.models.gate import read_json
from modelassay.models.hub import Files
from modelassay.models.load import load_model, load_tokenizer
from modelassay.models.tokenizer import TOKENIZER_FILES

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """One model under one reference; nothing of it is fetched or made before it is asked for."""

    reference: str
    """As the user wrote it."""
    open_files: Callable[[], Files]
    """Opens its files; a model that the project makes itself is made first."""
    identity: Mapping[str, Any] | None
    """JSON that determines the weights: what was computed of them may be kept under it. None for a local folder, which may change."""
    family: str | None
    """The root it is said to descend from; None where nobody says."""

    rows: tuple[Overrides, ...] = ()
    """What the user says of model types whose layout nothing else tells."""

    @cached_property
    def files(self) -> Files:
        """Its files, each fetched when asked for.

        Raises:
            CheckpointError: they cannot be had.
            HostError: the Hub cannot be reached.
        """
        return self.open_files()

    @cached_property
    def folder(self) -> Path:
        """A local folder that holds the whole model: configuration, tokenizer and all weights.

        Raises:
            CheckpointError: a file is missing.
            HostError: the Hub cannot be reached, or its cache cannot be written.
        """
        if self.files.not_run is not None:
            raise CheckpointError(f"{printable(self.reference)}: {self.files.not_run}")
        if not self.files.local:
            fetch_weights(self.files)
            self.files.get("generation_config.json")
        return self.tokenizer_folder

    @cached_property
    def tokenizer_folder(self) -> Path:
        """A local folder that holds its configuration and, if it brings one, its tokenizer; raises as `folder`."""
        if not self.files.local:
            for name in TOKENIZER_FILES:
                self.files.get(name)
        return self.files.folder

    def checkpoint(self) -> Checkpoint:
        """Open its weights by their headers; of a repository only the files that hold attention are fetched.

        Raises:
            CheckpointError: as `open_checkpoint`.
            HostError: as `open_checkpoint`.
        """
        return self._checkpoint

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return checkpoint_of(self.files, rows=self.rows)

    def sizes(self) -> Sizes:
        """Return what config.json says of its shape; no weight is fetched or opened.

        Raises:
            CheckpointError: there is no config.json, or it lacks a size.
        """
        path = config_path(self.files)
        return read_sizes(read_json(path), str(path))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load its tokenizer.

        Raises:
            CheckpointError: its files are missing or damaged.
        """
        return load_tokenizer(self.tokenizer_folder)

    def load(self, *, dtype: torch.dtype | None = None, device: str = "cpu") -> PreTrainedModel:
        """Load it whole, in evaluation mode; arguments and errors as of `load_model`."""
        return load_model(self.folder, dtype=dtype, device=device)


def short_names(references: Sequence[str]) -> list[str]:
    r"""Return what tables and claims call the models: `short_name` of each; in full where that mixes two up.

    >>> short_names(["hf:Qwen/Qwen2.5-14B@97e1e763", "zoo:smoke/base", "models/mine/"])
    ['Qwen2.5-14B', 'base', 'mine']
    >>> short_names(["a/model", "b/model"])
    ['a/model', 'b/model']
    >>> short_names(["a/one\nline", "b"])  # a name stands in sentences, and must not end one
    ['one\\nline', 'b']
    """
    short = [printable(short_name(reference)) for reference in references]
    return short if len(set(short)) == len(short) else [printable(reference) for reference in references]


def short_name(reference: str) -> str:
    """Return the last part of a reference, without its scheme and its commit.

    >>> short_name("hf:Qwen/Qwen2.5-0.5B@060db64"), short_name("runs/mine@home/"), short_name("zoo:smoke/base")
    ('Qwen2.5-0.5B', 'mine@home', 'base')
    """
    scheme, colon, rest = reference.partition(":")
    if not colon or not scheme.isalpha() or "/" in scheme:
        scheme, rest = "", reference
    path = rest.split("@")[0] if scheme == "hf" else rest
    return path.rstrip("/").rsplit("/", 1)[-1] or reference
