"""A checkpoint as a table of attention matrices, each a span of a file: opened from headers alone, read on demand.

Where they lie is told by names and shapes (`recognise`), not by a list of architectures.

::

    checkpoint = open_checkpoint("hf:Qwen/Qwen2.5-0.5B")
    spans = [matrix.span for matrix in checkpoint.matrices_of("q")]  # what layer_std reads in place
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.errors import CheckpointError as CheckpointError
from modelassay.models.checkpoints.architectures import (
    EVERY_ROLE,
    INNER_KEYS,
    MAX_SIZE,
    Overrides,
    Role,
    language_config,
    read_sizes,
)
from modelassay.models.checkpoints.factors import quantization_of, refuse_method
from modelassay.models.checkpoints.opened import open_form
from modelassay.models.checkpoints.projections import Layer
from modelassay.models.checkpoints.recognise import recognise
from modelassay.models.checkpoints.tensors import Matrix, PlainShapes, TensorTable, cut, read_matrix
from modelassay.models.gate import one_line as one_line
from modelassay.models.gate import read_json
from modelassay.models.hub import Files
from modelassay.models.places import without_config
from modelassay.models.tokenizer import tokenizer_key, tokenizer_notes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """What two checkpoints must have in common for a score between them to be judged against one background."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int | None
    """None where config.json counts none."""
    tokenizer_key: str | None
    """Key of the vocabulary; None where the checkpoint brings no tokenizer."""

    def __str__(self) -> str:
        """Say it in few words.

        >>> str(Stratum(num_layers=8, hidden_size=64, num_heads=4, num_kv_heads=2, vocab_size=512, tokenizer_key="5f0c71a2b3d4e5f6"))
        '8 layers of 64, 4/2 heads, 512 tokens (5f0c71)'
        """
        tokenizer = self.tokenizer_key[:6] if self.tokenizer_key else "no tokenizer"
        return (f"{self.num_layers} layers of {self.hidden_size}, {self.num_heads}/{self.num_kv_heads} heads, "
                f"{self.vocab_size or 'no'} tokens ({tokenizer})")  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A model's sizes and its attention matrices, none of them read."""

    reference: str
    """As the user named it."""
    folder: Path
    """Where its files lie: the user's folder, or the snapshot in the Hub's cache."""
    architecture: str
    """config.json's `model_type`, of the language model where a wrapper nests one."""
    num_layers: int
    """Layers that have attention, the encoder's and the decoder's where it has both."""
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int | None
    tokenizer_key: str | None
    """What `tokenizer_key` tells of its files."""
    revision: str | None
    """Commit of the Hub; None for a folder."""
    matrices: tuple[Matrix, ...]
    """By layer, then in the order of `EVERY_ROLE`."""
    intermediate_size: int | None
    """Width of the feed-forward network (of one expert); None where config.json does not say."""
    tensors: TensorTable
    """Every tensor by name."""
    layers: tuple[Layer, ...]
    """Where the layers stand that have attention."""
    prefixes: tuple[str, ...]
    """What stands before a layer's number in the names, by stack in order of depth."""
    notes: tuple[str, ...]
    """What was left out or read otherwise than expected, a sentence each."""
    row: Overrides | None = None
    """What the user said of this model type, if anything."""

    @cached_property
    def _by_layer(self) -> list[tuple[Matrix, ...]]:
        layers: list[list[Matrix]] = [[] for _ in range(self.num_layers)]
        for matrix in self.matrices:
            layers[matrix.layer].append(matrix)
        return [tuple(layer) for layer in layers]

    @cached_property
    def roles(self) -> tuple[Role, ...]:
        """Roles of attention that every layer has."""
        held = [{matrix.role for matrix in layer} for layer in self._by_layer]
        return tuple(role for role in EVERY_ROLE if all(role in roles for roles in held))

    def matrices_of(self, role: Role) -> tuple[Matrix, ...]:
        """Return one role's matrices in layer order."""
        return tuple(matrix for matrix in self.matrices if matrix.role == role)

    def matrices_in(self, layer: int) -> tuple[Matrix, ...]:
        """Return the matrices of one layer, in the order of `EVERY_ROLE`."""
        return self._by_layer[layer]

    def stratum(self) -> Stratum:
        """Return the stratum this checkpoint is judged in."""
        return Stratum(
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            vocab_size=self.vocab_size,
            tokenizer_key=self.tokenizer_key,
        )

    def read(self, matrix: Matrix) -> Tensor:
        """Return a copy of one matrix: [outputs, inputs] in the stored dtype; scaled fp8 as float32."""
        return read_matrix(matrix)

    def attention(self, layer: int) -> dict[Role, Tensor]:
        """Return copies of the matrices of one layer by role, as `read` gives each."""
        return {matrix.role: self.read(matrix) for matrix in self.matrices_in(layer)}


