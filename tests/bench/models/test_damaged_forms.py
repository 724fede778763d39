"""A model in any form, one of its files damaged: numbers or one line, little memory, and no file is opened that is not its own.

As `test_damaged_checkpoints`, for what is not a folder of safetensors alone: pickles, shards, indexes, GGUF, packed weights and adapters.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from modelassay.errors import AssayError
from modelassay.fingerprints.independence import ModelMatrices
from modelassay.fingerprints.independence.blocks import SampledModel, places_of
from modelassay.fingerprints.measure import summarise_model
from modelassay.fingerprints.tokens import texts_of
from modelassay.fingerprints.weights import weights_of
from modelassay.models.checkpoints import checkpoint_of
from modelassay.models.checkpoints.opened import open_form
from modelassay.models.reference import Model
from support.adapters import adapter
from support.damaged_checkpoints import header_of, write_header
from support.damaged_json import damaged, damaged_bytes
from support.gguf_files import converted_llama
from support.in_a_child import in_a_child
from support.model_forms import CONFIG, HEAD_DIM, HEADS, KV_HEADS, READ, VOCAB, folder, weights
from support.packed_models import quantised
from support.quantised import FORMATS

Base = Callable[[Path], str]
FOUND = (1166,)
"""Seeds that showed a fault once, beside those that are always tried: a warning of numpy's where weights times a norm's overflow."""


def _gguf(type_name: str) -> Base:
    def make(path: Path) -> str:
        path.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.float().numpy() for name, tensor in weights().items()}
        tokens = [f"t{at}" for at in range(VOCAB)]
        converted_llama(path / "m.gguf", tensors, type_name, heads=(HEADS, KV_HEADS), head_dim=HEAD_DIM, tokens=tokens)
        return str(path / "m.gguf")

    return make


def _packed(form: str) -> Base:
    return lambda path: str(quantised(path / "m", form)[0])


def _adapter(path: Path) -> str:
    base = folder(path / "base", weights())
    child = adapter(path / "child", str(base))
    (child / "config.json").write_text(json.dumps(CONFIG))
    return str(child)


BASES: dict[str, Base] = {
    **READ, **{form: _packed(form) for form in FORMATS}, "Q8_0": _gguf("Q8_0"), "Q4_1": _gguf("Q4_1"), "F16": _gguf("F16"), "adapter": _adapter,
}  # fmt: skip


def damage(root: Path, rng: random.Random) -> str:
    """Spoil one file below ``root`` and return what was done; links are left, what they lead to is spoilt."""
    path = rng.choice(sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink()))
    if path.suffix == ".json" and rng.random() < 0.8 and path.read_bytes()[:1] in (b"{", b"["):  # no pointer of git-LFS
        value, what = damaged(json.loads(path.read_text()), rng)
        path.write_text(json.dumps(value))
    elif path.suffix == ".safetensors" and rng.random() < 0.8:
        header, data = header_of(path)
        name = rng.choice([name for name in header if name != "__metadata__"])
        header[name], what = damaged(header[name], rng)
        write_header(path, header, data)
    elif rng.random() < 0.5:
        data = bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 6)):  # headers stand first, the directory of a pickle's archive last
            data[rng.choice([rng.randrange(len(data)), rng.randrange(min(len(data), 3000)), -1 - rng.randrange(min(len(data), 3000))])] = rng.randrange(256)  # fmt: skip
        path.write_bytes(bytes(data))
        what = "some bytes changed"
    else:
        data, what = damaged_bytes(path.read_bytes(), rng)
        path.write_bytes(data)
    return f"{path.relative_to(root)}: {what}"


def read_all(reference: str) -> None:
    """Read whatever a comparison reads of a model."""
    files = open_form(reference)
    checkpoint = checkpoint_of(files)
    texts_of(files)
    model = Model(reference=reference, open_files=lambda: files, identity=None, family=None)
    for step in (
        lambda: summarise_model(model, name="x"),
        lambda: weights_of(checkpoint).embedding,
        lambda: weights_of(checkpoint).norms,
        lambda: [ModelMatrices(checkpoint, None).along_hidden(layer, 3) for layer in range(checkpoint.num_layers)],
        lambda: SampledModel(checkpoint).read(places_of(*[SampledModel(checkpoint)] * 2, 4, most=8, seed=0)[0]),
    ):
        _one_line(step)


def _one_line(step: Callable[[], object]) -> None:
    try:
        step()
        return
    except AssayError as raised:
        error = raised
    assert error.exit_code == 2, repr(error)
    assert str(error).isprintable(), error
    assert len(str(error)) < 2000, error


def check(make: Base, root: Path, seed: int, allowed: tuple[str, ...]) -> None:
    """Damage a fresh copy of a form and read it, in a process that tells of every file opened elsewhere."""
    reference = make(root)
    what = damage(root, random.Random(seed))
    opened: list[str] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            path = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode(errors="replace")
            if path.startswith("/") and not path.startswith((str(root), *allowed)):
                opened.append(path)

    sys.addaudithook(watch)
    _one_line(lambda: read_all(reference))
    assert not opened, (what, opened[:3])


@pytest.fixture
def allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Where files may be opened beside the model: the cache, and what Python itself loads."""
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    repository = Path(__file__).parents[3]
    modules = {str(Path(place)) for place in (*sys.path, sys.prefix, sys.base_prefix) if place}
    return (str(tmp_path), str(repository), *modules, tempfile.gettempdir(), "/proc/", "/sys/", "/dev/", "/usr/")


def run(seeds: Iterable[int], allowed: tuple[str, ...]) -> dict[str, str]:
    """Return what each seed that failed said."""
    failures, names = {}, sorted(BASES)
    for seed in seeds:
        name = names[seed % len(names)]
        root = Path(tempfile.mkdtemp(dir=allowed[0]))
        said = in_a_child(lambda: check(BASES[name], root, seed, allowed), more_bytes=500_000_000, cpu_s=10)  # noqa: B023
        shutil.rmtree(root)
        if said:
            failures[f"{seed} ({name})"] = said
    return failures


def test_damaged_forms(allowed: tuple[str, ...]) -> None:
    failures = run([*range(8), *FOUND], allowed)
    assert not failures, "\n".join(f"{seed}: {said}" for seed, said in failures.items())


@pytest.mark.nightly
@pytest.mark.parametrize("start", range(1_000, 21_000, 1_000))
def test_thousands_of_damaged_forms(allowed: tuple[str, ...], start: int) -> None:
    failures = run(range(start, start + 1_000), allowed)
    assert not failures, "\n".join(f"{seed}: {said}" for seed, said in failures.items())
