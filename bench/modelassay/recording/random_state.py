"""The global random generators: seeded, kept, put back."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any


def random_states() -> dict[str, Any]:
    """Return the states of the global generators of Python and, where loaded, NumPy and torch, as JSON."""
    version, internal, gauss = random.getstate()
    states: dict[str, Any] = {"python": [version, list(internal), gauss]}
    if (numpy := sys.modules.get("numpy")) is not None:
        name, keys, *rest = numpy.random.get_state()
        states["numpy"] = [name, keys.tolist(), *rest]
    if (torch := sys.modules.get("torch")) is not None:
        states["torch"] = torch.get_rng_state().numpy().tobytes().hex()
        if torch.cuda.is_available():
            states["cuda"] = [state.numpy().tobytes().hex() for state in torch.cuda.get_rng_state_all()]
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put the generators back as `random_states` found them."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    if "numpy" in states:
        import numpy as np

        np.random.set_state(tuple(states["numpy"]))
    if "torch" in states:
        import torch

        def tensor(text: str) -> torch.Tensor:
            return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)

        torch.set_rng_state(tensor(states["torch"]))
        if "cuda" in states:
            torch.cuda.set_rng_state_all([tensor(state) for state in states["cuda"]])


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python and, where loaded, NumPy and torch with ``seed`` (below 2^32)."""
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)
