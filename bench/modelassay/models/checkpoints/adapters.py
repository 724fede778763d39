"""A LoRA adapter and its base: the weights that running both together has, W + s B A, merged in float32 when they are read."""

# R = rows of a weight, K = rank

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modelassay.errors import CheckpointError, printable
from modelassay.models.checkpoints.forms import Stored
from modelassay.models.checkpoints.pickled import Pickles
from modelassay.models.checkpoints.safetensors import TORCH_DTYPES, TensorInfo, read_elements
from modelassay.models.checkpoints.shards import Shards, Source
from modelassay.models.decoded import DecodedFile, Recipe
from modelassay.models.gate import one_line, read_json, section, shown
from modelassay.models.hub import Files
from modelassay.models.places import ADAPTER
from modelassay.models.tokenizer import TOKENIZER_FILES

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
_FACTOR: Final = re.compile(
    r"(?P<module>.+)\.(?P<factor>lora_A|lora_B|lora_embedding_A|lora_embedding_B)(\.default)?(\.weight)?"
)
_OUTER: Final = "base_model.model."
_CHANGES_BASE: Final = ("pissa", "olora", "corda", "loftq")
"""Ways to begin an adapter that change the base, too, which then is not the one that is named."""
_UNREAD: Final = {
    "use_dora": "DoRA, which scales rows anew", "lora_bias": "a bias of its own", "layer_replication": "layers that are repeated",
    "alora_invocation_tokens": "an activated LoRA, which acts on some tokens only", "target_parameters": "LoRA on parameters of experts",
    "use_qalora": "QALoRA", "arrow_config": "Arrow, which chooses among adapters", "trainable_token_indices": "trained tokens",
}  # fmt: skip
"""Keys that say that an adapter is more than W + s B A, and what it is."""

MAX_RANK: Final = 1 << 16


class AdapterFiles:
    """The files of a base, with those of an adapter that changes it."""

    revision: str | None
    chosen: str | None = None
    not_run: str | None = (
        "an adapter is read together with its base, but not run; merge it into its base, save, and name that"
    )

    def __init__(self, base: Files, adapter: Files) -> None:
        """Stand for both."""
        self.base = base
        self.adapter: Files | None = adapter
        self.own = adapter
        self.reference, self.folder, self.revision = adapter.reference, adapter.folder, adapter.revision
        self.local = base.local and adapter.local
        self.notes: tuple[str, ...] = (
            *adapter.notes,
            f"a LoRA adapter, merged into {printable(base.reference)}",
            *base.notes,
        )

    def get(self, name: str, *, required: bool = False) -> Path | None:
        """Return a file of the base; of a tokenizer the adapter's where it has one."""
        if name == ADAPTER:
            return self.own.get(name)
        own = self.own.get(name) if name in TOKENIZER_FILES else None
        return own if own is not None else self.base.get(name, required=required)

    def open_weights(self, name: str, *, required: bool = False) -> Path | None:
        """Open a file of the base."""
        return self.base.open_weights(name, required=required)

    def open_all(self, names: Iterable[str]) -> None:
        """Open files of the base."""
        self.base.open_all(names)

    def list_files(self) -> list[str]:
        """Return the names of the base's files."""
        return self.base.list_files()

    def weights_bytes(self) -> int:
        """Return the size of both."""
        return self.base.weights_bytes() + self.own.weights_bytes()

    def fetched_bytes(self) -> int:
        """Return what was fetched of both."""
        return self.base.fetched_bytes() + self.own.fetched_bytes()

    def release(self) -> None:
        """Take away what was fetched of both."""
        self.base.release()
        self.own.release()


def base_of(files: Files) -> str:
    """Return the reference of the model that an adapter changes: a folder that is there, from the adapter's or from where it is run, or the Hub's.

    Raises:
        CheckpointError: the adapter names none that can be had, or is of a kind that is not merged.
    """
    path = files.get(ADAPTER)
    assert path is not None
    config = read_json(path)
    _require_lora(config, str(path))
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise CheckpointError(
            f"{one_line(path)}: base_model_name_or_path: expected the adapter's base, got {shown(name)}; write it there"
        )
    for folder in (Path(name), files.folder / name):
        if folder.is_dir():
            return str(folder)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return f"hf:{name}@{revision}" if isinstance(revision, str) and revision else f"hf:{name}"
    raise CheckpointError(
        f"{one_line(path)}: base_model_name_or_path: {shown(name)} is neither a folder here nor a repository of the Hub; write there where the "
        "adapter's base is"
    )


