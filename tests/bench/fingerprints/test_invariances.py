"""What each method sees of copies that compute the same function, made and saved as the zoo makes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelassay.fingerprints.curves import Score
from modelassay.fingerprints.measure import summarise_model
from modelassay.fingerprints.methods import BY_NUMBERS, BY_WEIGHTS
from modelassay.fingerprints.weights import weights_of
from modelassay.models.checkpoints import open_checkpoint
from modelassay.storage.store import Store
from modelassay.zoo import transforms as zoo_transforms
from modelassay.zoo.catalogue import PRESERVING, MadeBy
from modelassay.zoo.resolve import resolve
from support.tiny_models import make_model, save

LAYERS = 6
SEEN_THROUGH: dict[str, set[str]] = {
    "heads": {"config-only", "paper-exact", "corrected", "extended", "invariant", "norm-vectors", "aligned"},
    "neurons": {"config-only", "paper-exact", "corrected", "extended", "invariant", "norm-vectors", "aligned"},
    "rotate": {"config-only", "invariant", "norm-vectors", "aligned"},
    "scale-qk": {"config-only", "invariant", "norm-vectors"},
    "scale-vo": {"config-only", "invariant", "norm-vectors"},
    "hidden": {"config-only", "invariant", "aligned"},
    "fold": {"config-only", "aligned"},
}
"""What was done -> the methods to which nothing was done at all."""


def random_model() -> Any:
    """Every layer's matrices of another size, norms away from one."""
    model: Any = make_model("qwen2", num_hidden_layers=LAYERS, vocab_size=80)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * torch.exp(0.3 * torch.randn(())) + ("norm" in name))
    return model


def write(model: Any, folder: Path) -> Path:
    folder.mkdir()
    save(model, folder)
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {f"t{index}": index for index in range(80)}}})
    )
    return folder


def scores(a: Path, b: Path, store: Store) -> dict[str, Score]:
    numbers = [summarise_model(resolve(str(folder), store=store), name=folder.name) for folder in (a, b)]
    weights = [weights_of(open_checkpoint(folder)) for folder in (a, b)]
    return {
        **{name: method.score(numbers[0], numbers[1]) for name, method in BY_NUMBERS.items()},
        **{name: method.score(weights[0], weights[1]) for name, method in BY_WEIGHTS.items()},
    }


@pytest.mark.parametrize("step", PRESERVING)
def test_what_each_method_sees_of_the_same_function(step: MadeBy, tmp_path: Path) -> None:
    root = write(random_model(), tmp_path / "root")
    with torch.no_grad():
        changed = zoo_transforms.apply(random_model(), step, seed=5, settings={})
    by_method = scores(root, write(changed, tmp_path / "copy"), Store(tmp_path / "store"))
    blind = {name for name, score in by_method.items() if score.value == pytest.approx(1, abs=1e-9)}
    assert blind == SEEN_THROUGH[step]
    if step in ("rotate", "hidden"):  # a deviation hardly changes with the basis: what moves is the mean's small share
        assert by_method["corrected"].value == pytest.approx(1, abs=1e-4)
    if step.startswith("scale"):
        assert by_method["corrected"].value < 0.9


def test_strangers_are_what_only_the_configuration_cannot_tell(tmp_path: Path) -> None:
    root = write(random_model(), tmp_path / "root")
    other: Any = make_model("qwen2", num_hidden_layers=LAYERS, vocab_size=80)
    torch.manual_seed(4)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            weight.copy_(torch.randn_like(weight) * torch.exp(0.3 * torch.randn(())) + ("norm" in name))
    by_method = scores(root, write(other, tmp_path / "other"), Store(tmp_path / "store"))
    assert by_method.pop("config-only").value == 1
    assert max(score.value for score in by_method.values()) < 0.7
    assert abs(by_method["norm-vectors"].value) < 0.3
    assert abs(by_method["aligned"].value) < 0.2


def test_folded_norms_have_nothing_to_correlate(tmp_path: Path) -> None:
    root = write(random_model(), tmp_path / "root")
    with torch.no_grad():
        folded = zoo_transforms.apply(random_model(), "fold", seed=5, settings={})
    by_method = scores(root, write(folded, tmp_path / "copy"), Store(tmp_path / "store"))
    assert np.isnan(by_method["norm-vectors"].value)
    assert by_method["norm-vectors"].reason == "the norms do not vary, so their correlation is not defined"
    assert np.isfinite(by_method["extended"].value)
