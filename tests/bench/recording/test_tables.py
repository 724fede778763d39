"""The tables read in bulk are those that the lines say one by one, whatever the lines hold; and what is read for which question."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from modelassay.errors import RecordError
from modelassay.recording import columns, log, tables
from modelassay.recording.columns import METRIC, Columns, UnexpectedLine
from modelassay.recording.line import encode_line, sealed
from modelassay.recording.log import Log, read_cell
from modelassay.recording.status import END_BYTES, read_status
from modelassay.recording.tables import RunData, read_tables
from support.random_logs import VALUES, any_float, assert_same, write_cell


def singly(cells: dict[str, tuple[Path, dict[str, Any]]]) -> RunData:
    """Return the tables that the lines say one by one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_read_bulk", tables._read_singly)
        return read_tables(cells, profile="p")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a few lines, so that many kinds of them meet."""
    monkeypatch.setattr(columns, "BATCH_LINES", 8)
    monkeypatch.setattr("modelassay.recording.lines.CHUNK_BYTES", 700)


@pytest.mark.parametrize("seed", range(40))
def test_bulk_is_the_same_as_line_by_line(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    kinds = rng.sample(sorted(VALUES), rng.randint(0, 4)) if seed >= len(VALUES) else [sorted(VALUES)[seed]]
    for number in range(rng.randint(1, 4)):
        write_cell(tmp_path / f"c{number}", rng, kinds, attempts=rng.randint(1, 3), status=rng.random() < 0.9)
    cells: dict[str, tuple[Path, dict[str, Any]]] = {path.name: (path, {}) for path in sorted(tmp_path.iterdir())}
    expected = singly(cells)
    monkeypatch.setattr(tables, "_read_singly", pytest.fail)
    assert_same(read_tables(cells, profile="p"), expected)


def test_a_hundred_thousand_doubles_come_back_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "BATCH_LINES", 1 << 16)
    monkeypatch.setattr("modelassay.recording.lines.CHUNK_BYTES", 1 << 22)
    rng = random.Random(0)
    values = [value for _ in range(100_000) if math.isfinite(value := any_float(rng))]
    lines = [encode_line({"seq": n, "kind": "metric", "name": "x", "value": v, "labels": {"n": n}})
             for n, v in enumerate(values)]  # fmt: skip
    bulk = Columns(METRIC)
    bulk.add(0, lines, range(len(lines)))
    assert bulk.frame()["value"].to_list() == values
    assert bulk.num_parsed_singly == 0


def test_ordinary_lines_are_not_parsed_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a line that has to be the reason to do so for all others of its run."""
    monkeypatch.setattr(columns, "BATCH_LINES", 100)
    parsed = []
    parse = columns.parse_line
    monkeypatch.setattr(columns, "parse_line", lambda raw: parsed.append(raw) or parse(raw))
    segment = Log(tmp_path / "attempt-1.jsonl", cell=tmp_path.name, attempt=1, resumed_at=0)
    for step in range(3000):
        value: float | str = "nan" if step == 2950 else 0.5
        layer: int | str = "last" if step % 3 else 5
        segment.append("metric", {"name": "x", "value": value, "labels": {"step": step, "layer": layer, "on": True}})
        segment.append(
            "microbatch", {"stage": "s", "index": step, "host_ns": 5, "at_us": 1, "labels": {"layer": layer}}
        )
    segment.append("status", {"outcome": "done", "reason": "", "wall_s": 1.0})
    segment.close()
    data = read_tables({tmp_path.name: (tmp_path, {})}, profile="p")
    assert (data.metrics.height, data.units.height) == (3000, 3000)
    assert data.metrics["layer"].value_counts(sort=True).rows() == [("last", 2000), ("5", 1000)]
    assert len(parsed) < 400


