"""A damaged checkpoint gives the numbers it gave before, or one line that says what is wrong: no traceback, no flood, no hour."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from modelassay.errors import AssayError
from modelassay.fingerprints.lineage import lineage
from modelassay.fingerprints.measure import summarise_model
from modelassay.fingerprints.weights import weights_of
from modelassay.models.checkpoints import checkpoint_of
from modelassay.models.checkpoints.layers import read_head
from modelassay.models.hub import open_files
from modelassay.models.load import load_model
from modelassay.models.reference import Model
from modelassay.models.vocabulary import vocabulary_of
from support.damaged_checkpoints import damage, make_bases
from support.in_a_child import in_a_child

Numbers = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_bases(tmp_path_factory.mktemp("bases"))


def local(folder: Path) -> Model:
    return Model(reference=str(folder), open_files=lambda: open_files(folder), identity=None, family=None)


def steps(folder: Path, base: Path, *, whole: bool) -> dict[str, Callable[[], Numbers]]:
    """What experiments read of a model, each from its files alone."""

    def sigma() -> Numbers:
        return dict(summarise_model(local(folder), name="x").curves.sigma)

    def grams() -> Numbers:
        weights = weights_of(checkpoint_of(open_files(folder)))
        return {"grams": weights.grams(range(weights.num_layers))}

    def rest() -> Numbers:
        weights = weights_of(checkpoint_of(open_files(folder)))
        rows = {} if weights.embedding is None else {
            f"row of {token}": row for token, row in zip(weights.tokens, weights.embedding, strict=True)}  # fmt: skip
        return rows | ({} if weights.norms is None else {"norms": weights.norms})

    def head() -> Numbers:
        matrix = read_head(open_files(folder))
        return {} if matrix is None else {"head": matrix.numpy()}

    def vocabulary() -> Numbers:
        words = vocabulary_of(folder)
        return {} if words is None else {"valid": words.valid_V(32).numpy(), "bytes": np.array(len(words.by_bytes))}

    def derivation() -> Numbers:
        lineage(checkpoint_of(open_files(folder)), checkpoint_of(open_files(base)))
        return {}

    def loading() -> Numbers:
        load_model(folder)
        return {}

    chosen = {
        "sigma": sigma,
        "grams": grams,
        "rest": rest,
        "head": head,
        "vocabulary": vocabulary,
        "lineage": derivation,
    }
    return chosen | ({"model": loading} if whole else {})


def numbers_or_line(step: Callable[[], Numbers]) -> Numbers | str:
    """What a step gives, or the one line it ends in."""
    try:
        return step()
    except AssayError as raised:
        error = raised
    message = str(error)
    assert error.exit_code == 2
    assert message.isprintable(), (
        message
    )  # no line breaks, escapes of a terminal, or marks that turn the direction of writing
    assert len(message) < 2000
    return message


def check(folder: Path, base: Path, seed: int, *, whole: bool) -> None:
    what, legible = damage(folder, seed), True
    for name, step in steps(folder, base, whole=whole).items():
        if name == "lineage" and not legible:
            continue  # as the command: models that cannot be measured are not compared
        got = numbers_or_line(step)
        legible &= name != "sigma" or not isinstance(got, str)
        if isinstance(got, str) or name in {"vocabulary"} or "filled" in what:
            continue
        expected = steps(base, base, whole=False)[name]() if name != "model" else {}
        if what.startswith(("tokenizer", "vocab")):  # which row is whose is what these files say
            expected = {key: array for key, array in expected.items() if not key.startswith("row of ")}
        for key in got.keys() & expected.keys():
            np.testing.assert_array_equal(got[key], expected[key], err_msg=f"{name} after {what}")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("work")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 240, 40))
def test_damaged_checkpoints(bases: list[Path], work: Path, start: int) -> None:
    for seed in range(start, start + 40):
        base = bases[seed % len(bases)]
        folder = Path(shutil.copytree(base, work / str(seed)))
        began = time.process_time()
        check(folder, base, seed, whole=seed % 5 == 0 and base.name != "wrapped")
        assert time.process_time() - began < 10, seed


@pytest.mark.nightly
@pytest.mark.parametrize("start", range(10_000, 13_000, 250))
def test_thousands_of_damaged_checkpoints(bases: list[Path], work: Path, start: int) -> None:
    """Each in a process of its own: at most 500 MB more than it began with, at most 10 s of a processor."""
    failures = {}
    for seed in range(start, start + 250):
        base = bases[seed % len(bases)]
        folder = Path(shutil.copytree(base, work / str(seed)))
        said = in_a_child(lambda: check(folder, base, seed, whole=True), more_bytes=500_000_000, cpu_s=10)  # noqa: B023
        shutil.rmtree(folder)
        if said:
            failures[seed] = said
    assert not failures, "\n".join(f"{seed}: {said}" for seed, said in failures.items())
