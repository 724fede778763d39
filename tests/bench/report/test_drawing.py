"""The library that draws figures is bundled once and kept, and what is kept is used only as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelassay.report import drawing
from modelassay.report.drawing import drawing_library


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scripts that were bundled; each is another."""
    scripts: list[str] = []

    def bundle() -> str:
        scripts.append(f"// </script> \u2028 {len(scripts)}")
        return scripts[-1]

    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(drawing, "_bundle", bundle)
    return scripts


def kept(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache" / "report").iterdir()
    return path


def test_it_is_bundled_once(bundled: list[str], tmp_path: Path) -> None:
    assert [drawing_library() for _ in range(3)] == [bundled[0]] * 3
    assert len(bundled) == 1
    assert kept(tmp_path).name.startswith("vega-")


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "link"])
def test_what_is_damaged_is_bundled_anew(bundled: list[str], tmp_path: Path, damage: str) -> None:
    drawing_library()
    path = kept(tmp_path)
    content = path.read_bytes()
    path.unlink()
    match damage:
        case "bit":
            path.write_bytes(content.replace(b"// ", b"//!"))
        case "cut":
            path.write_bytes(content[:-5])
        case "empty":
            path.write_bytes(b"")
        case _:
            (tmp_path / "elsewhere").write_bytes(content)
            path.symlink_to(tmp_path / "elsewhere")
    assert drawing_library() == drawing_library() == bundled[1]
    assert len(bundled) == 2


def test_one_of_another_version_is_not_used(
    bundled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing_library()
    path = kept(tmp_path)
    monkeypatch.setattr(drawing, "version", lambda _: "99")
    path.rename(path.with_name("vega-99.json"))
    assert drawing_library() == bundled[1]


def test_a_cache_that_cannot_be_written_is_no_failure(bundled: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    assert [drawing_library() for _ in range(2)] == bundled == [bundled[0], bundled[1]]
    assert (tmp_path / "cache").read_text() == "in the way"