def damaged(raw: bytes, old: bytes, new: bytes) -> bytes:
    """Return a line with another content and a checksum that fits."""
    assert old in raw
    return sealed(raw[: raw.rindex(b',"crc"')].replace(old, new, 1) + b"}")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b'"value":0.5', b'"value":0.5,"value":0.7', "not a record"),
        (b'"value":0.5', b'"value":"much"', "without a valid value"),
        (b'"value":0.5', b'"value":1e999', "without a valid value|not a record"),
        (b'"value":0.5', b'"value":true', "without a valid value"),
        (b'"value":0.5', b'"value":null', "without a valid value"),
        (b'"value":0.5', b'"value":01', "not a record"),
        (b'"value":0.5,', b"", "without a valid value"),
        (b'"name":"x"', b'"name":5', "without a valid name"),
        (b'"name":"x"', b'"name":"\xff"', "not a record"),
        (b'"name":"x"', b'"name":"\x01"', "not a record"),
        (b'"kind":"metric"', b'"kind":"surprise"', "not a record"),
        (b'"kind":"metric"', b'"kind":"attempt"', "without a valid|opens with"),
        (b'"seq":5', b'"seq":6', "lines were lost"),
        (b'"seq":5', b'"seq":5.0', "without a valid seq"),
        (b'"seq":5', b'"seq":-5', "without a valid seq"),
        (b'"step":5', b'"step":4', "recorded twice"),
        (b'"step":5', b'"step":5,"step":9', "not a record"),
        (b'"step":5', b'"step":[5]', "without a valid labels"),
        (b'"step":5', b'"value":5', "without a valid labels"),
        (b'{"step":5}', b"[]", "without a valid labels"),
        (b'{"step":5}', b"null", "without a valid labels|not a record"),
        (b',"labels":{"step":5}', b"", "without a valid labels"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("size", "ended"), [(8, True), (1 << 16, True), (8, False)])
def test_what_one_line_may_not_hold_is_refused_in_bulk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes, new: bytes, says: str, size: int, ended: bool
) -> None:
    if not ended and says == "recorded twice":
        pytest.skip("told once the cell has ended")
    monkeypatch.setattr(columns, "BATCH_LINES", size)
    segment = Log(tmp_path / "attempt-1.jsonl", cell=tmp_path.name, attempt=1, resumed_at=0)
    for step in range(20):
        segment.append("metric", {"name": "x", "value": 0.5, "labels": {"step": step}})
    if ended:
        segment.append("status", {"outcome": "done", "reason": "", "wall_s": 1.0})
    segment.close()
    path = tmp_path / "attempt-1.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[6] = damaged(lines[6], old, new)
    path.write_bytes(b"".join(lines))
    with pytest.raises(RecordError, match=rf"({path.name}:7: .*|{tmp_path.name}: metric x .*)({says})"):
        read_tables({tmp_path.name: (tmp_path, {})}, profile="p")


def test_lost_torn_and_foreign_lines_are_refused_by_their_number(tmp_path: Path) -> None:
    write_cell(tmp_path / "c", random.Random(1), ["whole"], attempts=2)
    path = tmp_path / "c" / "attempt-1.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for text in (b"".join(lines[:2] + lines[3:]), b"".join([*lines[:2], lines[1], *lines[2:]]), b"x" + whole,
                 whole.replace(b'"', b"'", 1), b"".join(lines[:3]) + b"\r\n" + b"".join(lines[3:])):  # fmt: skip
        path.write_bytes(text)
        with pytest.raises(RecordError, match=r"attempt-1.jsonl:\d+: "):
            read_tables({"c": (tmp_path / "c", {})}, profile="p")


def test_a_label_may_be_called_like_a_column(tmp_path: Path) -> None:
    segment = Log(tmp_path / "attempt-1.jsonl", cell=tmp_path.name, attempt=1, resumed_at=0)
    segment.append("metric", {"name": "x", "value": 0.5, "labels": {"seq": 1, "kind": "k", "crc": "c", ".x": 1}})
    unit = {"stage": "s", "index": 0, "host_ns": 4, "tokens": 3, "labels": {"seq": 1, "tokens": "many", "host_ns": 2}}
    segment.append("microbatch", unit)
    segment.append("status", {"outcome": "done", "reason": "", "wall_s": 1.0})
    segment.close()
    cells: dict[str, tuple[Path, dict[str, Any]]] = {tmp_path.name: (tmp_path, {})}
    assert_same(read_tables(cells, profile="p"), singly(cells))


@pytest.mark.nightly
def test_more_labels_than_a_table_may_have_are_refused(tmp_path: Path) -> None:
    segment = Log(tmp_path / "attempt-1.jsonl", cell=tmp_path.name, attempt=1, resumed_at=0)
    for number in range(4100):
        segment.append("metric", {"name": "x", "value": 0.5, "labels": {f"l{number}": 1}})
    segment.append("status", {"outcome": "done", "reason": "", "wall_s": 1.0})
    segment.close()
    with pytest.raises(RecordError, match="4,103 different labels"):
        read_tables({tmp_path.name: (tmp_path, {})}, profile="p")


