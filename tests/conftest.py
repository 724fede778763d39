"""What the tests' command line takes."""

import os
import tempfile

import pytest

LONGEST = (
    "tests/kernels/test_in_the_interpreter.py",
    "tests/bench/zoo/test_resolve.py",
    "tests/bench/experiments/fingerprinting/test_kills.py",
    "tests/bench/runs/test_execute.py",
    "tests/bench/runs/test_sent_runs.py",
    "tests/bench/runs/test_needs.py",
    "tests/test_wheel.py",
)
"""Files that take a process half a minute or so; begun last, one would be waited for."""


def pytest_configure() -> None:
    """Let the tests of each process take turns among themselves alone: timed cells run one at a time on a machine."""
    os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="modelassay-tests-")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-messages", action="store_true", help="Write the expected messages of tests/cases anew; read the diff."
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))
