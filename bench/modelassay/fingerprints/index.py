"""An index of many models: their sketches as one Parquet dataset, and a scan for what a model was not numbered independently of.

::

    INDEX/width=4096/models.parquet     a row each: reference, revision, architecture, layers, family, sketch, bytes

Datasets are portable: several folders of one form may be laid together. What of a scan is near is tested exactly (`sketch.alike`), and
p is corrected for all models of the width, so that whatever the scan chose, the chance of a false relative is at most the level.
"""

# F = layers of a sketch, M = hidden dimensions of a sketch, N = models

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from modelassay.errors import RecordError, printable
from modelassay.fingerprints.independence.blocks import NUM_LAYERS
from modelassay.fingerprints.independence.sampling import MAX_DIMENSIONS
from modelassay.fingerprints.independence.sketch import VERSION, Alike, Ranks, Sketch, alike, correlations
from modelassay.storage.durable import publish

SCHEMA = pl.Schema({
    "model": pl.String, "revision": pl.String, "architecture": pl.String, "num_layers": pl.Int32, "family": pl.String,
    "version": pl.Int32, "ranks": pl.Binary, "read_bytes": pl.Int64, "weights_bytes": pl.Int64,
})  # fmt: skip
TESTED = 64
"""Models of a scan, the nearest by rank correlation, of which the exact test is made."""
_FILE = "models.parquet"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of an index."""

    model: str
    revision: str | None
    architecture: str
    num_layers: int
    family: str | None
    """The root that it is known to descend from."""
    sketch: Sketch
    weights_bytes: int
    """Of all its weights, or 0 where nobody asked."""


@dataclass(frozen=True, kw_only=True)
class Relative:
    """A model of an index, as near as it is."""

    model: str
    revision: str | None
    architecture: str
    family: str | None
    alike: Alike
    log10_p: float
    """Corrected for the layers and for all models of this width in the index; 0 at most."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What an index holds of a model's kin."""

    relatives: tuple[Relative, ...]
    """The nearest, by p."""
    num_compared: int
    """Models of this width."""
    num_models: int


def write_index(entries: Iterable[Entry], folder: Path) -> int:
    """Write a new index; return how many models it holds. ``folder`` is made, or the files in it are replaced one by one.

    Raises:
        OSError: it cannot be written.
    """
    by_width: dict[int, list[dict[str, object]]] = {}
    for entry in entries:
        by_width.setdefault(entry.sketch.width, []).append({
            "model": entry.model, "revision": entry.revision, "architecture": entry.architecture, "num_layers": entry.num_layers,
            "family": entry.family, "version": VERSION, "ranks": entry.sketch.ranks_FM.astype("<u2").tobytes(),
            "read_bytes": entry.sketch.num_bytes, "weights_bytes": entry.weights_bytes,
        })  # fmt: skip
    for width, rows in sorted(by_width.items()):
        part = folder / f"width={width}"
        part.mkdir(parents=True, exist_ok=True)
        aside = part / f"{_FILE}.part"
        pl.DataFrame(rows, schema=SCHEMA).write_parquet(aside)
        publish(aside, part / _FILE)
    return sum(map(len, by_width.values()))


def scan_index(sketch: Sketch, folder: Path, *, nearest: int, besides: str | None = None) -> Scan:
    """Return the ``nearest`` models of an index by p, without the reference ``besides``.

    One pass over the sketches of this width (4 kB each), then `TESTED` exact tests.

    Raises:
        RecordError: the folder is no index, or a file of it is damaged.
    """
    files = sorted(folder.glob("width=*/*.parquet"))
    if not files:
        raise RecordError(
            f"{printable(str(folder))}: no index of models; make one: modelassay run fingerprinting --profile index"
        )
    num_models = sum(_height(path) for path in files)
    frame = _read([path for path in files if path.parent.name == f"width={sketch.width}"], sketch.width)
    frame = frame.filter(pl.col("model") != besides) if besides is not None else frame
    if not frame.height or sketch.is_empty:
        return Scan(relatives=(), num_compared=frame.height, num_models=num_models)
    ranks_NFM = _ranks(frame, sketch)
    order = np.argsort(-correlations(sketch, ranks_NFM), kind="stable")[: max(TESTED, nearest)]
    relatives = []
    for row in order.tolist():
        try:
            other = Sketch(width=sketch.width, ranks_FM=ranks_NFM[row], num_bytes=0)
        except ValueError as error:
            name = printable(str(frame["model"][row]))
            raise RecordError(
                f"{printable(str(folder))}: holds a sketch that is no order, of {name}; make the index anew"
            ) from error
        if (found := alike(sketch, other)) is not None:
            about = frame.row(row, named=True)
            relatives.append(Relative(
                model=about["model"], revision=about["revision"], architecture=about["architecture"], family=about["family"], alike=found,
                log10_p=min(0.0, found.log10_p + math.log10(frame.height))))  # fmt: skip
    relatives.sort(key=lambda relative: relative.log10_p)
    return Scan(relatives=tuple(relatives[:nearest]), num_compared=frame.height, num_models=num_models)


def _height(path: Path) -> int:
    try:
        return int(pl.scan_parquet(path).select(pl.len()).collect().item())
    except (PolarsError, OSError) as error:
        raise _damaged(path, error) from error


def _read(files: list[Path], width: int) -> pl.DataFrame:
    frames = []
    for path in files:
        try:
            frame = pl.read_parquet(path, hive_partitioning=False).select(*SCHEMA).cast(SCHEMA)
        except (PolarsError, OSError) as error:
            raise _damaged(path, error) from error
        size = 2 * NUM_LAYERS * min(width, MAX_DIMENSIONS)
        current = frame.filter(pl.col("version") == VERSION)
        if frame.height and not current.height:
            raise RecordError(
                f"{printable(str(path))}: holds sketches of another version; make the index anew", damaged=path
            )
        if current.height and (current["ranks"].is_null().any() or (current["ranks"].bin.size() != size).any()):
            raise RecordError(
                f"{printable(str(path))}: holds a sketch that is not of {size} bytes; make the index anew", damaged=path
            )
        frames.append(current)
    return pl.concat(frames) if frames else pl.DataFrame(schema=SCHEMA)


def _ranks(frame: pl.DataFrame, sketch: Sketch) -> Ranks:
    content = b"".join(frame["ranks"].to_list())
    ranks: Ranks = (
        np.frombuffer(content, dtype="<u2").astype(np.uint16, copy=False).reshape(frame.height, *sketch.ranks_FM.shape)
    )
    return ranks


def _damaged(path: Path, error: Exception) -> RecordError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RecordError(f"{printable(str(path))}: no Parquet file of an index ({printable(first)})", damaged=path)
