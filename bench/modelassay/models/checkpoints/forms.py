"""In which form a checkpoint's weights are stored, and in which files, told by the files' names.

See docs/methods/formats.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from modelassay.errors import CheckpointError, printable
from modelassay.models.checkpoints.safetensors import read_shard_index
from modelassay.models.gate import one_line
from modelassay.models.hub import Files
from modelassay.models.places import SHARD, gguf_files, without_weights
from modelassay.storage.stray import is_stray

Form = Literal["safetensors", "pickle", "gguf"]
PICKLES: Final = (".bin", ".pt", ".pth")
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

_NO_WEIGHTS: Final = re.compile(
    r"adapter_(model|weights)\b.*|optimizer.*|scheduler.*|scaler.*|training_args.*|rng_state.*|trainer_state.*|random_states.*|ema.*|mmproj.*"
    r"|.*_optim_states.*|.*imatrix.*|tokenizer.*"
)
"""Files that end like weights and are none of the model's: an adapter's, a training's."""
_BASE: Final = re.compile(r"(model|pytorch_model)\.(safetensors|bin)(\.index\.json)?")
_VARIANT: Final = re.compile(r"(?P<base>model|pytorch_model)\.(?P<variant>[A-Za-z0-9_]+?)(?P<shard>-\d{5}-of-\d{5})?\.(safetensors|bin)|"
                      r"(?P<index>model\.safetensors|pytorch_model\.bin)\.index\.(?P<index_variant>[A-Za-z0-9_]+)\.json")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Where a checkpoint's weights are."""

    form: Form
    files: tuple[str, ...]
    """In order; one, where it is not sharded."""
    file_of: Mapping[str, str] | None = None
    """The file of each tensor, by an index; None where the files' own headers tell."""
    index: str | None = None
    note: str | None = None


def stored_in(files: Files, open_file: Callable[[str], Path | None]) -> Stored:
    """Return where a checkpoint's weights are; ``open_file`` tells whether there is a file.

    The file that was named; else model.safetensors if there is one, as transformers prefers it; else what its index names; else what alone can
    be meant among the other files: safetensors before pickles before GGUF, shards of which all are there, one variant.

    Raises:
        CheckpointError: there are none, some are missing, or several may be meant.
    """
    if files.chosen is not None:
        return _one(files.chosen, files)
    if open_file(SINGLE) is not None:
        return Stored(form="safetensors", files=(SINGLE,))
    if (index := files.get(INDEX)) is not None:
        return _indexed("safetensors", index)
    names = [name for name in files.list_files() if not is_stray(name) and not _NO_WEIGHTS.fullmatch(name)]
    for form, endings in (("safetensors", (".safetensors",)), ("pickle", PICKLES)):
        found = _by_names(files, names, "safetensors" if form == "safetensors" else "pickle", endings)
        if found is not None:
            return found
    match gguf_files(names):
        case [only]:
            return _one(only, files)
        case []:
            if (files.folder / SINGLE).is_dir():
                raise CheckpointError(
                    f"{one_line(files.reference)}: {SINGLE} is not a file; take it away, or put the weights there"
                )
            raise without_weights(
                files.reference, files.list_files(), f"{SINGLE}, {INDEX} or one other file of weights"
            )
        case several:
            raise CheckpointError(
                f"{one_line(files.reference)}: {len(several)} GGUF files, {printable(', '.join(several[:4]))}; name one: "
                f"{one_line(files.reference.partition('@')[0].rstrip('/'))}/{printable(several[0])}"
            )


def _one(name: str, files: Files) -> Stored:
    if name.endswith(".gguf"):
        shard = SHARD.fullmatch(name)
        count = 1 if shard is None else int(shard["count"])
        every = (
            (name,)
            if shard is None
            else tuple(f"{shard['stem']}-{at + 1:05d}-of-{count:05d}.gguf" for at in range(count))
        )
        return Stored(form="gguf", files=every)
    return Stored(form="pickle" if name.endswith(PICKLES) else "safetensors", files=(name,))


def _by_names(files: Files, names: Sequence[str], form: Form, endings: tuple[str, ...]) -> Stored | None:
    weights = [name for name in names if name.endswith(endings)]
    indices = [
        name
        for name in names
        if name.endswith(".json") and ".index." in name and any(ending in name for ending in endings)
    ]
    base = [name for name in (*indices, *weights) if _BASE.fullmatch(name)]
    if form == "pickle" and base:  # what transformers reads, whatever else lies there
        indices = [name for name in base if name.endswith(".json")]
        weights = [] if indices else base
    if len(indices) == 1 and (path := files.get(indices[0])) is not None:
        return _indexed(form, path, note=_variant_note(indices[0]))
    if not weights:
        return None
    variants = {match["variant"] for name in weights if (match := _VARIANT.fullmatch(name)) is not None}
    sets = _shard_sets(weights)
    if len(sets) == 1 and len(variants) <= 1:
        stem, held = next(iter(sets.items()))
        count = max(len(held), _count(held[0]))
        if len(held) < count:
            lacking = sorted(
                {f"{stem}-{at + 1:05d}-of-{count:05d}{Path(held[0]).suffix}" for at in range(count)} - set(held)
            )
            raise CheckpointError(
                f"{one_line(files.reference)}: {len(lacking)} of {count} shards are not there: {printable(', '.join(lacking[:4]))}; fetch them"
            )
        return Stored(form=form, files=tuple(held), note=_variant_note(held[0]))
    raise CheckpointError(
        f"{one_line(files.reference)}: expected {SINGLE}, {INDEX} or one other file of weights, got {printable(', '.join(weights[:4]))}; "
        f"name one: {one_line(files.reference.partition('@')[0].rstrip('/'))}/{printable(weights[0])}"
    )


def _shard_sets(names: Collection[str]) -> dict[str, list[str]]:
    """Return the files by what their names say they are shards of; a file that is no shard alone."""
    sets: dict[str, list[str]] = {}
    for name in sorted(names):
        shard = SHARD.fullmatch(name)
        sets.setdefault(name if shard is None else shard["stem"], []).append(name)
    return sets


def _count(name: str) -> int:
    shard = SHARD.fullmatch(name)
    return 1 if shard is None else int(shard["count"])


def _variant_note(name: str) -> str | None:
    match = _VARIANT.fullmatch(name)
    variant = None if match is None else match["variant"] or match["index_variant"]
    return None if variant is None else f"its variant {printable(variant)} is read, the only one there"


def _indexed(form: Form, path: Path, note: str | None = None) -> Stored:
    file_of = read_shard_index(path)
    return Stored(form=form, files=tuple(sorted(set(file_of.values()))), file_of=file_of, index=path.name, note=note)
