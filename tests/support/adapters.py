"""LoRA adapters of the small llama of `model_forms`, as PEFT stores them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from support.model_forms import LAYERS, weights


def adapter(path: Path, base: str, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """An adapter of rank 4 for q and v of every layer, or of other tensors."""
    path.mkdir(parents=True, exist_ok=True)
    if tensors is None:
        tensors, source = {}, weights()
        generator = torch.Generator().manual_seed(3)
        for layer in range(LAYERS):
            for role in ("q", "v"):
                rows, columns = source[f"model.layers.{layer}.self_attn.{role}_proj.weight"].shape
                stem = f"base_model.model.model.layers.{layer}.self_attn.{role}_proj"
                tensors[f"{stem}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * 0.1
                tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
    save_file(tensors, path / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 4, "lora_alpha": 8, **config}
    (path / "adapter_config.json").write_text(json.dumps(said))
    return path