def open_checkpoint(reference: str | Path, *, rows: Sequence[Overrides] = ()) -> Checkpoint:
    """Open a checkpoint by its files' headers; no weight is read, only the fp8 scales where there are any.

    ``reference`` is a folder (config.json with model.safetensors, or with shards and model.safetensors.index.json, or with
    one safetensors file of another name), or ``hf:ORG/NAME``, optionally with ``@`` and a commit, tag or branch. Of a
    repository only config.json, the index, the vocabulary and the headers of the files that hold attention are fetched, and what the
    cache holds of a commit is not asked for again; weights come when they are read, and of them the ranges that are read.

    Raises:
        CheckpointError: not there, not readable, damaged, packed by a quantiser, or with what `recognise` refuses.
        HostError: the Hub cannot be reached, or its cache cannot be written.
    """
    return checkpoint_of(open_form(reference), rows=rows)


def checkpoint_of(files: Files, *, rows: Sequence[Overrides] = ()) -> Checkpoint:
    """Open the checkpoint of some files as `open_checkpoint` does, raising what it raises; ``rows`` say where their model types lie."""
    path = config_path(files)
    config = read_json(path)
    model_type, own, _ = language_config(config)
    quantization = quantization_of(config, own, str(path))
    refuse_method(quantization, str(path))
    tensors = TensorTable(files)
    layout = recognise(PlainShapes(tensors, quantization), config, files.reference, rows=rows)
    tensors.open_files(part.tensor for layer in layout.layers for part in layer.parts.values())
    sizes = read_sizes(config, str(path))
    removed = [f"names are read without {', '.join(tensors.removed)}"] if tensors.removed else []
    return Checkpoint(
        reference=files.reference,
        folder=files.folder,
        architecture=model_type,
        num_layers=len(layout.layers),
        hidden_size=sizes.hidden_size,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=layout.layers[0].head_dim,
        vocab_size=sizes.vocab_size,
        tokenizer_key=tokenizer_key(files),
        revision=files.revision,
        matrices=tuple(
            cut(tensors, part, role, at, quantization)
            for at, layer in enumerate(layout.layers) for role, part in layer.parts.items()
        ),
        intermediate_size=_intermediate_size(own),
        tensors=tensors,
        layers=layout.layers,
        prefixes=layout.prefixes,
        notes=(*files.notes, *tokenizer_notes(files), *tensors.notes, *removed, *layout.notes),
        row=next((row for row in rows if row.model_type == model_type), None),
    )  # fmt: skip


def _intermediate_size(own: Mapping[str, Any]) -> int | None:
    values = (own.get(key) for key in INNER_KEYS)
    return next((value for value in values if type(value) is int and 0 < value < MAX_SIZE), None)


def config_path(files: Files) -> Path:
    """Return where config.json lies.

    Raises:
        CheckpointError: there is none, so this is no model.
    """
    path = files.get("config.json")
    if path is not None:
        return path
    raise without_config(files.reference, files.folder, files.list_files())
