"""What stands after the first ``=`` of an override is one value: kept as it is, or refused, and never cut short."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from modelassay.errors import SuiteError
from modelassay.suite import load_suite
from modelassay.suite.located_yaml import scalar
from toy.params import Params

SUITE = """\
suite: walk
experiment: toy
question: What does an override set?
profiles:
  embedded: {model: zoo:base, steps: 3}
"""


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "walk.yaml"
    path.write_text(SUITE)
    return str(path)


def params_of(suite: str, *overrides: str) -> Params:
    params = load_suite(suite, overrides=overrides).cells[0].params
    assert isinstance(params, Params)
    return params


def refusal(suite: str, override: str) -> str:
    with pytest.raises(SuiteError) as caught:
        load_suite(suite, overrides=[override])
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("run #5", "run #5"), ("#5", "#5"), ("run #5 # six", "run #5 # six"), ("a: b", "a: b"), ("a:", "a:"), ("a=b", "a=b"),
        ("=", "="), ("==x", "==x"), ("a, b", "a, b"), ("it's", "it's"), ('say "x"', 'say "x"'), ("-x", "-x"), ("?x", "?x"),
        (":x", ":x"), ("C:\\x", "C:\\x"), ("http://a/b?c=d#e", "http://a/b?c=d#e"), ("~/x", "~/x"), ("a  b", "a  b"),
        ("a\tb", "a\tb"), ("  a ", "a"), ("'  a '", "  a "), ('"a\\nb"', "a\nb"), ("'a: #b'", "a: #b"), ("''", ""), ('""', ""),
        ("''''", "'"), ("'5'", "5"), ('"8e72431"', "8e72431"), ("no", "no"), ("2026-01-01", "2026-01-01"), ("日本 語", "日本 語"),
        ("vingt\u00a0% ?", "vingt\u00a0% ?"), ("<<", "<<"), ("x ]", "x ]"), ("100%", "100%"), ("a&b", "a&b"), ("a*", "a*"),
    ],
)  # fmt: skip
def test_text_is_kept_as_it_is(suite: str, written: str, text: str) -> None:
    assert params_of(suite, f"note={written}").note == text


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("note=", "has no value; write null"), ("note=  ", "has no value"), ("exit_at=", "has no value"),
        ("note=*x", "begins with '*'"), ("note=&x a", "begins with '&'"), ("note=!!str 5", "begins with '!'"),
        ("note=%x", "begins with '%'"), ("note=@file", "cannot be read as a list of lines"), ("note=`x`", "begins with '`'"),
        ("note=| a", "begins with '|'"), ("note=> a", "begins with '>'"), ("note=--- ", "begins with '---'"),
        ("note=--- a", "begins with '---'"), ("note=...", "begins with '...'"), ("note=- a", "begins with '-'"),
        ("note=? a", "begins with '?'"), ("note=: a", "begins with ':'"), ("note=]", "begins with ']'"),
        ("note=, a", "begins with ','"), ("note=a\nb", r"holds a line break; write it as \n"), ("note=a\n", "line break"),
        ("note='a\n b'", "runs over a line's end"), ("note='a' b", "follows the end of the value"), ("note='a", "never closed"),
        ('note="a": b', "something follows the value"), ('note="a" # b', "'#' would begin a comment"),
        ("tags=[a, b] c", "follows the end"), ("tags=[a, b]]", "follows the end"), ("tags=[a] # b", "'#' would begin a comment"),
        ("tags=[a]\n# b", "'#' would begin a comment"), ("tags=[a, # b\n c]", "'#' would begin a comment"),
        ("tags=[a #5, b]", "the '#' in column 4 begins a comment"), ("tags=[a\n b]", "runs over a line's end"),
        ("tags=[a]\n---\n[b]", "a second document"), ("tags=[a]\n...", "something follows"), ("tags=a, b", "must be a list"),
        ("weights={left: 1} x", "follows the end"), ("weights=left: 1", "must be a mapping, got 'left: 1'"),
        ("weights={left: 1, left: 2}", "key given twice"), ("matrix.seed=[1] #", "'#' would begin a comment"),
        ("note=8e72431", "not a finite number; quote it"), ("note=1e5", 'quote it where it is text: "1e5"'),
        ("note=007", 'got 7; quote it where it is text: "007"'), ("note=true", 'quote it where it is text: "true"'),
        ("note=1e-400", "too small to be told from 0"), ("rate=1e-400", "too small"), ("note=\u00a0a", "U+00A0 NO-BREAK SPACE"),
        ("steps=5\u00a0", "U+00A0 NO-BREAK SPACE"), ("note=a\u2028b", "U+2028 LINE SEPARATOR"), ("note=a\udc80", "U+DC80"),
    ],
)  # fmt: skip
def test_what_is_no_single_value_is_refused(suite: str, override: str, says: str) -> None:
    assert says in refusal(suite, override)


def test_lists_and_mappings_may_take_several_lines(suite: str) -> None:
    params = params_of(suite, "tags=[a,\n  'b #1',\n\tc]\n", "weights={left: 1,\n  right: 2e0}")
    assert ([Path(tag).name for tag in params.tags], params.weights) == (
        ["a", "b #1", "c"],
        {"left": 1.0, "right": 2.0},
    )


def test_the_last_override_of_a_path_counts_whatever_lies_between(suite: str) -> None:
    assert params_of(suite, "note=a", "note=b").note == "b"
    assert params_of(suite, "walk.width=5", "walk={width: 2}").walk.width == 2
    assert params_of(suite, "walk.width=5", "walk={width: 2}", "walk.width=7").walk.width == 7


@pytest.mark.parametrize("seed", range(4))
def test_every_text_is_kept_read_as_a_scalar_or_refused(seed: int, suite: str) -> None:
    """Nothing between: no part of a text is dropped, whatever marks of YAML it holds."""
    rng, num_kept = random.Random(seed), 0
    for _ in range(150):
        written = "".join(
            rng.choice([*"ab5e.-#:,[]{}&*!|>'\"%@`= \t", ": ", " #", "--- "]) for _ in range(rng.randint(1, 8))
        )
        try:
            note = params_of(suite, f"note={written}").note
        except SuiteError:
            continue
        num_kept += 1
        text = written.strip(" \t")
        assert note == (text if text[0] not in "'\"" else note)
        assert len(note) >= len(text) - 2 - text.count("''") - text.count("\\")
        assert text[0] in "'\"" or scalar(text) == note
    assert num_kept > 20


def test_a_path_of_something_here_is_no_token_and_a_token_still_is(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder below the shell's own, a snapshot of the Hub, a name that has the shape of a key; but not the key itself, nor one that a variable holds."""
    monkeypatch.setenv("PWD", str(tmp_path))
    key = "sk-learned-models-of-mine-and-yours"
    for name in ("model", "models--Qwen--Qwen2.5/snapshots/060db6499f32faf8b98477b0a26969ef7d8b9987", key):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for written in (f"note={folder}", f"note='{folder}'"):
            assert params_of(suite, written).note == str(folder)
    for written in (f"note={key}", f"note={tmp_path}/elsewhere/{key}", f"{key}={tmp_path}/model"):
        with pytest.raises(SuiteError, match="token or password"):
            load_suite(suite, overrides=[written])
    monkeypatch.setenv("HF_TOKEN", "snapshots/060db649")
    with pytest.raises(SuiteError, match="token or password"):
        load_suite(
            suite,
            overrides=[
                f"note={folder.parent}/models--Qwen--Qwen2.5/snapshots/060db6499f32faf8b98477b0a26969ef7d8b9987"
            ],
        )
