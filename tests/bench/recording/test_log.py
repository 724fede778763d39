"""The event log: voiding, torn lines, damaged lines, full disks, tables."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from modelassay.errors import HostError, RecordError
from modelassay.recording.line import encode_line, sealed
from modelassay.recording.log import Log, encode_value, read_cell, read_segment, segments
from modelassay.recording.tables import read_tables
from support.small_disk import needs_root, small_disk


def write_attempt(
    cell_dir: Path, attempt: int, resumed_at: int, values: list[float], *, status: str | None = None
) -> None:
    log = Log(cell_dir / f"attempt-{attempt}.jsonl", cell=cell_dir.name, attempt=attempt, resumed_at=resumed_at)
    for step, value in enumerate(values, start=resumed_at):
        encoded = value if math.isfinite(value) else repr(value)
        log.append("metric", {"name": "x", "value": encoded, "labels": {"step": step}})
    if status:
        log.append("status", {"outcome": status, "reason": "", "wall_s": 1.0})
    log.close()


def test_later_attempt_voids_what_it_redoes(tmp_path: Path) -> None:
    write_attempt(tmp_path, 1, 0, [0.0, 1.0, 2.0, 3.0])
    write_attempt(tmp_path, 2, 2, [20.0, 30.0], status="done")
    log = read_cell(tmp_path)
    assert [m["value"] for m in log.metrics] == [0.0, 1.0, 20.0, 30.0]
    assert (log.outcome, log.num_attempts, log.is_complete) == ("done", 2, True)


def test_attempt_that_wrote_nothing_still_voids(tmp_path: Path) -> None:
    write_attempt(tmp_path, 1, 0, [0.0, 1.0], status="failed")
    write_attempt(tmp_path, 2, 1, [])
    log = read_cell(tmp_path)
    assert [m["value"] for m in log.metrics] == [0.0]
    assert log.outcome is None


def test_nonfinite_values_survive_as_strict_json(tmp_path: Path) -> None:
    write_attempt(tmp_path, 1, 0, [math.nan, math.inf, -math.inf])
    for raw in (tmp_path / "attempt-1.jsonl").read_text().splitlines():
        json.loads(raw, parse_constant=pytest.fail)
    values = [m["value"] for m in read_cell(tmp_path).metrics]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf]


def test_torn_last_line_is_dropped_at_every_length(tmp_path: Path) -> None:
    write_attempt(tmp_path, 1, 0, [0.5, 1.5])
    path = tmp_path / "attempt-1.jsonl"
    whole = path.read_bytes()
    starts = [0, *(i + 1 for i, byte in enumerate(whole) if byte == ord("\n"))]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = sum(start <= length for start in starts[1:])
        assert len(list(read_segment(path))) == complete


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"{half", "not a record"),
        (b"[1, 2]", "not a record"),
        (b'{"kind":"surprise"}', "not a record"),
        (b'{"kind":"metric","seq":0,"name":"x"}', "without a valid value, labels"),
        (b'{"kind":"metric","seq":0,"name":"x","value":"much","labels":{}}', "without a valid value"),
        (b'{"kind":"metric","seq":0,"name":"x","value":null,"labels":[]}', "without a valid value, labels"),
        (b'{"kind":"status","seq":0,"outcome":"well","reason":"","wall_s":1}', "without a valid outcome"),
        (b'{"kind":"clocks","seq":1}', "position 1 where 0 is due; lines were lost"),
        (b"\x00\x00\x00", "not a record"),
        (b"", "not a record"),
        (b'{"kind":"attempt","schema":3,"cell":"c","attempt":1,"resumed_at":0}', "opens with its one attempt line"),
    ],
)
def test_bad_line_elsewhere_is_named(tmp_path: Path, bad: bytes, says: str) -> None:
    write_attempt(tmp_path, 1, 0, [0.5, 1.5])
    path = tmp_path / "attempt-1.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], sealed(bad).rstrip(b"\n"), *lines[1:], b""]))
    with pytest.raises(RecordError, match=f"attempt-1.jsonl:2: .*{says}"):
        read_cell(tmp_path)


def test_line_that_was_taken_out_is_missed(tmp_path: Path) -> None:
    write_attempt(tmp_path, 1, 0, [0.5, 1.5, 2.5], status="done")
    path = tmp_path / "attempt-1.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(RecordError, match=r"attempt-1.jsonl:3: position 2 where 1 is due"):
        read_cell(tmp_path)


def test_segment_that_was_deleted_is_missed(tmp_path: Path) -> None:
    write_attempt(tmp_path, 1, 0, [0.5, 1.5])
    write_attempt(tmp_path, 2, 2, [2.5], status="done")
    (tmp_path / "attempt-1.jsonl").unlink()
    with pytest.raises(RecordError, match=r"attempt-2.jsonl:1: resumed at position 2, but only 0 lines"):
        read_cell(tmp_path)


def test_segment_of_another_cell_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    write_attempt(tmp_path / "one", 1, 0, [0.5], status="done")
    (tmp_path / "one").rename(tmp_path / "two")
    with pytest.raises(RecordError, match="a segment of cell one lies in the folder of cell two"):
        read_cell(tmp_path / "two")


def test_files_that_are_no_segments_are_passed_over(tmp_path: Path) -> None:
    write_attempt(tmp_path, 1, 0, [0.5], status="done")
    shutil.copy(tmp_path / "attempt-1.jsonl", tmp_path / "attempt-1 (copy).jsonl")
    assert [m["value"] for m in read_cell(tmp_path).metrics] == [0.5]


def test_empty_segment_of_an_attempt_killed_at_once_changes_nothing(tmp_path: Path) -> None:
    write_attempt(tmp_path, 1, 0, [0.5, 1.5], status="failed")
    (tmp_path / "attempt-2.jsonl").touch()
    log = read_cell(tmp_path)
    assert (log.outcome, log.num_attempts, log.position, list(segments(tmp_path))) == ("failed", 1, 3, [1, 2])


def test_text_that_is_not_unicode_survives(tmp_path: Path) -> None:
    log = Log(tmp_path / "attempt-1.jsonl", cell=tmp_path.name, attempt=1, resumed_at=0)
    log.append("metric", {"name": "x", "value": 1.0, "labels": {"path": "caf\udce9", "text": "日本"}})
    log.append("status", {"outcome": "done", "reason": "", "wall_s": 2.5})
    log.close()
    tables = read_tables({tmp_path.name: (tmp_path, {})}, profile="embedded")
    assert tables.metrics.row(0) == (tmp_path.name, "x", 1.0, "caf?", "日本")


def test_numpy_number_is_written_as_a_number() -> None:
    assert [encode_value(np.float64(value)) for value in (math.nan, -math.inf)] == ["nan", "-inf"]


@pytest.mark.parametrize(
    ("opening", "says"),
    [
        (sealed(b'{"kind":"attempt","schema":99,"cell":"c","attempt":1,"resumed_at":0}'),
         "schema 99, this modelassay reads 3; use another version"),
        (b'{"kind":"attempt","schema":1,"cell":"c","attempt":1,"resumed_at":0,"started":"2026-11-01T00:00:00Z","pid":1}\n',
         "schema 1, without checksums; this modelassay reads 3: read it with the version that wrote it"),
    ],
)  # fmt: skip
def test_other_schema_is_refused(tmp_path: Path, opening: bytes, says: str) -> None:
    (tmp_path / "attempt-1.jsonl").write_bytes(opening)
    with pytest.raises(RecordError, match=f"attempt-1.jsonl:1: {says}"):
        read_cell(tmp_path)


def test_checksum_of_a_line_is_what_it_was() -> None:
    """CRC-32 of everything before the comma, as `python3 -c 'import zlib; ...'` says of these bytes."""
    raw = encode_line({"seq": 0, "kind": "metric", "name": "x", "value": 0.5, "labels": {}})
    assert raw == b'{"seq":0,"kind":"metric","name":"x","value":0.5,"labels":{},"crc":"6f010f14"}\n'


def test_every_flipped_bit_of_a_finished_log_is_an_error_or_a_torn_line(tmp_path: Path) -> None:
    """No flipped bit becomes another number: of each line and of the ends of lines, the last one too."""
    write_attempt(tmp_path, 1, 0, [0.5, math.nan, 0.1 + 0.2], status="done")
    path = tmp_path / "attempt-1.jsonl"
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
            with pytest.raises(RecordError, match=r"attempt-1.jsonl:\d+: .*(restore it|version)"):
                read_cell(tmp_path)


def test_flipped_end_of_the_line_before_a_torn_one_loses_no_line(tmp_path: Path) -> None:
    write_attempt(tmp_path, 1, 0, [0.5, 1.5, 2.5])
    path = tmp_path / "attempt-1.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2].replace(b"\n", b"\v") + lines[3][:20])
    with pytest.raises(RecordError, match=r"attempt-1.jsonl:3: not as it was written"):
        read_cell(tmp_path)


def test_a_line_in_a_fact_that_looks_like_an_end_does_not_hide_a_torn_line(tmp_path: Path) -> None:
    log = Log(tmp_path / "attempt-1.jsonl", cell=tmp_path.name, attempt=1, resumed_at=0)
    log.append("fact", {"fact": "x", "value": {"a": 1, "crc": "00000000"}, "labels": {}})
    log.close()
    assert [fact["value"]["crc"] for fact in read_cell(tmp_path).facts] == ["00000000"]
    path = tmp_path / "attempt-1.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    assert read_cell(tmp_path).facts == []


def test_segment_under_the_name_of_another_attempt_is_refused(tmp_path: Path) -> None:
    write_attempt(tmp_path, 1, 0, [0.5], status="failed")
    shutil.copy(tmp_path / "attempt-1.jsonl", tmp_path / "attempt-2.jsonl")
    with pytest.raises(RecordError, match=r"attempt-2.jsonl:1: the segment of attempt 1 under the name of another"):
        read_cell(tmp_path)


def test_same_metric_twice_is_refused(tmp_path: Path) -> None:
    log = Log(tmp_path / "attempt-1.jsonl", cell=tmp_path.name, attempt=1, resumed_at=0)
    for _ in range(2):
        log.append("metric", {"name": "x", "value": 1.0, "labels": {"step": 1}})
    log.close()
    with pytest.raises(RecordError, match="is recorded twice"):
        read_cell(tmp_path)


def test_full_device_is_a_host_error(tmp_path: Path) -> None:
    log = Log(tmp_path / "attempt-1.jsonl", cell=tmp_path.name, attempt=1, resumed_at=0)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._fd)
    with pytest.raises(HostError, match=r"attempt-1\.jsonl: the disk is full"):
        log.append("metric", {"name": "x", "value": 1.0, "labels": {}})
    os.close(full)


@needs_root
def test_log_on_a_disk_that_fills_up_still_reads(tmp_path: Path) -> None:
    with small_disk(tmp_path, "64k") as disk:
        log = Log(disk / "attempt-1.jsonl", cell=disk.name, attempt=1, resumed_at=0)
        written = 0
        full: HostError | None = None
        while full is None:
            try:
                log.append("metric", {"name": "x", "value": float(written), "labels": {"step": written}})
                written += 1
            except HostError as error:
                full = error
        assert "the disk is full" in str(full)
        os.close(log._fd)
        values = [m["value"] for m in read_cell(disk).metrics]
        assert written > 100
        assert values == [float(step) for step in range(written)]


def test_tables_spread_labels_and_params(tmp_path: Path) -> None:
    cell_dir = tmp_path / "c1"
    cell_dir.mkdir()
    log = Log(cell_dir / "attempt-1.jsonl", cell="c1", attempt=1, resumed_at=0)
    log.append("microbatch", {"stage": "f", "index": 0, "host_ns": 2_000_000, "at_us": 0, "bytes": 10_000_000})
    log.append("metric", {"name": "x", "value": 0.25, "labels": {"step": 3, "role": "q"}})
    log.append("metric", {"name": "y", "value": 1.0, "labels": {}})
    log.append("status", {"outcome": "done", "reason": "", "wall_s": 2.5})
    log.close()
    tables = read_tables({"c1": (cell_dir, {"seed": 1, "train": {"rate": 0.5}})}, profile="embedded")
    assert tables.cells.row(0, named=True) == {
        "cell": "c1", "outcome": "done", "reason": "", "wall_s": 2.5, "attempts": 1, "seed": 1, "train.rate": 0.5,
    }  # fmt: skip
    assert tables.units["gb_per_s"].to_list() == [5.0]
    assert tables.metrics.rows() == [("c1", "x", 0.25, "q", 3), ("c1", "y", 1.0, None, None)]
