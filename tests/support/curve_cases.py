"""Synthetic curves with known relations."""

from collections.abc import Iterable

import numpy as np

from modelassay.fingerprints.background import Background, Recorded
from modelassay.fingerprints.configuration import Sizes
from modelassay.fingerprints.curves import ROLES, Curves
from modelassay.fingerprints.methods import ModelSummary

Array = np.ndarray


def process(rng: np.random.Generator, num_models: int, num_layers: int, phi: float, bow: float = 0.0) -> Array:
    """Independent log-sigma curves, [num_models, 4, num_layers]: AR(1), a random walk at phi = 1, share 0.6 in common.

    ``bow`` adds a parabola that all models share, in units of the curves' spread.
    """
    noise = rng.standard_normal((num_models, 5, num_layers))
    x = np.empty_like(noise)
    x[..., 0] = noise[..., 0] / np.sqrt(1 - phi**2) if phi < 1 else noise[..., 0]
    for layer in range(1, num_layers):
        x[..., layer] = phi * x[..., layer - 1] + noise[..., layer]
    four = np.sqrt(0.6) * x[:, :1] + np.sqrt(0.4) * x[:, 1:]
    depth = np.linspace(-1, 1, num_layers)
    return four + bow * four.std(-1).mean() * (depth**2 - 1 / 3) / np.sqrt(4 / 45)


def make(name: str, log_sigma: Array, family: str | None = None, stratum: object = None) -> Curves:
    sigma = {role: np.exp(0.05 * row) for role, row in zip(ROLES, log_sigma, strict=True)}
    return Curves(name=name, sigma=sigma, stratum=stratum or log_sigma.shape[-1], family=family)


def walk(name: str, num_layers: int, seed: int, family: str | None = None) -> Curves:
    return make(name, process(np.random.default_rng(seed), 1, num_layers, 1.0)[0], family)


def child(parent: Curves, name: str, noise: float = 0.003, seed: int = 0) -> Curves:
    """A descendant whose log sigma moved by ``noise`` per layer."""
    rng = np.random.default_rng(seed)
    sigma = {role: parent.sigma[role] * np.exp(noise * rng.standard_normal(parent.num_layers)) for role in ROLES}
    return Curves(name=name, sigma=sigma, stratum=parent.stratum, family=parent.family)


def numbers(curves: Curves) -> ModelSummary:
    """The curves with a configuration that only their depth tells from another's."""
    sizes = Sizes(num_layers=curves.num_layers, hidden_size=64, num_heads=4, num_kv_heads=2, intermediate_size=192,
                  vocab_size=512, tokenizer_key="tokens")  # fmt: skip
    return ModelSummary(curves=curves, sizes=sizes)


def background_of(models: Iterable[Curves], recorded: Recorded | None = None) -> Background:
    return Background.from_models([numbers(model) for model in models], recorded)
