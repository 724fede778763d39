"""The matrix does what GitHub documents for its own, and what a few lines of sets say it must."""

import itertools
import random

import pytest

from modelassay.errors import SuiteError
from modelassay.suite.located_yaml import JSON, Node, parse
from modelassay.suite.matrix import expand
from modelassay.suite.problems import Problems


def cells(text: str) -> list[dict[str, JSON]]:
    """Return the combinations of a matrix as plain data."""
    problems, tree = Problems(), parse(text, "f")
    found = expand(tree.entries, tree, problems)
    problems.raise_first()
    return [{name: entry.node.plain() for name, entry in combination.items()} for combination in found]


DOCUMENTED = {
    "include grows and adds": (
        """
        fruit: [apple, pear]
        animal: [cat, dog]
        include:
          - {color: green}
          - {color: pink, animal: cat}
          - {fruit: apple, shape: circle}
          - {fruit: banana}
          - {fruit: banana, animal: cat}
        """,
        [
            {"fruit": "apple", "animal": "cat", "color": "pink", "shape": "circle"},
            {"fruit": "apple", "animal": "dog", "color": "green", "shape": "circle"},
            {"fruit": "pear", "animal": "cat", "color": "pink"},
            {"fruit": "pear", "animal": "dog", "color": "green"},
            {"fruit": "banana"},
            {"fruit": "banana", "animal": "cat"},
        ],
    ),
    "include adds a key to one combination": (
        "os: [windows-latest, ubuntu-latest]\nnode: [14, 16]\ninclude: [{os: windows-latest, node: 16, npm: 6}]",
        [
            {"os": "windows-latest", "node": 14},
            {"os": "windows-latest", "node": 16, "npm": 6},
            {"os": "ubuntu-latest", "node": 14},
            {"os": "ubuntu-latest", "node": 16},
        ],
    ),
    "include adds a combination": (
        "os: [macos, windows]\nversion: [12, 14]\ninclude: [{os: windows, version: 17}]",
        [
            {"os": "macos", "version": 12},
            {"os": "macos", "version": 14},
            {"os": "windows", "version": 12},
            {"os": "windows", "version": 14},
            {"os": "windows", "version": 17},
        ],
    ),
    "include alone": (
        "include:\n  - {site: production, datacenter: site-a}\n  - {site: staging, datacenter: site-b}",
        [{"site": "production", "datacenter": "site-a"}, {"site": "staging", "datacenter": "site-b"}],
    ),
    "include of something excluded is a combination of its own": (
        "os: [a, b]\nexclude: [{os: b}]\ninclude: [{os: b, extra: 1}]",
        [{"os": "a"}, {"os": "b", "extra": 1}],
    ),
    "an added key is not matched by later entries": (
        "os: [a]\ninclude: [{color: red}, {color: blue}]",
        [{"os": "a", "color": "blue"}],
    ),
    "values may be mappings": (
        "run: [{lr: 1, wd: 2}, {lr: 3, wd: 4}]\nexclude: [{run: {wd: 4, lr: 3}}]",
        [{"run": {"lr": 1, "wd": 2}}],
    ),
    "one is one point nought, true is not one": (
        "x: [1, true, 2.0]\nexclude: [{x: 1.0}, {x: 2}]",
        [{"x": True}],
    ),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_examples(name: str) -> None:
    text, expected = DOCUMENTED[name]
    assert cells(text) == expected


def test_documented_exclude_leaves_nine_of_twelve() -> None:
    found = cells("""
        os: [macos, windows]
        version: [12, 14, 16]
        environment: [staging, production]
        exclude:
          - {os: macos, version: 12, environment: production}
          - {os: windows, version: 16}
        """)
    assert len(found) == 9
    assert {"os": "macos", "version": 12, "environment": "production"} not in found
    assert all((cell["os"], cell["version"]) != ("windows", 16) for cell in found)


@pytest.mark.parametrize("seed", range(20))
def test_random_matrices_against_sets(seed: int) -> None:
    """Exclude keeps exactly the combinations that contain no excluded entry, in the product's order."""
    rng = random.Random(seed)
    axes = {name: [*range(rng.randint(1, 4))] for name in "abc"[: rng.randint(1, 3)]}
    product = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    excluded = [
        {name: rng.choice(axes[name]) for name in rng.sample(sorted(axes), rng.randint(1, len(axes)))}
        for _ in range(rng.randint(1, 3))
    ]
    kept = [cell for cell in product if not any(item.items() <= cell.items() for item in excluded)]
    text = "".join(f"{name}: {values}\n" for name, values in [*axes.items(), ("exclude", excluded)])
    if kept:
        assert cells(text) == kept
    else:
        problems, tree = Problems(), parse(text, "f")
        assert expand(tree.entries, Node(None, "f"), problems) == []
        assert "leaves no cell to run" in str(*problems.errors.values())


VALUES = ["1", "true", "'1'", "null", "[1, true]", "[true, 1]", "{a: 1}", "{a: true}", "{a: 1, b: [2]}", "0.5"]
"""No two are equal, though Python takes some for the same."""


@pytest.mark.parametrize("seed", range(20))
def test_random_includes_and_excludes_against_the_documented_words(seed: int) -> None:
    """Each entry is held against each combination, as the documentation says it, by the text of the values."""
    rng = random.Random(seed)
    axes = {name: rng.sample(VALUES, rng.randint(2, 5)) for name in "abc"[: rng.randint(1, 3)]}

    def row(extra: str) -> dict[str, str]:
        names = rng.sample(sorted(axes), rng.randint(0 if extra else 1, len(axes)))
        return {**{name: rng.choice(VALUES) for name in names}, **{name: rng.choice(VALUES) for name in extra}}

    exclude = [row("") for _ in range(rng.randint(0, 4))]
    include = [row(rng.choice(["", "x", "y", "xy"])) for _ in range(rng.randint(1, 5))]
    include = [entry for entry in include if entry]
    product = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    originals = [cell for cell in product if not any(entry.items() <= cell.items() for entry in exclude)]
    grown, added = [dict(cell) for cell in originals], []
    for entry in include:
        fixed = {name: value for name, value in entry.items() if name in axes}
        hosts = [cell for cell, original in zip(grown, originals, strict=True) if fixed.items() <= original.items()]
        for cell in hosts:
            cell.update(entry)
        added += [] if hosts else [entry]
    rows = {name: [f"{{{', '.join(f'{k}: {v}' for k, v in row.items())}}}" for row in rows]
            for name, rows in (("exclude", exclude), ("include", include))}  # fmt: skip
    text = "".join(f"{name}: [{', '.join(values)}]\n" for name, values in {**axes, **rows}.items() if values)
    tree = parse(text, "f")
    combinations = expand(tree.entries, tree, Problems())
    plain = [{name: entry.node.plain() for name, entry in combination.items()} for combination in combinations]
    expected = [{name: parse(value, "f").plain() for name, value in cell.items()} for cell in grown + added]
    assert list(map(repr, plain)) == list(map(repr, expected))


def values_read(monkeypatch: pytest.MonkeyPatch, text: str) -> int:
    """Expand a matrix and return how often the value of a node was asked for."""
    tree, problems, num_read = parse(text, "f"), Problems(), 0
    plain = Node.plain

    def counted(node: Node) -> JSON:
        nonlocal num_read
        num_read += 1
        return plain(node)

    with monkeypatch.context() as patch:
        patch.setattr(Node, "plain", counted)
        assert expand(tree.entries, tree, problems)
    assert not problems.errors
    return num_read


@pytest.mark.parametrize("rows", ["", "exclude", "include"])
@pytest.mark.parametrize("value", ["{n}", "text-{n}", "[{n}]", "{{a: {n}}}"])
def test_the_work_grows_with_the_file_not_with_its_square(
    monkeypatch: pytest.MonkeyPatch, rows: str, value: str
) -> None:
    def text(size: int) -> str:
        values = [value.format(n=number) for number in range(size)]
        listed = ", ".join(f"{{x: {one}{', y: 1' if rows == 'include' else ''}}}" for one in values[1:])
        return f"max_cells: 4096\nx: [{', '.join(values)}]\n" + (f"{rows}: [{listed}]\n" if rows else "")

    few, many = values_read(monkeypatch, text(50)), values_read(monkeypatch, text(200))
    assert few < many <= 4.2 * few


def test_combinations_are_counted_before_they_are_made() -> None:
    axes = "".join(f"a{number}: [1]\n" for number in range(2000))
    with pytest.raises(SuiteError, match="4,096 combinations of 2,002 axes before exclude"):
        cells(f"{axes}x: {[*range(64)]}\ny: {[*range(64)]}\n")
