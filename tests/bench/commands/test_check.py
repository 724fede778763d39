"""A file that is not sound to its last byte is not called valid."""

import json
import os
from pathlib import Path

import pytest

from modelassay.commands.check import check_files
from modelassay.commands.view import emit
from modelassay.errors import AssayError, UsageError
from support.damaged_records import LINES, damaged_log, damaged_table, log_of

LOG = log_of(LINES)
LAST = len(log_of(LINES[-1:]))


def with_labels(**labels: str) -> bytes:
    """The log with other labels on its metrics: ``label1`` and ``label2`` name the keys of the first and of the second."""
    text = json.dumps(LINES)
    for number, label in labels.items():
        text = text.replace(f'"step": {number[-1]}', label)
    return log_of(json.loads(text))


def contents(path: Path) -> str:
    return str(check_files([str(path)]).data[0]["content"])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "attempt-1.jsonl"
    path.write_bytes(LOG)
    return path


def test_records_are_counted(log: Path) -> None:
    assert contents(log) == "9 records"
    log.write_bytes(LOG[:-6])
    assert contents(log) == f"8 records; the last line was cut short, {LAST - 6} bytes do not count"
    log.write_bytes(LOG + '{"seq":8,"kind":"metric","name":"é'.encode()[:-1])
    assert contents(log) == "9 records; the last line was cut short, 34 bytes do not count"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no record; nothing was recorded"),
        (LOG[:40], "holds no record, only a line that was cut short"),
        (b"note", ":1: not a record, nor the beginning of one: b'note'"),
        (bytes(4096), r":1: not a record, nor the beginning of one: b'\\x00"),
        (LOG + bytes(4096), ":10: not a record, nor the beginning of one"),
        (LOG + b"{note", ":10: not a record, nor the beginning of one"),
        (LOG + b'{"seq":8,\0', ":10: not a record, nor the beginning of one"),
        (LOG + b'{"a":"\xff\xff\xff\xff\xff"', ":10: not a record, nor the beginning of one"),
        (LOG + b"\n", ":10: not as it was written"),
        (LOG + LOG, ":10: a segment opens with its one attempt line"),
        (with_labels(label2='"step": 1'), r":8: metric 'loss' {'step': 1} is recorded twice"),
        (
            with_labels(label1='"\\u001b[2J": 2', label2='"\\u001b[2J": 2'),
            r":8: metric 'loss' {'\\x1b\[2J': 2}",
        ),
    ],
)
def test_what_is_no_log_is_not_valid(log: Path, data: bytes, message: str) -> None:
    log.write_bytes(data)
    with pytest.raises(UsageError, match=message) as caught:
        check_files([str(log)])
    assert str(caught.value).isprintable()


def test_names_of_files_are_printed_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a\nb\x1b[2J.jsonl", "a\u202eb.csv", "x\n.json"):
        with pytest.raises(UsageError) as caught:
            check_files([str(tmp_path / name)])
        assert str(caught.value).isprintable()
    path = tmp_path / "a\nb\x1b[2J.jsonl"
    path.write_bytes(LOG)
    emit(check_files([str(path)]), as_json=False)
    assert r"a\nb\x1b[2J.jsonl" in capsys.readouterr().out


def test_other_kinds_of_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").mkdir()
    os.mkfifo(tmp_path / "y.jsonl")
    for name in ("x.jsonl", "y.jsonl"):
        with pytest.raises(UsageError, match="not a regular file"):
            check_files([str(tmp_path / name)])


def ends_in_a_view_or_one_line(path: Path, families: Path | None, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        view = check_files([str(path)], families=families)
    except AssayError as raised:
        error = raised
    else:
        emit(view, as_json=False)
        emit(view, as_json=True)
        shown = capsys.readouterr().out
        assert not set(shown) & set("\x1b\0\u202e\u2028"), shown
        assert " 0 records" not in shown
        return
    assert error.exit_code == 2
    assert str(error).isprintable(), error
    assert len(str(error)) < 2000


@pytest.mark.parametrize("start", [0, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_damaged_logs(tmp_path: Path, start: int, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(start, start + (400 if start == 0 else 8000)):
        path, _ = damaged_log(tmp_path, seed)
        ends_in_a_view_or_one_line(path, None, capsys)


@pytest.mark.parametrize("start", [0, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_damaged_tables(tmp_path: Path, start: int, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(start, start + (400 if start == 0 else 8000)):
        path, families, _ = damaged_table(tmp_path, seed)
        ends_in_a_view_or_one_line(path, families, capsys)
