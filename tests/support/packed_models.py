"""The small llama of `model_forms` with its projections packed as quantisers do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from support.model_forms import CONFIG, folder, weights
from support.quantised import FORMATS


def quantised(path: Path, form: str) -> tuple[Path, dict[str, np.ndarray]]:
    """The small llama with every projection packed, and what each stands for."""
    tensors: dict[str, Tensor] = {}
    meant: dict[str, np.ndarray] = {}
    said: Mapping[str, Any] = {}
    key = ""
    for at, (name, tensor) in enumerate(weights().items()):
        if "_proj" not in name:
            tensors[name] = tensor
            continue
        packed = FORMATS[form](*tensor.shape, at)  # type: ignore[call-arg]
        stem, said, key, meant[name] = name.removesuffix(".weight"), packed.quantization, packed.key, packed.meant
        tensors |= {stem + suffix: value for suffix, value in packed.tensors.items()}
    config = {**CONFIG, **({key: dict(said)} if said else {})}
    return folder(path, tensors, config=config), meant
