"""What a layer holds besides its four attention matrices: biases, norms and the feed-forward network, by role."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modelassay.models.checkpoints import Checkpoint, config_path
from modelassay.models.checkpoints.architectures import INTERLEAVED, NORM_PLUS_ONE, language_config
from modelassay.models.checkpoints.factors import is_plain
from modelassay.models.checkpoints.feed_forward import NETWORK, NORMS, layer_names
from modelassay.models.checkpoints.projections import Part
from modelassay.models.checkpoints.recognise import Layout
from modelassay.models.checkpoints.safetensors import DTYPE_BITS, TensorInfo, read_elements, read_rows
from modelassay.models.checkpoints.stacks import is_tower
from modelassay.models.checkpoints.tensors import Matrix, TensorTable, cut, read_matrix
from modelassay.models.gate import read_json
from modelassay.models.hub import Files

if TYPE_CHECKING:
    from torch import Tensor

    from modelassay_kernels import FileSpan

_PLAIN_HEADS = frozenset({"llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"})
"""Architectures whose head is ``lm_head.weight`` without bias, or the embedding where that is not stored."""
_EMBEDDING = re.compile(
    r"(?:.*\.)?(?:embed_tokens|wte|word_embeddings?|embed_in|tok_embeddings|token_embedding|tokens_embed|shared)\.weight|transformer\.w\.weight"
)


def layer_tensors(checkpoint: Checkpoint) -> list[dict[str, list[str]]]:
    """Return for each layer the names of the tensors of its norms and feed-forward network, as `layer_names`."""
    layout = Layout(prefixes=checkpoint.prefixes, layers=checkpoint.layers, notes=())
    return layer_names(checkpoint.tensors.names(), layout, checkpoint.architecture, checkpoint.row)


def layer_spans(checkpoint: Checkpoint) -> list[dict[str, list[FileSpan]]]:
    """Return for each layer the spans of its norms, ``gate up down q-bias k-bias v-bias``, those it has.

    Tensors that hold no plain numbers (packed or scaled by a quantiser) are left out. Of a repository on the Hub the
    files that hold these tensors are fetched.
    """
    layers: list[dict[str, list[FileSpan]]] = [{} for _ in range(checkpoint.num_layers)]
    tensors = layer_tensors(checkpoint)
    for at, (layer, names) in enumerate(zip(layers, tensors, strict=True)):
        for role in NORMS:
            if spans := [
                span for name in names.get(role, []) if (span := _whole(checkpoint.tensors, name)) is not None
            ]:
                layer[role] = spans
        for role, matrices in _network(checkpoint, at, names).items():
            layer[role] = [matrix.span for matrix in matrices]
    for matrix in checkpoint.matrices:
        if matrix.role in {"q", "k", "v"} and (bias := _bias(checkpoint, matrix)) is not None:
            layers[matrix.layer][f"{matrix.role}-bias"] = [bias]
    return layers


def network_matrices(checkpoint: Checkpoint) -> list[dict[str, list[Matrix]]]:
    """Return for each layer the matrices ``gate``, ``up`` and ``down``, those it has and that hold plain numbers; of experts one each."""
    return [_network(checkpoint, at, names) for at, names in enumerate(layer_tensors(checkpoint))]


def _network(checkpoint: Checkpoint, layer: int, names: dict[str, list[str]]) -> dict[str, list[Matrix]]:
    """Return the matrices of one layer's networks, cut out of tensors that gate and up, or all experts, share."""
    tensors, width = checkpoint.tensors, checkpoint.hidden_size
    shapes = {
        name: info.shape
        for role in NETWORK
        for name in names.get(role, [])
        if is_plain(tensors, name, info := tensors.find(name)[1])
    }
    downs = [name for name in names.get("down", []) if name in shapes]
    turned = {
        name: turn
        for name in downs
        if (turn := _is_turned(shapes[name], width, inward=False, like=checkpoint)) is not None
    }
    inner = {name: shapes[name][-2 if turned[name] else -1] for name in turned}
    layers: dict[str, list[Matrix]] = {}
    for role in ("gate", "up", "gate-up"):
        for at, name in enumerate(names.get(role, [])):
            if name not in shapes:
                continue
            beside = names["down"][at] if at < len(names.get("down", [])) else None
            for cut_role, matrix in _inward(
                checkpoint, layer, name, role, shapes[name], inner.get(beside or ""), turned.get(beside or "")
            ):
                layers.setdefault(cut_role, []).append(matrix)
    for name in turned:
        layers.setdefault("down", []).extend(
            _experts(tensors, layer, name, "down", shapes[name], (width, inner[name]), turned=turned[name])
        )
    return layers


