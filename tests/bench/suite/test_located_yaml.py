"""YAML 1.2 as suites read it, and bytes that are none."""

import random
from pathlib import Path

import pytest

from modelassay.errors import SuiteError
from modelassay.suite import check_suite
from modelassay.suite.located_yaml import parse
from support.malformed_suites import BASE


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-5", 1e-5), ("1E5", 1e5), ("010", 10), ("0o10", 8), ("0x1F", 31), ("+12", 12), ("-0", 0), (".5", 0.5),
        ("5.", 5.0), ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("n", "n"), ("12:30:45", "12:30:45"),
        ("2026-01-01", "2026-01-01"), ("1_000", "1_000"), ("True", True), ("FALSE", False), ("tRUE", "tRUE"), ("~", None),
        ("null", None), ("", None), ("'5'", "5"), ('"\\t\\u00e9"', "\té"), ("0b1", "0b1"), ("1e", "1e"), ("e5", "e5"),
        ("9223372036854775807", 2**63 - 1), ("-9223372036854775808", -(2**63)), ("|\n  a\n  b\n", "a\nb\n"),
        (">\n  a\n  b\n", "a b\n"), ("zoo:base", "zoo:base"), ("[1, [a], {b: 2}]", [1, ["a"], {"b": 2}]),
        ("&x {a: 1}\nw: *x", {"a": 1}), ("=", "="), ("<<", "<<"), ("a # comment", "a"), ("a#b", "a#b"),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(written: str, value: object) -> None:
    got = parse(f"v: {written}\n", "f").entries["v"].node.plain()
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a:\t5\n", {"a": 5}), ("a: \t5\n", {"a": 5}), ("a:\t\tb\n", {"a": "b"}), ("a:\t'q'\n", {"a": "q"}), ("a:\t[1,\t2]\n", {"a": [1, 2]}),
        ("a: [\t1\t,\n\t2\t]\n", {"a": [1, 2]}), ("-\ta\n- b\n", ["a", "b"]), ("-\t-1\n", [-1]), ("a: 5\t# c\n", {"a": 5}), ("a: 5\t\n", {"a": 5}),
        ("\t\na: 5\n", {"a": 5}), ("a: 5\n\t# c\n \t\nb: 6\n", {"a": 5, "b": 6}), ("a:\t|\n  x\n", {"a": "x\n"}), ("a: | \t# c\n  x\n", {"a": "x\n"}),
        ("a: >- \t\n  x\n", {"a": "x"}), ("a: |\n  \tb:\tc\n", {"a": "\tb:\tc\n"}), ("a:\t&x\t5\nb:\t*x\n", {"a": 5, "b": 5}),
        ("a\t: 5\n", {"a": 5}), ("'a'\t:\t5\n", {"a": 5}), ("? a\n:\t5\n", {"a": 5}), ("a:\t# c\n  b:\t5\n", {"a": {"b": 5}}),
        ("a: x\ty\n", {"a": "x\ty"}), ("a: x\t\n", {"a": "x"}), ("a: [x\ty]\n", {"a": ["x\ty"]}), ("<<:\t{b: 5}\n", {"b": 5}),
        ("a:\n  - b:\t5\n    c:\t6\n", {"a": [{"b": 5, "c": 6}]}), ("%YAML 1.2\n---\ta\n", "a"), ("a: x\t#y\n", {"a": "x"}), ("a: x\ty # z\n", {"a": "x\ty"}),
    ],
)  # fmt: skip
def test_tabs_separate_where_yaml_1_2_lets_them(text: str, plain: object) -> None:
    assert parse(text, "f").plain() == plain


@pytest.mark.parametrize(
    "text", ["a:\n\tb: 5\n", "a:\n  \tb: 5\n", "\ta: 5\n", "- a\n\t- b\n", "-\ta: 5\n", "-\t- a\n", "?\ta: 5\n"]
)
def test_tabs_do_not_indent(text: str) -> None:
    with pytest.raises(SuiteError, match="a tab cannot indent; use spaces"):
        parse(text, "f")


def test_text_may_hold_what_looks_like_a_space() -> None:
    """French sets one before a question mark; quotes keep any."""
    text = "a: Pourquoi\u00a0?\nb: '\u00a0x'\nc: \"x\\u00a0\"\nd: 日本\u3000語\n"
    assert parse(text, "f").plain() == {"a": "Pourquoi\u00a0?", "b": "\u00a0x", "c": "x\u00a0", "d": "日本\u3000語"}


def test_merge_keys_fill_in_what_is_absent() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 9}\nd: {'<<': 1}\n"
    plain = parse(text, "f").plain()
    assert isinstance(plain, dict)
    assert plain["c"] == {"x": 9, "y": 2, "z": 4}
    assert plain["d"] == {"<<": 1}


def test_places_are_those_of_the_text() -> None:
    """Every key and scalar of the valid suite stands where its path says, and reads there as it is."""
    lines = BASE.splitlines()
    nodes = [parse(BASE, "f")]
    num_seen = 0
    while nodes:
        node = nodes.pop()
        for key, value in node.entries.values():
            assert key.line is not None
            assert key.column is not None
            assert lines[key.line - 1][key.column - 1 :].startswith(f"{key.value}:")
            num_seen += 1
            nodes.append(value)
        nodes.extend(node.items)
        if isinstance(node.value, str):
            assert node.line is not None
            assert node.column is not None
            assert lines[node.line - 1][node.column - 1 :].lstrip('"').startswith(node.value)
            assert node.inset == (1 if lines[node.line - 1][node.column - 1] == '"' else 0)
    assert num_seen == BASE.count(":") - BASE.count("zoo:")


@pytest.mark.parametrize("seed", range(8))
def test_damaged_bytes_give_a_suite_or_one_line(seed: int, tmp_path: Path) -> None:
    rng, path, refused = random.Random(seed), tmp_path / "suite.yaml", list[SuiteError]()
    for _ in range(25):
        data = bytearray(BASE.encode())
        for _ in range(rng.randint(1, 3)):
            at, size = rng.randrange(len(data)), rng.randint(1, 12)
            single = rng.choice([*b"[]{}:-,&*!|>'\"%@#?\n\t ~0", rng.randrange(256)])
            data[at : at + size] = rng.choice([b"", bytes(data[at : at + size] * 2), bytes([single])])
        path.write_bytes(data)
        try:
            check_suite(path)
        except SuiteError as error:
            refused.append(error)
    assert len(refused) > 10
    for error in refused:
        assert str(error).startswith(f"{path}:{error.line}:{error.column}: ")
        assert str(error).isprintable()
