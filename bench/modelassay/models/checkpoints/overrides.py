"""A user's rows of the table of architectures: what `--layout FILE` says of a model type whose layout nothing else tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modelassay.errors import CheckpointError
from modelassay.models.checkpoints.architectures import EVERY_ROLE, Overrides, Sharing
from modelassay.models.gate import one_line, shown

_MODULES: Final = (
    *EVERY_ROLE,
    "norm-1",
    "norm-2",
    "post-norm-1",
    "post-norm-2",
    "gate",
    "up",
    "gate-up",
    "down",
    "embedding",
)
_KEYS: Final = ("model_type", "layer", "shares", "turns", "norm_plus_one", *_MODULES)


def read_overrides(path: Path) -> tuple[Overrides, ...]:
    """Return the rows of a YAML file: one mapping, or a list of them, with these keys, of which `model_type` alone is required.

    ``layer`` is what the names of a layer's tensors begin with, ``{layer}`` counting from 0; with it q, k, v and o are required. A role
    (``q``, ``gate``, ``norm-1`` ...) names the module below the layer, ``embedding`` a whole name. ``shares`` is the order in a shared
    tensor (``q k v``), ``turns`` how often they take turns (``once``, ``kv-heads``, ``heads`` or a number).

    Raises:
        CheckpointError: the file cannot be read, or a key or a value is none of these.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not YAML"
        raise CheckpointError(f"{one_line(path)}: cannot be read: {reason}; write a few lines `key: value`") from None
    rows = data if isinstance(data, list) else [data]
    return tuple(_row(row, one_line(path)) for row in rows)


def _row(row: Any, where: str) -> Overrides:
    if not isinstance(row, dict) or not isinstance(row.get("model_type"), str):
        raise CheckpointError(
            f"{where}: expected `model_type: NAME` and further keys, got {shown(row)}; use of {', '.join(_KEYS)}"
        )
    if unknown := [key for key in row if key not in _KEYS]:
        raise CheckpointError(f"{where}: {shown(unknown[0])}: unknown key; use of {', '.join(_KEYS)}")
    modules = {key: row[key] for key in _MODULES if key in row}
    texts = {**modules, **({"layer": row["layer"]} if "layer" in row else {})}
    if wrong := [key for key, value in texts.items() if not isinstance(value, str) or not value]:
        raise CheckpointError(f"{where}: {wrong[0]}: expected a name, got {shown(texts[wrong[0]])}")
    if "layer" in row and (row["layer"].count("{layer}") != 1 or not {"q", "k", "v", "o"} <= modules.keys()):
        raise CheckpointError(
            f"{where}: layer: expected a name with {{layer}} once, and q, k, v and o beside it, got {shown(row['layer'])}"
        )
    plus_one = row.get("norm_plus_one")
    if plus_one is not None and not isinstance(plus_one, bool):
        raise CheckpointError(f"{where}: norm_plus_one: expected true or false, got {shown(plus_one)}")
    return Overrides(
        model_type=row["model_type"], layer=row.get("layer"), modules=modules or None, sharing=_sharing(row, where),
        norm_plus_one=plus_one,
    )  # fmt: skip


def _sharing(row: Mapping[str, Any], where: str) -> Sharing | None:
    if "shares" not in row and "turns" not in row:
        return None
    shares, turns = row.get("shares", "q k v"), row.get("turns", "once")
    if not isinstance(shares, str) or sorted(shares.split()) != ["k", "q", "v"]:
        raise CheckpointError(f"{where}: shares: expected q, k and v in storing order, as `q k v`, got {shown(shares)}")
    if turns not in {"once", "kv-heads", "heads"} and (type(turns) is not int or turns < 1):
        raise CheckpointError(
            f"{where}: turns: expected once, kv-heads, heads or a whole number above 0, got {shown(turns)}"
        )
    return Sharing(shares=tuple(shares.split()), turns=turns)
