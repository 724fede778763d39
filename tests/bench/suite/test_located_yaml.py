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