# How a cell stands.


@pytest.mark.parametrize("seed", range(30))
def test_status_is_what_the_whole_log_says(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    folder = tmp_path / "c"
    write_cell(folder, rng, ["text", "escapes"], attempts=rng.randint(1, 4), status=rng.random() < 0.7)
    last = max(folder.iterdir())
    whole = last.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole)]:
        last.write_bytes(whole[:length])
        status, cell = read_status(folder), read_cell(folder)
        assert (status.num_attempts, status.position, status.status) == (cell.num_attempts, cell.position, cell.status)
        assert (status.outcome, status.is_complete) == (cell.outcome, cell.is_complete)


def test_status_of_a_cell_that_never_began(tmp_path: Path) -> None:
    assert read_status(tmp_path / "c") == read_status(tmp_path)
    assert (read_status(tmp_path).num_attempts, read_status(tmp_path).outcome) == (0, None)


@pytest.mark.parametrize("reason_bytes", [10, END_BYTES, 1_000_000])
def test_status_reads_the_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason_bytes: int) -> None:
    segment = Log(tmp_path / "attempt-1.jsonl", cell=tmp_path.name, attempt=1, resumed_at=0)
    for step in range(20_000):
        segment.append("metric", {"name": "x", "value": 0.5, "labels": {"step": step}})
    segment.append("status", {"outcome": "failed", "reason": "r" * reason_bytes, "wall_s": 1.0})
    segment.close()
    parsed = []
    parse = log.parse_line
    for module in ("status", "log"):
        monkeypatch.setattr(f"modelassay.recording.{module}.parse_line", lambda raw: parsed.append(raw) or parse(raw))
    status = read_status(tmp_path)
    assert (status.outcome, status.position, status.num_attempts) == ("failed", 20_001, 1)
    assert len(parsed) == 2


@pytest.mark.parametrize("at", ["first", "last", "behind"])
def test_a_damaged_end_is_told_by_its_line(tmp_path: Path, at: str) -> None:
    segment = Log(tmp_path / "attempt-1.jsonl", cell=tmp_path.name, attempt=1, resumed_at=0)
    segment.append("status", {"outcome": "done", "reason": "", "wall_s": 1.0})
    segment.close()
    path = tmp_path / "attempt-1.jsonl"
    first, last = path.read_bytes().splitlines(keepends=True)
    texts = {"first": first.replace(b"pid", b"pit") + last, "last": first + last.replace(b"done", b"dome"),
             "behind": first + last.replace(b"\n", b"\v")}  # fmt: skip
    path.write_bytes(texts[at])
    with pytest.raises(RecordError, match=rf"attempt-1.jsonl:{1 if at == 'first' else 2}: not as it was written"):
        read_status(tmp_path)


def test_lost_and_foreign_segments_are_told(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_cell(tmp_path / name, random.Random(3), [], attempts=2)
    (tmp_path / "one" / "attempt-1.jsonl").unlink()
    with pytest.raises(RecordError, match="restore the lost segment"):
        read_status(tmp_path / "one")
    (tmp_path / "two").rename(tmp_path / "three")
    with pytest.raises(RecordError, match="a segment of cell two lies in the folder of cell three"):
        read_status(tmp_path / "three")


def test_facts_are_sorted_by_kind_once() -> None:
    class Row(dict[str, Any]):
        looks = 0

        def __getitem__(self, key: str) -> Any:
            Row.looks += key == "fact"
            return super().__getitem__(key)

    rows = [Row(cell="c", fact=f"f{number % 10}", value=number) for number in range(100)]
    data = RunData(cells=pl.DataFrame(), units=pl.DataFrame(), metrics=pl.DataFrame(), profile="p", fact_rows=rows)
    for _ in range(20):
        assert [fact["value"] for fact in data.facts("f3")] == [*range(3, 100, 10)]
    assert Row.looks == 100
    assert json.dumps(data.facts("f3")[0]) == '{"cell": "c", "value": 3}'


def test_unexpected_line_is_no_error_of_a_user() -> None:
    assert not issubclass(UnexpectedLine, RecordError)