def _is_turned(shape: tuple[int, ...], width: int, *, inward: bool, like: Checkpoint) -> bool | None:
    """Return whether a matrix is stored [inputs, outputs], told by which side is the hidden size; None where neither is."""
    if len(shape) not in {2, 3}:
        return None
    inputs_last, inputs_first = (
        (shape[-1] == width, shape[-2] == width) if inward else (shape[-2] == width, shape[-1] == width)
    )
    if inputs_last and inputs_first:
        return any(matrix.inputs_first for matrix in like.matrices_in(0) if matrix.role == "o")
    return None if not inputs_last and not inputs_first else inputs_first


def _inward(checkpoint: Checkpoint, layer: int, name: str, role: str, shape: tuple[int, ...], inner: int | None,
            like_down: bool | None) -> Iterator[tuple[str, Matrix]]:  # fmt: skip
    """Yield the matrices that read the hidden dimensions, with their role: a tensor of twice the inner width holds gate and up."""
    width = checkpoint.hidden_size
    turned = like_down if like_down is not None else _is_turned(shape, width, inward=True, like=checkpoint)
    if turned is None or len(shape) not in {2, 3} or shape[-2 if turned else -1] != width:
        turned = _is_turned(shape, width, inward=True, like=checkpoint)
    if turned is None:
        return
    outputs = shape[-1 if turned else -2]
    is_both = role == "gate-up" or (role == "up" and inner is not None and outputs == 2 * inner)
    if not is_both:
        for matrix in _experts(checkpoint.tensors, layer, name, role, shape, (outputs, width), turned=turned):
            yield role, matrix
        return
    turns = outputs // 2 if checkpoint.architecture in INTERLEAVED else 1
    shares = (("gate", outputs // 2), ("up", outputs // 2))
    for part in ("gate", "up"):
        for matrix in _experts(
            checkpoint.tensors,
            layer,
            name,
            part,
            shape,
            (outputs // 2, width),
            turned=turned,
            shares=shares,
            turns=turns,
        ):
            yield part, matrix


def _experts(tensors: TensorTable, layer: int, name: str, role: str, shape: tuple[int, ...], matrix: tuple[int, int], *, turned: bool,
             shares: tuple[tuple[str, int], ...] = (), turns: int = 1) -> list[Matrix]:  # fmt: skip
    """Cut one matrix of each expert out of a tensor, or the one that it is."""
    part = Part(tensor=name, shape=matrix, shares=shares, turns=turns, inputs_first=turned)
    count, size = (shape[0], shape[1] * shape[2]) if len(shape) == 3 else (1, 0)
    return [cut(tensors, part, role, layer, {}, at=expert * size) for expert in range(count)]


def read_neurons(matrix: Matrix, limit: int | None) -> Tensor:
    """Return the first ``limit`` neurons of a network's matrix as rows [n, hidden size] in the stored dtype; None: all.

    Of a matrix whose rows are neurons only these are read.
    """
    is_down = matrix.role == "down"
    rows = matrix.shape[1 if is_down else 0]
    count = rows if limit is None else min(limit, rows)
    if is_down == matrix.inputs_first and matrix.turns == 1:
        span = matrix.span
        size = (count - 1) * span.row_stride + span.num_cols if count else 0
        return read_elements(Path(span.path), span.dtype, span.offset, size).as_strided(
            (count, span.num_cols), (span.row_stride, 1)
        )
    values = read_matrix(matrix)
    return (values.T if is_down else values)[:count].contiguous()


def _whole(tensors: TensorTable, name: str) -> FileSpan | None:
    """Return where a tensor of plain numbers lies; None for one without elements, too, or one that a factor belongs to."""
    from modelassay_kernels import FileSpan

    path, info = tensors.find(name)
    if not info.size_bytes or not is_plain(tensors, name, info):
        return None
    count = math.prod(info.shape)
    return FileSpan(str(path), info.offset, info.dtype, 1, count, count)


def bias_name(matrix: Matrix) -> str:
    """Return the name that the bias of a matrix's tensor has, if it has one."""
    name = matrix.tensor_name
    return (
        name.removesuffix("_weight") + "_bias" if name.endswith("_weight") else name.removesuffix(".weight") + ".bias"
    )


def _bias(checkpoint: Checkpoint, matrix: Matrix) -> FileSpan | None:
    """Return where a projection's bias lies; None where it has none."""
    from modelassay_kernels import FileSpan

    name = bias_name(matrix)
    if name not in checkpoint.tensors.names():
        return None
    path, info = checkpoint.tensors.find(name)
    (start, total), turns = matrix.block(), matrix.turns
    if info.dtype not in {"BF16", "F16", "F32", "F64"} or info.shape != (total * turns,):
        return None
    size, count = DTYPE_BITS[info.dtype] // 8, matrix.shape[0] // turns
    return FileSpan(str(path), info.offset + start * size, info.dtype, turns, count, total if turns > 1 else count)


def read_span(span: FileSpan) -> Tensor:
    """Return a copy of a span without scales as float64: [rows, columns]."""
    count = (span.num_rows - 1) * span.row_stride + span.num_cols
    flat = read_elements(Path(span.path), span.dtype, span.offset, count)
    return flat.as_strided((span.num_rows, span.num_cols), (span.row_stride, 1)).double()


def norm_weights(checkpoint: Checkpoint, span: FileSpan) -> Tensor:
    """Return what a norm multiplies by, as float64 [rows, columns]: the stored weights, or one plus them where its code adds it."""
    stated = None if checkpoint.row is None else checkpoint.row.norm_plus_one
    plus_one = checkpoint.architecture in NORM_PLUS_ONE if stated is None else stated
    return read_span(span) + 1 if plus_one else read_span(span)


def _embedding(checkpoint: Checkpoint) -> tuple[Path, TensorInfo] | None:
    """Return where the input embedding lies; None where none is known whose stored numbers are its weights."""
    stated = (checkpoint.row.modules or {}).get("embedding") if checkpoint.row is not None else None
    for name in checkpoint.tensors.names():
        is_embedding = (
            _EMBEDDING.fullmatch(name) and not is_tower(name)
            if stated is None
            else name in (stated, f"{stated}.weight")
        )
        if is_embedding:
            path, info = checkpoint.tensors.find(name)
            fits = len(info.shape) == 2 and info.shape[1] == checkpoint.hidden_size
            if fits and _whole(checkpoint.tensors, name) is not None:
                return path, info
    return None


def read_embedding(checkpoint: Checkpoint, num_rows: int) -> Tensor | None:
    """Return the first rows of the input embedding as float64 [num_rows or fewer, hidden size]; None where none is known."""
    place = _embedding(checkpoint)
    if place is None:
        return None
    path, info = place
    rows = min(num_rows, info.shape[0])
    return read_elements(path, info.dtype, info.offset, rows * info.shape[1]).double().reshape(rows, info.shape[1])


def num_embedding_rows(checkpoint: Checkpoint) -> int | None:
    """Return how many rows the input embedding has in its file; None where none is known."""
    place = _embedding(checkpoint)
    return None if place is None else place[1].shape[0]


def read_embedding_rows(checkpoint: Checkpoint, rows: Sequence[int]) -> Tensor | None:
    """Return some rows of the input embedding as float32 [rows, hidden size]; None where none is known, or it has fewer rows."""
    place = _embedding(checkpoint)
    if place is None or max(rows, default=0) >= place[1].shape[0]:
        return None
    path, info = place
    return read_rows(path, info, rows).float()


def read_head(files: Files) -> Tensor | None:
    """Return the matrix that makes logits of hidden states, in fp32 [V, D]; None where the files alone do not tell which it is.

    Saves loading a whole model; of a repository the file that holds it is fetched.

    Raises:
        CheckpointError: the weights cannot be read.
    """
    config = read_json(config_path(files))
    model_type, own, _ = language_config(config)
    if model_type not in _PLAIN_HEADS:
        return None
    tensors = TensorTable(files)
    separate = "lm_head.weight" in tensors.names()
    if separate and own.get("tie_word_embeddings", config.get("tie_word_embeddings")):
        return None
    name = "lm_head.weight" if separate else "model.embed_tokens.weight"
    if name not in tensors.names():
        return None
    path, info = tensors.find(name)
    if info.dtype == "F64" or not is_plain(tensors, name, info) or len(info.shape) != 2:
        return None
    return read_elements(path, info.dtype, info.offset, math.prod(info.shape)).float().reshape(info.shape)
