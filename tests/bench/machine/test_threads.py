"""Work by threads gives what work in order gives, and ends as it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from modelassay.machine.threads import in_order


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order_whoever_is_first(threads: int) -> None:
    def work(number: int) -> int:
        time.sleep(0.01 * (number % 3 == 0))
        return number**2

    assert list(in_order(work, range(20), threads=threads)) == [number**2 for number in range(20)]
    assert list(in_order(work, [], threads=threads)) == []


def test_two_are_at_work_at_once_and_no_more_are_taken_than_are_wanted() -> None:
    both, taken = threading.Barrier(2, timeout=20), list[int]()

    def items() -> Iterator[int]:
        for number in range(8):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        both.wait()  # fails if one works alone
        return number

    results = in_order(work, items(), threads=2)
    assert next(results) == 0
    assert len(taken) <= 4
    assert list(results) == list(range(1, 8))


def test_one_thread_is_the_callers() -> None:
    assert set(in_order(lambda _: threading.current_thread(), range(3), threads=1)) == {threading.current_thread()}


def test_an_error_comes_in_its_turn_and_nothing_is_begun_after_it() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    done: list[int] = []
    with pytest.raises(ValueError, match="three"):
        done.extend(in_order(work, range(100), threads=2))
    assert done == [0, 1, 2]
    assert max(begun) < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("in-order")]


def test_numpys_settings_are_the_callers() -> None:
    with np.errstate(all="raise"), pytest.raises(FloatingPointError):
        list(in_order(lambda number: np.float64(1) / np.float64(number), [1, 0], threads=2))
    with np.errstate(all="ignore"):
        assert np.isinf(list(in_order(lambda number: np.float64(1) / np.float64(number), [1, 0], threads=2))[1])
