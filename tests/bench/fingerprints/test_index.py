"""An index of ten thousand models that are made up: what is found, what is not, and files that are none of it."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from modelassay.errors import RecordError
from modelassay.fingerprints.independence.blocks import NUM_LAYERS
from modelassay.fingerprints.independence.sketch import Ranks, Sketch
from modelassay.fingerprints.index import TESTED, Entry, scan_index, write_index

NUM_MODELS, SIZE, NUM_KIN = 10_000, 64, 40


def entry(name: str, ranks: Ranks, width: int = SIZE, family: str | None = None) -> Entry:
    sketch = Sketch(width=width, ranks_FM=ranks, num_bytes=1000)
    return Entry(
        model=name, revision=None, architecture="llama", num_layers=8, family=family, sketch=sketch, weights_bytes=10**6
    )


def orders(rng: np.random.Generator, size: int = SIZE) -> Ranks:
    return np.stack([rng.permutation(size) for _ in range(NUM_LAYERS)]).astype(np.uint16)


def relative_of(ranks: Ranks, noise: float, rng: np.random.Generator) -> Ranks:
    return (ranks + noise * rng.standard_normal(ranks.shape)).argsort(1).argsort(1).astype(np.uint16)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ranks]:
    """An index of strangers and of one model's kin, of another width too."""
    rng = np.random.default_rng(0)
    own = orders(rng)
    kin = [entry(f"kin-{at}", relative_of(own, 4.0, rng), family="own") for at in range(NUM_KIN)]
    strangers = [entry(f"model-{at}", orders(rng)) for at in range(NUM_MODELS - NUM_KIN)]
    folder = tmp_path_factory.mktemp("index")
    assert write_index([*strangers, *kin, entry("wide", orders(rng, 96), width=96)], folder) == NUM_MODELS + 1
    return folder, own


def test_all_kin_and_no_stranger_is_found_among_ten_thousand(world: tuple[Path, Ranks]) -> None:
    folder, own = world
    scan = scan_index(Sketch(width=SIZE, ranks_FM=own, num_bytes=0), folder, nearest=NUM_KIN + 5)
    assert (scan.num_models, scan.num_compared) == (NUM_MODELS + 1, NUM_MODELS)
    called = [relative.model for relative in scan.relatives if relative.log10_p <= -6]
    assert sorted(called) == sorted(f"kin-{at}" for at in range(NUM_KIN))
    assert scan.relatives[0].family == "own"
    assert [relative.log10_p for relative in scan.relatives] == sorted(relative.log10_p for relative in scan.relatives)
    # corrected for all that were compared
    nearest = scan.relatives[0]
    assert nearest.log10_p == pytest.approx(nearest.alike.log10_p + 4)


def test_strangers_are_called_no_oftener_than_the_level(world: tuple[Path, Ranks]) -> None:
    folder, _ = world
    rng = np.random.default_rng(1)
    smallest = [
        scan_index(Sketch(width=SIZE, ranks_FM=orders(rng), num_bytes=0), folder, nearest=1).relatives[0].log10_p
        for _ in range(40)
    ]
    assert np.mean(np.array(smallest) <= np.log10(0.05)) <= 0.05 + 3 * np.sqrt(0.05 / 40)
    assert min(smallest) > -4


def test_a_model_is_not_its_own_kin_and_other_widths_are_not_compared(world: tuple[Path, Ranks]) -> None:
    folder, own = world
    sketch = Sketch(width=SIZE, ranks_FM=own, num_bytes=0)
    scan = scan_index(sketch, folder, nearest=3, besides="kin-0")
    assert "kin-0" not in {relative.model for relative in scan.relatives}
    assert scan.num_compared == NUM_MODELS - 1
    other = scan_index(
        Sketch(width=SIZE + 1, ranks_FM=orders(np.random.default_rng(3), SIZE + 1), num_bytes=0), folder, nearest=3
    )
    assert (other.relatives, other.num_compared, other.num_models) == ((), 0, NUM_MODELS + 1)
    assert len(scan_index(sketch, folder, nearest=2 * TESTED).relatives) == 2 * TESTED


def test_what_is_no_index_is_said_in_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    sketch = Sketch(width=SIZE, ranks_FM=orders(rng), num_bytes=0)
    with pytest.raises(RecordError, match="no index of models; make one"):
        scan_index(sketch, tmp_path, nearest=1)
    write_index([entry("one", orders(rng))], tmp_path)
    path = tmp_path / f"width={SIZE}" / "models.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match=r"models\.parquet: no Parquet file of an index"):
        scan_index(sketch, tmp_path, nearest=1)
    pl.DataFrame({"model": ["x"]}).write_parquet(path)
    with pytest.raises(RecordError, match="no Parquet file of an index"):
        scan_index(sketch, tmp_path, nearest=1)
    path.write_bytes(whole)
    pl.read_parquet(path).with_columns(version=pl.lit(0, dtype=pl.Int32)).write_parquet(path)
    with pytest.raises(RecordError, match="another version"):
        scan_index(sketch, tmp_path, nearest=1)
    path.write_bytes(whole)
    pl.read_parquet(path).with_columns(ranks=pl.lit(b"short")).write_parquet(path)
    with pytest.raises(RecordError, match="not of 512 bytes"):
        scan_index(sketch, tmp_path, nearest=1)
    path.write_bytes(whole)
    pl.read_parquet(path).with_columns(ranks=pl.lit(bytes(2 * NUM_LAYERS * SIZE))).write_parquet(path)
    with pytest.raises(RecordError, match="a sketch that is no order"):
        scan_index(sketch, tmp_path, nearest=1)
