"""The toy experiment keeps its own promise, so that the runner's tests can rely on it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from modelassay.errors import Diverged
from toy.params import Params
from toy.run import run


class FakeMeter:
    """Keeps metrics by step."""

    def __init__(self) -> None:
        self.values: dict[int, float] = {}
        self.num_units = 0

    @contextmanager
    def microbatch(self, name: str, *, tokens: int) -> Iterator[None]:
        assert (name, tokens) == ("step", 8)
        self.num_units += 1
        yield

    def metric(self, name: str, value: float, *, step: int, verbose: bool) -> None:
        assert (name, verbose) == ("value", False)
        self.values[step] = value


class FakeState:
    """Keeps checkpoints with the random state, as the frame does."""

    def __init__(self, saved: Any = None) -> None:
        self.saved = saved

    def checkpoint(self, data: dict[str, Any]) -> None:
        self.saved = (data, random.getstate())

    def restore(self) -> dict[str, Any] | None:
        if self.saved is None:
            return None
        random.setstate(self.saved[1])
        data: dict[str, Any] = self.saved[0]
        return data


def walk(params: Params, state: FakeState, meter: FakeMeter) -> dict[int, float]:
    run(params, meter, state)  # type: ignore[arg-type]
    return meter.values


@pytest.mark.parametrize("fail_at", range(1, 12))
def test_a_resumed_walk_is_the_uninterrupted_one(fail_at: int) -> None:
    whole = walk(Params(model="zoo:child", steps=11, seed=3), FakeState(), FakeMeter())
    assert len(set(whole.values())) == 11
    state, meter = FakeState(), FakeMeter()
    params = Params(model="zoo:child", steps=11, seed=3, fail_at=fail_at, only_first=True)
    with pytest.raises(ValueError, match=f"step {fail_at}"):
        walk(params, state, meter)
    random.seed(99)
    if state.saved is None:
        params = params.model_copy(update={"fail_at": None})
    assert walk(params, state, meter) == whole


def test_trouble_comes_back_unless_asked_otherwise() -> None:
    state = FakeState()
    params = Params(model="zoo:base", steps=9, diverge_at=7)
    for _ in range(2):
        with pytest.raises(Diverged, match="step 7"):
            walk(params, state, FakeMeter())
    assert state.saved[0]["step"] == 4


def test_another_seed_is_another_walk() -> None:
    one, other = (walk(Params(model="zoo:base", steps=3, seed=seed), FakeState(), FakeMeter()) for seed in (0, 1))
    assert one != other
