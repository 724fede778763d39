"""Every mistake in a suite is one line that begins with file:line:column."""

import os
from pathlib import Path

import pytest

from modelassay.errors import SuiteError, printable
from modelassay.suite import check_suite, load_suite
from support.malformed_suites import BASE, FOLDER, GROUPS, cases


def error_of(path: Path) -> SuiteError:
    """Return the error that checking ``path`` raises: one line, without what only a terminal would act on."""
    with pytest.raises(SuiteError) as caught:
        check_suite(path)
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable()
    return caught.value


def test_the_valid_suite_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(BASE)
    assert check_suite(path) == [("embedded", 4), ("smoke", 4)]


def test_the_cases_are_many_and_without_repetition() -> None:
    texts = [case.edited()[0] for group in GROUPS for case in cases(group)]
    assert len(set(texts)) == len(texts) >= 370


@pytest.mark.parametrize("group", GROUPS)
def test_mistakes_are_located_and_say_what_stands_beside_the_cases(
    group: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    path, lines = tmp_path / "suite.yaml", []
    for case in cases(group):
        text, line, column = case.edited()
        path.write_text(text)
        message = str(error_of(path)).removeprefix(f"{tmp_path}/")
        assert message.startswith(f"suite.yaml:{line}:{column}: "), message
        source = text.split("\n")[line - 1]
        lines += [message, printable(f"    {source[: column - 1]}«{source[column - 1 :]}"[:120].rstrip())]
    expected = FOLDER / f"{group}.txt"
    if pytestconfig.getoption("--update-messages"):
        expected.write_text("\n".join(lines) + "\n")
    assert expected.read_text().split("\n") == [*lines, ""], "if the new messages are better: pytest --update-messages"


RAW = {
    "empty": (b"", 1, 1, "empty; a suite has at least 'suite', 'question' and 'profiles'"),
    "only a comment": (b"# nothing yet\n", 1, 1, "empty; a suite has"),
    "only a marker": (b"---\n", 2, 1, "empty; a suite has"),
    "null": (b"\n\n  null\n", 3, 3, "empty; a suite has"),
    "a list": (b"# x\n- suite: a\n", 2, 1, "not a mapping; a suite has"),
    "a word": (b"suite\n", 1, 1, "not a mapping; a suite has"),
    "a number": (b"\n5\n", 2, 1, "not a mapping; a suite has"),
    "an empty mapping": (b"{}\n", 1, 1, "suite: missing (and 2 more)"),
    "no space after the colon": (b"suite:toy\n", 1, 1, "not a mapping; a suite has"),
    "latin-1": (b"suite: toy\nquestion: caf\xe9?\n", 2, 14, "byte 0xe9 is not UTF-8"),
    "latin-1 after wide characters": ("suite: 日本\xad".encode() + b"\xff", 1, 11, "byte 0xff is not UTF-8"),
    "utf-16": ("suite: toy\n".encode("utf-16"), 1, 1, "byte 0xff is not UTF-8"),
    "a cut-off character": ("suite: toy\n# é".encode()[:-1], 2, 3, "byte 0xc3 is not UTF-8"),
    "an overlong encoding": (b"suite: \xc0\xaf\n", 1, 8, "byte 0xc0 is not UTF-8"),
    "a surrogate in UTF-8": (b"suite: \xed\xa0\x80\n", 1, 8, "byte 0xed is not UTF-8"),
    "a NUL": (b"suite: toy\n\0\n", 2, 1, "character U+0000 is not allowed in YAML"),
    "binary": (b"\x7fELF\x02\x01\x01", 1, 1, "character U+007F is not allowed in YAML"),
    "carriage returns": (b"suite: toy\r\nquestion: \x08\r\n", 2, 11, "character U+0008 is not allowed in YAML"),
    "too large": (b"#" * 1_000_001, 1, 1, "larger than 1,000,000 bytes"),
    "too many items": (b"- a\n" * 30_000, 20_000, 3, "more than 20,000 keys and values"),
    "deep brackets": (b"[" * 100_000, 1, 34, "nested deeper than 32 levels"),
    "deep braces": (b"{a: " * 100_000, 1, 133, "nested deeper than 32 levels"),
    "deep dashes": (b"- " * 100_000, 1, 67, "nested deeper than 32 levels"),
}


@pytest.mark.parametrize("name", RAW)
def test_file_that_is_no_suite(name: str, tmp_path: Path) -> None:
    data, line, column, says = RAW[name]
    path = tmp_path / "suite.yaml"
    path.write_bytes(data)
    message = str(error_of(path))
    assert message.startswith(f"{path}:{line}:{column}: ")
    assert says in message


def test_path_that_is_no_file(tmp_path: Path) -> None:
    folder, pipe, link = tmp_path / "folder.yaml", tmp_path / "pipe.yaml", tmp_path / "link.yaml"
    folder.mkdir()
    os.mkfifo(pipe)
    link.symlink_to(link)
    missing, within = tmp_path / "missing.yaml", pipe / "suite.yaml"
    says = {
        folder: "a folder, not a suite file",
        pipe: "not a regular file",
        missing: "no such file",
        within: "no such file",
        link: "no such file",
    }
    for path, expected in says.items():
        assert str(error_of(path)).startswith(f"{path}:1:1: {expected}")
    for path in (Path("a\0b.yaml"), Path(f"{'x' * 5000}.yaml"), Path("a\nb.yaml")):
        assert ".yaml:1:1: " in str(error_of(path))


def test_first_mistake_in_file_order_counts_the_others(tmp_path: Path) -> None:
    """Mistakes of form, of the matrix, of cells and of claims are found together, whichever part finds them."""
    text = BASE.replace("max_cells: 16", "max_cell: [16]").replace("steps: 8", "steps: x")
    path = tmp_path / "suite.yaml"
    path.write_text(text.replace("profile: smoke", "profile: paper").replace("tolerance: 0.1", "tolerance: a"))
    message = str(error_of(path))
    assert message.startswith(f"{path}:8:12: profiles.embedded.steps: must be a whole number, got 'x' (and 3 more)")


def test_loading_looks_at_one_profile_and_checking_at_all(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(BASE.replace("steps: 2,", "steps: 0,"))
    assert len(load_suite(str(path)).cells) == 4
    assert "profiles.smoke.steps" in str(error_of(path))
