"""What the tests' command line takes."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-messages", action="store_true", help="Write the expected messages of tests/cases anew; read the diff."
    )
