"""What the tests' command line takes, and what the tests cost."""

import os
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

LONGEST = (
    "tests/kernels/test_in_the_interpreter.py",
    "tests/bench/zoo/test_resolve.py",
    "tests/bench/runs/test_sent_runs.py",
    "tests/bench/runs/test_execute.py",
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
    parser.addoption(
        "--cpu", type=int, default=0, metavar="N", help="List the N files and tests that took most of a processor."
    )


def _cpu_s() -> float:
    """Processor seconds of this process, of the children that it has waited for, and of forks made for it."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    server = sys.modules.get("support.warm_server")
    return sum(each.ru_utime + each.ru_stime for each in used) + (server.WarmServer.forks_cpu_s if server else 0.0)


_seen_s = _cpu_s()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Note in each report what its phase took; what was between two tests is of the second."""
    global _seen_s
    report = yield
    now = _cpu_s()
    report.cpu_s, _seen_s = now - _seen_s, now
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    num_listed = config.getoption("--cpu")
    if not num_listed:
        return
    tests: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            tests[getattr(report, "nodeid", "")] += getattr(report, "cpu_s", 0.0)
    files: Counter[str] = Counter()
    for name, used_s in tests.items():
        files[name.partition("::")[0]] += used_s
    terminalreporter.section(f"{sum(tests.values()):.0f} processor seconds")
    for each in (files, tests):
        for name, used_s in each.most_common(num_listed):
            terminalreporter.write_line(f"{used_s:7.1f} s  {name}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))
