"""A reference without a commit means, in a run, what it meant when the run first read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelassay.errors import UsageError
from modelassay.models import commits, hub

BEFORE, AFTER = "a" * 40, "b" * 40


class Moving:
    """A repository whose branches all point to ``head``."""

    head = BEFORE

    def __init__(self, reference: str, repository: str, revision: str | None, chosen: str | None = None) -> None:
        self.revision = revision if revision and commits.COMMIT.fullmatch(revision) else Moving.head


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> type[Moving]:
    monkeypatch.setattr(hub, "HubFiles", Moving)
    monkeypatch.setattr(Moving, "head", BEFORE)
    return Moving


@pytest.mark.parametrize("reference", ["hf:a/b", "hf:a/b@main", "hf:a/b@v1.0"])
def test_a_branch_that_moved_stays_where_the_run_read_it(
    moving: type[Moving], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    monkeypatch.setenv(commits.VARIABLE, str(tmp_path / "models"))
    assert hub.open_files(reference).revision == BEFORE
    moving.head = AFTER
    assert hub.open_files(reference).revision == BEFORE
    assert hub.open_files(f"hf:a/b@{AFTER}").revision == AFTER
    assert hub.open_files("hf:a/other").revision == AFTER
    monkeypatch.delenv(commits.VARIABLE)
    assert hub.open_files(reference).revision == AFTER  # outside of the run


def test_the_first_of_two_processes_decides(
    moving: type[Moving], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(commits.VARIABLE, str(tmp_path / "models"))
    monkeypatch.setattr(hub, "kept_commit", lambda reference: None)  # both looked before either had written
    assert hub.open_files("hf:a/b").revision == BEFORE
    moving.head = AFTER
    assert hub.open_files("hf:a/b").revision == BEFORE


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"reference": "hf:a/b", "commit": "main"}', f'{{"reference": "hf:x/y", "commit": "{BEFORE}"}}'],
)
def test_what_is_no_commit_is_refused(
    moving: type[Moving], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(commits.VARIABLE, str(tmp_path / "models"))
    hub.open_files("hf:a/b")
    (path,) = (tmp_path / "models").glob("*.json")
    path.write_text(text)
    with pytest.raises(UsageError, match="holds no commit of hf:a/b"):
        hub.open_files("hf:a/b")
