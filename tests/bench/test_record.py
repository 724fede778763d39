"""The event log: voiding, torn lines, damaged lines, full disks, tables."""

import json
import math
import os
import subprocess
from pathlib import Path

import pytest

from modelassay.errors import HostError, RecordError
from modelassay.record import Log, read_cell, read_segment, read_tables


def write_attempt(
    cell_dir: Path, attempt: int, resumed_at: int, values: list[float], *, status: str | None = None
) -> None:
    log = Log(cell_dir / f"attempt-{attempt}.jsonl", cell="c", attempt=attempt, resumed_at=resumed_at)
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
        (b'{"kind":"metric","seq":1,"name":"x"}', "without value, labels"),
        (b"\x00\x00\x00", "not a record"),
        (b"", "not a record"),
        (b'{"kind":"attempt","schema":1,"cell":"c","attempt":1,"resumed_at":0}', "opens with its one attempt line"),
    ],
)
def test_bad_line_elsewhere_is_named(tmp_path: Path, bad: bytes, says: str) -> None:
    write_attempt(tmp_path, 1, 0, [0.5, 1.5])
    path = tmp_path / "attempt-1.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], bad, *lines[1:], b""]))
    with pytest.raises(RecordError, match=f"attempt-1.jsonl:2: .*{says}"):
        read_cell(tmp_path)


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "attempt-1.jsonl"
    path.write_text('{"kind":"attempt","schema":99,"cell":"c","attempt":1,"resumed_at":0}\n')
    with pytest.raises(RecordError, match="schema 99 is newer"):
        read_cell(tmp_path)


def test_same_metric_twice_is_refused(tmp_path: Path) -> None:
    log = Log(tmp_path / "attempt-1.jsonl", cell="c", attempt=1, resumed_at=0)
    for _ in range(2):
        log.append("metric", {"name": "x", "value": 1.0, "labels": {"step": 1}})
    log.close()
    with pytest.raises(RecordError, match="stands twice"):
        read_cell(tmp_path)


def test_full_device_is_a_host_error(tmp_path: Path) -> None:
    log = Log(tmp_path / "attempt-1.jsonl", cell="c", attempt=1, resumed_at=0)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._fd)
    with pytest.raises(HostError, match=r"attempt-1\.jsonl: the disk is full"):
        log.append("metric", {"name": "x", "value": 1.0, "labels": {}})
    os.close(full)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_log_on_a_disk_that_fills_up_still_reads(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False).returncode != 0:
        pytest.skip("this machine may not mount a tmpfs")
    try:
        log = Log(disk / "attempt-1.jsonl", cell="c", attempt=1, resumed_at=0)
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
    finally:
        subprocess.run(["umount", str(disk)], check=True)


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
    assert tables.microbatches["gb_per_s"].to_list() == [5.0]
    assert tables.metrics.rows() == [("c1", "x", 0.25, "q", 3), ("c1", "y", 1.0, None, None)]
