"""Which folder and which file a user means who names something on this machine: a folder, a file in it, or what holds the folder."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelassay.errors import CheckpointError, printable
from modelassay.models.gate import one_line
from modelassay.storage.stray import is_stray

CONFIG: Final = "config.json"
ADAPTER: Final = "adapter_config.json"
"""Says of a LoRA adapter which model it changes, and how."""

WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
"""What files end in that hold weights which can be read."""

SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.[a-z]+)")
"""One of several files of one model, counting from 1."""

_SMALL: Final = (
    CONFIG,
    ADAPTER,
    "adapter_model.safetensors",
    "adapter_model.bin",
    "tokenizer.json",
    "generation_config.json",
)
_SIGNS: Final[tuple[tuple[str, str], ...]] = (
    ("model_index.json", "a pipeline of diffusers, no language model; name its text_encoder"),
    ("params.json", "weights as their authors' own code reads them (params.json), without a config.json; name the copy in transformers' layout"),
    ("tekken.json", "weights as their authors' own code reads them, without a config.json; name the copy in transformers' layout"),
)  # fmt: skip
_UNREAD: Final = {
    ".h5": "TensorFlow's", ".msgpack": "Flax's", ".onnx": "ONNX's", ".ckpt": "a training framework's", ".tflite": "TensorFlow Lite's",
    ".mlmodel": "Core ML's", ".nemo": "NeMo's", ".llamafile": "llamafile's", ".ggml": "ggml's, of before GGUF", ".npz": "NumPy's",
    ".pte": "ExecuTorch's", ".engine": "TensorRT's", ".exl2": "ExLlama's", ".keras": "Keras's", ".zip": "an archive", ".tar": "an archive",
}  # fmt: skip
"""Files that hold weights which nothing here reads."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a reference means."""

    folder: Path
    chosen: str | None = None
    """The file of weights that was named; None where the folder was."""
    note: str | None = None
    """What is read instead of what was named."""


def find_place(reference: str) -> Place:
    """Return the folder of a model, where one can be meant, of a path to a folder or to a file.

    A folder of the Hub's cache means the snapshot that its main branch is, a Trainer's output its one checkpoint, a shard its model.

    Raises:
        CheckpointError: there is nothing, or several may be meant.
    """
    path = Path(reference)
    if path.is_file():
        return _of_file(reference, path)
    if not path.is_dir():
        raise CheckpointError(
            f"{one_line(reference)}: expected a folder with config.json, got {_got(path)}{_hint(reference)}"
        )
    if _has(path, CONFIG) or _has(path, ADAPTER):
        return Place(folder=path)
    if (path / "snapshots").is_dir():
        return _of_cache(reference, path)
    inside = _models_in(path, "checkpoint-")
    if len(inside) == 1:
        return Place(folder=path / inside[0], note=f"{inside[0]} of it is read")
    if inside:
        raise CheckpointError(
            f"{one_line(reference)}: {len(inside)} checkpoints of one training; name one, as {one_line(path / inside[-1])}"
        )
    return _of_gguf_folder(reference, path)


def _of_file(reference: str, path: Path) -> Place:
    if path.name in _SMALL or path.name.endswith(".index.json"):
        return Place(folder=path.parent)
    if path.suffix in WEIGHTS:
        shard = SHARD.fullmatch(path.name)
        if shard is not None and int(shard["count"]) > 1 and shard["ending"] != ".gguf":
            return Place(
                folder=path.parent, note=f"{path.name} is one of {int(shard['count'])} files, of which all are read"
            )
        return Place(folder=path.parent, chosen=path.name)
    what = f" of a format that is not read ({_UNREAD[path.suffix]})" if path.suffix in _UNREAD else ""
    raise CheckpointError(
        f"{one_line(reference)}: expected a folder with config.json, got a file{what}; name the folder, or a file of weights "
        f"({', '.join(WEIGHTS)})"
    )


def _of_cache(reference: str, path: Path) -> Place:
    """Return the snapshot of a repository's folder in the Hub's cache that its main branch is, or the only one."""
    snapshots = sorted(entry.name for entry in (path / "snapshots").iterdir() if entry.is_dir())
    try:
        main = (path / "refs" / "main").read_text().strip()[:80]
    except (OSError, UnicodeDecodeError):
        main = ""
    commit = main if main in snapshots else snapshots[0] if len(snapshots) == 1 else None
    if commit is None:
        raise CheckpointError(
            f"{one_line(reference)}: {len(snapshots)} snapshots in the Hub's cache and no refs/main that names one; name one"
            f"{', as ' + one_line(path / 'snapshots' / snapshots[-1]) if snapshots else ''}"
        )
    return Place(folder=path / "snapshots" / commit, note=f"its snapshot {printable(commit)} is read")


