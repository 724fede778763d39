"""A checkpoint as a table of attention matrices, each a span of a file: opened from headers alone, read on demand.

::

    checkpoint = open_checkpoint("hf:Qwen/Qwen2.5-0.5B")
    spans = [matrix.span for matrix in checkpoint.matrices_of("q")]  # what layer_std reads in place
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.errors import CheckpointError
from modelassay.models.checkpoints.architectures import (
    MAX_SIZE,
    ROLES,
    Role,
    closest_architecture,
    find_architecture,
    language_config,
    read_sizes,
)
from modelassay.models.checkpoints.factors import quantization_of
from modelassay.models.checkpoints.tensors import (
    Matrix,
    TensorTable,
    attention_like,
    cut,
    known_names,
    locate,
    read_matrix,
)
from modelassay.models.gate import one_line, read_json, shown
from modelassay.models.hub import Files, open_files
from modelassay.models.tokenizer import tokenizer_key

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """What two checkpoints must have in common for a score between them to be judged against one background."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    tokenizer_key: str | None
    """Key of the vocabulary; None where the checkpoint brings no tokenizer."""

    def __str__(self) -> str:
        """Say it in few words.

        >>> str(Stratum(num_layers=8, hidden_size=64, num_heads=4, num_kv_heads=2, vocab_size=512, tokenizer_key="5f0c71a2b3d4e5f6"))
        '8 layers of 64, 4/2 heads, 512 tokens (5f0c71)'
        """
        tokenizer = self.tokenizer_key[:6] if self.tokenizer_key else "no tokenizer"
        return (f"{self.num_layers} layers of {self.hidden_size}, {self.num_heads}/{self.num_kv_heads} heads, "
                f"{self.vocab_size} tokens ({tokenizer})")  # fmt: skip


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
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tokenizer_key: str | None
    """What `tokenizer_key` tells of its files."""
    revision: str | None
    """Commit of the Hub; None for a folder."""
    matrices: tuple[Matrix, ...]
    """By layer, then in the order q, k, v, o."""
    intermediate_size: int | None
    """Width of the feed-forward network (of one expert); None where config.json does not say."""
    tensors: TensorTable
    """Every tensor by name."""
    layer_path: str
    """What the names of a layer's tensors begin with, ``{layer}`` counting from 0."""

    def matrices_of(self, role: Role) -> tuple[Matrix, ...]:
        """Return one role's matrices in layer order."""
        return tuple(matrix for matrix in self.matrices if matrix.role == role)

    def matrices_in(self, layer: int) -> tuple[Matrix, ...]:
        """Return the matrices of one layer, in the order q, k, v, o."""
        return self.matrices[len(ROLES) * layer : len(ROLES) * (layer + 1)]

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


def open_checkpoint(reference: str | Path) -> Checkpoint:
    """Open a checkpoint by its files' headers; no weight is read, only the fp8 scales where there are any.

    ``reference`` is a folder (config.json with model.safetensors, or with shards and model.safetensors.index.json, or with
    one safetensors file of another name), or ``hf:ORG/NAME``, optionally with ``@`` and a commit, tag or branch. Of a
    repository only config.json, the index, the vocabulary and the headers of the files that hold attention are fetched, and what the
    cache holds of a commit is not asked for again; weights come when they are read, and of them the ranges that are read.

    Raises:
        CheckpointError: not there, not readable, damaged, of an architecture the table does not hold, packed by a
            quantiser, or with matrices that are missing or not of the shape config.json implies.
        HostError: the Hub cannot be reached, or its cache cannot be written.
    """
    return checkpoint_of(open_files(reference))


def checkpoint_of(files: Files) -> Checkpoint:
    """Open the checkpoint of some files as `open_checkpoint` does, raising what it raises."""
    path = config_path(files)
    config = read_json(path)
    model_type, own, _ = language_config(config)
    architecture = find_architecture(model_type)
    if architecture is None:
        raise _unknown_architecture(files, model_type)
    sizes = read_sizes(config, str(path))
    quantization = quantization_of(config, own, str(path))
    tensors = TensorTable(files)
    names = locate(files.reference, architecture, sizes, tensors.names())
    tensors.open_files(names.values())
    prefix = names[0, "q"].split(architecture.layer.format(layer=0))[0]
    return Checkpoint(
        reference=files.reference,
        folder=files.folder,
        architecture=model_type,
        num_layers=sizes.num_layers,
        hidden_size=sizes.hidden_size,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        vocab_size=sizes.vocab_size,
        tokenizer_key=tokenizer_key(files),
        revision=files.revision,
        matrices=tuple(
            cut(tensors, name, role, layer, architecture.parts[role], sizes, quantization)
            for (layer, role), name in names.items()
        ),
        intermediate_size=_intermediate_size(own),
        tensors=tensors,
        layer_path=prefix + architecture.layer.split("{layer}")[0] + "{layer}.",
    )


def _intermediate_size(own: Mapping[str, Any]) -> int | None:
    values = (own.get(key) for key in ("intermediate_size", "n_inner", "ffn_dim"))
    return next((value for value in values if type(value) is int and 0 < value < MAX_SIZE), None)


def config_path(files: Files) -> Path:
    """Return where config.json lies.

    Raises:
        CheckpointError: there is none, so this is no model.
    """
    path = files.get("config.json")
    if path is not None:
        return path
    if files.get("adapter_config.json") is not None:
        raise CheckpointError(
            f"{one_line(files.reference)}: expected config.json, got a LoRA adapter; merge it into its base, save, and open that"
        )
    raise CheckpointError(
        f"{one_line(files.reference)}: no config.json; name the folder that `save_pretrained` of transformers wrote"
    )


def _unknown_architecture(files: Files, model_type: str) -> CheckpointError:
    attention = attention_like(known_names(files))
    return CheckpointError(
        f"{one_line(files.reference)}: config.json: model_type {shown(model_type)} is not in the table of architectures"
        f"{closest_architecture(model_type)}; its attention seems to be: {attention}; "
        f"add a row that names these to modelassay/models/checkpoints/architectures.py"
    )