def _require_lora(config: Mapping[str, Any], where: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{one_line(where)}: an adapter of peft_type {shown(kind)} is not merged, only LORA; merge it with PEFT and save that"
        )
    for key, what in _UNREAD.items():
        if config.get(key):
            raise CheckpointError(
                f"{one_line(where)}: {key}: an adapter with {what} is not merged; merge it with PEFT and save that"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{one_line(where)}: init_lora_weights: {shown(start)} changes the base as well; merge it with PEFT and save that"
        )


@dataclass(frozen=True, kw_only=True)
class _Change:
    """What is added to one weight."""

    a: str
    b: str
    scale: float
    turned: bool
    """The weight is stored [inputs, outputs]."""


class Merged:
    """The tensors of a base as an adapter changes them."""

    def __init__(self, base: Source, files: Files) -> None:
        """Match the adapter's tensors with the base's; ``files`` are the adapter's. Of the Hub the adapter's file is fetched whole.

        Raises:
            CheckpointError: a tensor of the adapter changes nothing, or does not fit what it changes.
        """
        self._base, self._adapter = base, _weights(files)
        path = files.get(ADAPTER)
        assert path is not None
        self._where, self._config = one_line(path.parent), read_json(path)
        _require_lora(self._config, str(path))
        self._changes: dict[str, _Change] = {}
        self._replaced: dict[str, str] = {}
        self._match()
        self._scratch = DecodedFile()
        self._infos: dict[str, TensorInfo] = {}
        ranks = sorted({self._adapter.find(change.a)[1].shape[0] for change in self._changes.values()})
        said = f"{len(self._changes)} matrices are changed by the adapter, of rank {' to '.join(map(str, dict.fromkeys((ranks[0], ranks[-1]))))}" if ranks else (
            "the adapter changes no matrix")  # fmt: skip
        more = [f"{len(self._replaced)} tensors are the adapter's own"] if self._replaced else []
        self.notes: tuple[str, ...] = (*base.notes, said, *more)

    def names(self) -> Collection[str]:
        """Return the names of the base's tensors."""
        return self._base.names()

    def open_files(self, names: Iterable[str]) -> None:
        """Open the files that hold some tensors."""
        self._base.open_files(names)

    def files_read(self) -> list[str]:
        """Return the names of the base's files that were opened so far."""
        return self._base.files_read()

    def find(self, name: str) -> tuple[Path, TensorInfo]:
        """Return where a tensor can be read: the base's own where the adapter leaves it, else merged, in float32."""
        if name not in self._changes:
            return self._before(name)
        if name not in self._infos:
            self._infos[name] = self._merged(name, self._changes[name])
        return self._scratch.path, self._infos[name]

    def _before(self, name: str) -> tuple[Path, TensorInfo]:
        """Return where a tensor can be read to which nothing is added: the adapter's own, where it brings one, else the base's."""
        return self._adapter.find(self._replaced[name]) if name in self._replaced else self._base.find(name)

    def _match(self) -> None:
        factors: dict[str, dict[str, str]] = {}
        for stored in self._adapter.names():
            name = stored.removeprefix(_OUTER).replace(".base_layer.", ".")
            match = _FACTOR.fullmatch(name)
            if match is not None:
                factors.setdefault(match["module"], {})[match["factor"]] = stored
            else:
                self._replaced[
                    self._target(
                        name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", "."), stored
                    )
                ] = stored
        for module, held in factors.items():
            kind = "lora_embedding" if "lora_embedding_A" in held else "lora"
            a, b = held.get(f"{kind}_A"), held.get(f"{kind}_B")
            if a is None or b is None:
                raise self._fault(next(iter(held.values())), "stands without the other of the two factors")
            target = self._target(f"{module}.weight", a)
            turned = kind == "lora_embedding" or self._config.get("fan_in_fan_out") is True
            self._changes[target] = _Change(a=a, b=b, scale=self._scale(module, a), turned=turned)
            self._require_shapes(target, self._changes[target])
        for name, stored in self._replaced.items():
            shapes = [source.find(of)[1].shape for source, of in ((self._base, name), (self._adapter, stored))]
            if shapes[0] != shapes[1] and shapes[0][1:] != shapes[1][1:]:
                raise self._fault(
                    stored, f"has the shape {shown(list(shapes[1]))} where the base's has {shown(list(shapes[0]))}"
                )

    def _target(self, name: str, stored: str) -> str:
        """Return the base's name of what the adapter changes; with or without what stands before the layers."""
        names = self._base.names()
        for candidate in (name, name.removeprefix("model."), f"model.{name}"):
            if candidate in names:
                return candidate
        raise self._fault(stored, "changes what its base has not, or in a way that is not merged here")

    def _scale(self, module: str, stored: str) -> float:
        rank = self._of_pattern("rank_pattern", module, self._config.get("r"))
        alpha = self._of_pattern("alpha_pattern", module, self._config.get("lora_alpha"))
        if (
            type(rank) is not int
            or not 0 < rank <= MAX_RANK
            or isinstance(alpha, bool)
            or not isinstance(alpha, int | float)
        ):
            raise CheckpointError(
                f"{self._where}: {ADAPTER}: r and lora_alpha: expected numbers, got {shown(rank)} and {shown(alpha)}"
            )
        if self._adapter.find(stored)[1].shape[:1] != (rank,):
            raise self._fault(
                stored,
                f"has the shape {shown(list(self._adapter.find(stored)[1].shape))} where {ADAPTER} says rank {rank}",
            )
        return float(alpha) / (math.sqrt(rank) if self._config.get("use_rslora") is True else rank)

    def _of_pattern(self, key: str, module: str, otherwise: Any) -> Any:
        """Return what a pattern says of a module: by PEFT's rule the first whose expression is the end of its name."""
        patterns = section(self._config, key, f"{self._where}/{ADAPTER}")
        for pattern, value in patterns.items():
            if len(pattern) > 200:
                raise CheckpointError(
                    f"{self._where}: {ADAPTER}: {key}: an expression of {len(pattern)} characters; write it shorter"
                )
            if pattern == module or module.endswith(f".{pattern}"):
                return value
            if re.search(r"[\\()\[\]*+?^$|]", pattern):
                raise CheckpointError(
                    f"{self._where}: {ADAPTER}: {key}: {shown(pattern)} is an expression, of which only the ends of names are read; merge with PEFT"
                )
        return otherwise

    def _require_shapes(self, target: str, change: _Change) -> None:
        weight, a, b = self._before(target)[1], self._adapter.find(change.a)[1], self._adapter.find(change.b)[1]
        expected = (b.shape[0], a.shape[1]) if len(a.shape) == len(b.shape) == 2 else ()
        if change.turned:
            expected = expected[::-1]
        if weight.shape != expected or b.shape[1:] != a.shape[:1] or weight.dtype not in TORCH_DTYPES:
            raise self._fault(
                change.a, f"{shown(list(b.shape))} times {shown(list(a.shape))} does not fit {weight.dtype} {shown(list(weight.shape))} of "
                f"{printable(target)}"
            )  # fmt: skip

    def _merged(self, name: str, change: _Change) -> TensorInfo:
        path, info = self._before(name)
        rows, columns = info.shape
        row_bytes = info.size_bytes // max(rows, 1)

        def make(first: int, last: int) -> Any:
            weight = read_elements(path, info.dtype, info.offset + first * row_bytes, (last - first) * columns)
            a, b = self._read(change.a), self._read(change.b)
            left, right = (a[:, first:last].T, b.T) if change.turned else (b[first:last], a)
            return (weight.float().reshape(last - first, columns) + change.scale * (left @ right)).contiguous().numpy()

        def sources(first: int, last: int) -> Iterable[tuple[Path, tuple[int, int]]]:
            yield path, (info.offset + first * row_bytes, info.offset + last * row_bytes)
            for part in (change.a, change.b):
                place, own = self._adapter.find(part)
                yield place, (own.offset, own.offset + own.size_bytes)

        offset = self._scratch.add(Recipe(num_units=rows, unit_bytes=4 * columns, make=make, sources=sources))
        return TensorInfo("F32", info.shape, offset, 4 * rows * columns)

    def _read(self, stored: str) -> Tensor:
        path, info = self._adapter.find(stored)
        if info.dtype not in TORCH_DTYPES:
            raise self._fault(stored, f"{info.dtype} holds no plain numbers")
        return read_elements(path, info.dtype, info.offset, math.prod(info.shape)).float().reshape(info.shape)

    def _fault(self, stored: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self._where}: {printable(stored)}: {what}; merge the adapter with PEFT and save that")


def _weights(files: Files) -> Source:
    for name in ADAPTER_WEIGHTS:
        if files.open_weights(name) is not None:
            if name.endswith(".bin"):
                return Pickles(files, Stored(form="pickle", files=(name,)))
            return Shards(files, Stored(form="safetensors", files=(name,)))
    raise CheckpointError(
        f"{one_line(files.reference)}: {ADAPTER} without {' or '.join(ADAPTER_WEIGHTS)}; fetch the adapter again"
    )