def _of_gguf_folder(reference: str, path: Path) -> Place:
    files = gguf_files([entry.name for entry in path.iterdir() if entry.is_file()])
    if len(files) > 1 and not any(_has(path, name) for name in ("params.json", "model_index.json")):
        raise CheckpointError(
            f"{one_line(reference)}: {len(files)} GGUF files; name one, as {one_line(path / files[0])}"
        )
    return Place(folder=path, chosen=files[0]) if files else Place(folder=path)


def gguf_files(names: Collection[str]) -> list[str]:
    """Return the GGUF files among some names, of one that was split the first, without projectors of images."""
    found = (
        name
        for name in sorted(names)
        if name.endswith(".gguf") and not is_stray(name) and not name.startswith("mmproj")
    )
    return [name for name in found if (shard := SHARD.fullmatch(name)) is None or int(shard["number"]) == 1]


def _has(folder: Path, name: str) -> bool:
    path = folder / name
    return path.exists() or path.is_symlink()


def _models_in(folder: Path, start: str = "") -> list[str]:
    """Return the names of the folders directly below that hold a model, checkpoints in order of their steps."""
    names = [entry.name for entry in folder.iterdir() if entry.name.startswith(start) and not is_stray(entry.name)
             and (_has(entry, CONFIG) or _has(entry, ADAPTER))]  # fmt: skip
    return sorted(
        names, key=lambda name: (int(name.rpartition("-")[2]) if name.rpartition("-")[2].isdigit() else 0, name)
    )


def _got(path: Path) -> str:
    if path.is_symlink():
        return f"a link to {printable(str(path.readlink()))}, which is not there"
    return "something that is neither a folder nor a file" if path.exists() else "nothing there"


def _hint(reference: str) -> str:
    scheme, colon, rest = reference.partition(":")
    if colon and scheme.lower() in {"hf", "huggingface"}:
        return f"; a repository of the Hub is written hf:{one_line(rest.strip('/'))}"
    if colon and scheme == "ollama":
        return "; name the GGUF file that `ollama show --modelfile NAME` tells after FROM"
    if colon and rest.startswith("//"):
        return f"; nothing here fetches {printable(scheme)}://; fetch it into a folder, and name that"
    if reference.count("/") == 1 and not reference.startswith(("/", ".")):
        return f"; a repository of the Hub is written hf:{one_line(reference)}"
    if "/" not in reference and not colon:
        return "; check the path; a repository of the Hub is written hf:ORG/NAME"
    return "; check the path"


def without_config(reference: str, folder: Path, names: Collection[str]) -> CheckpointError:
    """Return what is said of a folder or a repository without config.json: what it is instead, and what to name.

    ``names`` are its files'; ``folder`` is looked into for models below it.
    """
    where = one_line(reference)
    if (folder / CONFIG).is_symlink():
        return CheckpointError(
            f"{where}: config.json is a link to {printable(str((folder / CONFIG).readlink()))}, which is not there, as where a snapshot of the Hub's"
            " cache was copied without its blobs; copy it with `cp -rL`"
        )
    for sign, what in _SIGNS:
        if sign in names:
            return CheckpointError(f"{where}: no config.json; it holds {what}")
    if inside := _models_in(folder) if folder.is_dir() else []:
        return CheckpointError(
            f"{where}: no config.json, but {printable(', '.join(inside[:4]))} below it holds a model; name that"
        )
    weights = [name for name in sorted(names) if name.endswith(WEIGHTS)]
    if weights:
        return CheckpointError(
            f"{where}: no config.json beside {printable(weights[0])}; fetch it from where the weights are from, it tells what they mean"
        )
    held = (
        f"it holds {printable(', '.join(sorted(names)[:4]))}"
        if names
        else "the folder is empty"
        if folder.is_dir()
        else "it is empty"
    )
    return CheckpointError(
        f"{where}: no config.json; name the folder that `save_pretrained` of transformers wrote ({held})"
    )


def without_weights(reference: str, names: Collection[str], expected: str) -> CheckpointError:
    """Return what is said of a model of which no file holds weights that can be read: what the files are, and what to do."""
    where = one_line(reference)
    for name in sorted(names):
        suffix = Path(name).suffix
        if suffix in _UNREAD:
            return CheckpointError(
                f"{where}: expected {expected}, got {printable(name)}, which is {_UNREAD[suffix]} and not read; load it with the library that "
                "wrote it, and save it with `save_pretrained(...)`"
            )
    adapter = [name for name in names if name.startswith("adapter_model.")]
    got = f"none but {adapter[0]}, an adapter without {ADAPTER}" if adapter else "none"
    return CheckpointError(
        f"{where}: expected {expected}, got {got}; fetch the weights, or name the folder that holds them"
    )
