"""The tables beside the logs are those that the logs say, bit by bit, or are not read."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from modelassay.errors import RecordError
from modelassay.recording import columns, parquet, tables
from modelassay.recording.log import Log
from modelassay.recording.tables import RunData, read_tables
from modelassay.storage.sealed import sealed_json, unseal
from support.random_logs import VALUES, assert_same, write_cell

Cells = dict[str, tuple[Path, dict[str, Any]]]


@pytest.fixture(autouse=True)
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MIN_BYTES", 0)


def read(run: Path) -> RunData:
    return read_tables(cells_of(run), profile="p", beside=run / "tables")


def cells_of(run: Path) -> Cells:
    return {path.name: (path, {}) for path in sorted((run / "cells").iterdir())}


def only_kept(run: Path) -> RunData:
    """Read a run without its logs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_read_logs", pytest.fail)
        return read(run)


def run_of(folder: Path, seed: int = 0, kinds: list[str] | None = None, *, num_cells: int = 2) -> Path:
    rng = random.Random(seed)
    for number in range(num_cells):
        write_cell(folder / "cells" / f"c{number}", rng, kinds or ["text"], attempts=rng.randint(1, 3))
    return folder


@pytest.mark.parametrize("seed", range(30))
def test_the_tables_beside_are_those_of_the_logs(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the labels are, also NaN, facts, voided units, several attempts and torn last lines."""
    monkeypatch.setattr(columns, "BATCH_LINES", 8)
    rng = random.Random(seed)
    kinds = [sorted(VALUES)[seed]] if seed < len(VALUES) else rng.sample(sorted(VALUES), rng.randint(0, 4))
    run = run_of(tmp_path, seed, kinds, num_cells=rng.randint(1, 4))
    for cell in (run / "cells").iterdir():  # a first attempt that a kill has cut off within its last line
        if len(list(cell.iterdir())) > 1 and rng.random() < 0.7:
            with (cell / "attempt-1.jsonl").open("ab") as segment:
                segment.write(b'{"seq":1,"kind":"metric","na')
    expected = read_tables(cells_of(run), profile="p")
    assert_same(read(run), expected)
    if "large" in kinds:
        assert_same(read(run), expected)  # whole numbers beyond 64 bits may have no place in Parquet
    else:
        assert_same(only_kept(run), expected)
    assert not list(run.glob("tables/.*"))


def test_labels_nan_and_facts_survive(tmp_path: Path) -> None:
    cell = tmp_path / "cells" / "c"
    cell.mkdir(parents=True)
    log = Log(cell / "attempt-1.jsonl", cell="c", attempt=1, resumed_at=0)
    log.append("metric", {"name": "loss", "value": "nan", "labels": {"note": "日本語 \u2028"}})
    log.append("metric", {"name": "loss", "value": -0.0, "labels": {"note": "x"}})
    log.append("fact", {"fact": "row", "value": {"b": [1, None, 0.1], "a": "é"}, "labels": {"z": 1, "a": 2.0}})
    log.append("status", {"outcome": "diverged", "reason": "", "wall_s": 1.0})
    log.close()
    read(tmp_path)
    kept = only_kept(tmp_path)
    first, second = kept.metrics["value"].to_list()
    assert first != first
    assert str(second) == "-0.0"
    assert kept.metrics["note"].to_list() == ["日本語 \u2028", "x"]
    assert json.dumps(kept.fact_rows, ensure_ascii=False) == (
        '[{"cell": "c", "fact": "row", "value": {"b": [1, null, 0.1], "a": "é"}, "z": 1, "a": 2.0}]'
    )


def test_a_fact_labelled_fact_keeps_its_form(tmp_path: Path) -> None:
    cell = tmp_path / "cells" / "c"
    cell.mkdir(parents=True)
    log = Log(cell / "attempt-1.jsonl", cell="c", attempt=1, resumed_at=0)
    log.append("fact", {"fact": "row", "value": 1, "labels": {"fact": 5}})
    log.append("status", {"outcome": "done", "reason": "", "wall_s": 1.0})
    log.close()
    expected = read_tables(cells_of(tmp_path), profile="p")
    for _ in range(2):
        assert_same(read(tmp_path), expected)


def again(run: Path) -> None:
    """Let a cell of a run be done once more."""
    log = Log(run / "cells" / "c0" / "attempt-9.jsonl", cell="c0", attempt=9, resumed_at=0)
    log.append("metric", {"name": "a", "value": 7.5, "labels": {}})
    log.append("status", {"outcome": "done", "reason": "", "wall_s": 1.0})
    log.close()


def test_a_run_that_has_gone_on_is_read_anew_and_told_of_by_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path)
    read(run)
    again(run)
    assert 7.5 in read(run).metrics["value"].to_list()
    assert_same(only_kept(run), read_tables(cells_of(run), profile="p"))
    assert capsys.readouterr().err == ""


def test_of_the_same_logs_elsewhere_and_later_the_tables_count(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    expected = read(run)
    copied = shutil.copytree(run, tmp_path / "copy", copy_function=shutil.copy)  # with other times
    assert_same(only_kept(copied), expected)


def test_a_log_that_has_changed_by_a_bit_is_told_in_spite_of_its_tables(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    read(run)
    path = run / "cells" / "c0" / "attempt-1.jsonl"
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(RecordError, match=r"attempt-1.jsonl:\d+: "):
        read(run)


def test_a_log_that_is_missing_or_one_more_makes_the_tables_others(tmp_path: Path) -> None:
    run = run_of(tmp_path, num_cells=3)
    read(run)
    before = read_tables(cells_of(run), profile="p")
    fewer = {cell: entry for cell, entry in cells_of(run).items() if cell != "c1"}
    assert set(read_tables(fewer, profile="p", beside=run / "tables").metrics["cell"]) == {"c0", "c2"}
    assert_same(read(run), before)


@pytest.mark.parametrize("name", ["metrics.parquet", "units.parquet", "facts.parquet", "tables.json"])
@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "empty", "link"])
def test_damaged_tables_are_told_once_and_made_anew(
    tmp_path: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path)
    expected = read(run)
    path = run / "tables" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    match damage:
        case "bit":
            path.write_bytes(content)
        case "cut":
            path.write_bytes(content[:-9])
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case _:
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
    assert_same(read(run), expected)
    said = capsys.readouterr().err.splitlines()
    if (name, damage) == ("tables.json", "gone"):
        assert said == []
    else:
        (line,) = said
        assert line.startswith(f"note: {run / 'tables'}: ")
        assert line.endswith("; the logs are read instead")
        assert name in line
    assert_same(only_kept(run), expected)
    assert not path.is_symlink()


@pytest.mark.parametrize("change", [
    {"schema": 2}, {"schema": "1"}, {"files": {}}, {"segments": 5}, {"segments": [["c0"]]}, {"files": None},
])  # fmt: skip
def test_a_manifest_of_another_form_is_passed_over(tmp_path: Path, change: dict[str, Any]) -> None:
    run = run_of(tmp_path)
    expected = read(run)
    path = run / "tables" / "tables.json"
    path.write_bytes(sealed_json(unseal(path.read_bytes()) | change))
    assert_same(read(run), expected)
    assert_same(only_kept(run), expected)


@pytest.mark.parametrize("content", [
    b"no Parquet", pl.DataFrame({"cell": ["c0"], "value": [1.0]}), pl.select(pl.repeat(0, 1 << 20).alias("cell")),
])  # fmt: skip
def test_tables_that_somebody_else_wrote_are_passed_over(
    tmp_path: Path, content: bytes | pl.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path)
    expected = read(run)
    path, manifest = run / "tables" / "metrics.parquet", run / "tables" / "tables.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.write_parquet(path)
    document = unseal(manifest.read_bytes())
    document["files"]["metrics.parquet"] = parquet.digest_of(path)
    manifest.write_bytes(sealed_json(document))
    assert_same(read(run), expected)
    assert "metrics.parquet" in capsys.readouterr().err


def test_nothing_is_written_while_a_cell_has_not_ended(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    write_cell(run / "cells" / "c7", random.Random(1), [], status=False)
    read(run)
    assert not (run / "tables").exists()


def test_nothing_is_written_of_small_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MIN_BYTES", 1 << 20)
    run = run_of(tmp_path)
    read(run)
    assert not (run / "tables").exists()


def test_nothing_is_left_of_tables_whose_logs_change_while_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path)
    read_logs = tables._read_logs

    def and_then(*arguments: Any) -> Any:
        result = read_logs(*arguments)
        again(run)
        return result

    monkeypatch.setattr(tables, "_read_logs", and_then)
    read(run)
    assert not (run / "tables").exists()


@pytest.mark.parametrize("call", ["replace", "write_bytes", "mkdir"])
def test_a_disk_that_takes_no_tables_is_no_failure(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, call, full)
    expected = read(run)
    monkeypatch.undo()
    assert expected.metrics.height
    assert not (run / "tables").exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path)
    monkeypatch.setattr(parquet.os, "geteuid", lambda: run.stat().st_uid + 1)
    read(run)
    assert not (run / "tables").exists()


def test_drafts_that_a_kill_has_left_are_removed(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    (run / "tables").mkdir()
    old, young = run / "tables" / ".units.parquet.1.part", run / "tables" / ".units.parquet.2.part"
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    read(run)
    assert (old.exists(), young.exists()) == (False, True)
    assert {path.name for path in (run / "tables").glob("[!.]*")} == {
        "tables.json", "metrics.parquet", "units.parquet", "facts.parquet",
    }  # fmt: skip
