"""The registry of models' shapes that comes with the suite; torch-free."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from ruamel.yaml import YAML

import modelassay


class Shape(BaseModel):
    """What a model's configuration says of its sizes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    hidden: int = Field(ge=1)
    layers: int = Field(default=1, ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    """Divides ``heads``."""
    head_dim: int = Field(ge=1)
    intermediate: int = Field(ge=1)
    vocabulary: int = Field(ge=2)
    source: str = "own"
    """Whose config.json says so."""


def registry_path() -> Path:
    """Return where the registry lies: inside a wheel, or beside ``bench`` in a checkout."""
    package = Path(modelassay.__file__).parent
    folder = package / "suites" if (package / "suites").is_dir() else package.parents[1] / "suites"
    return folder / "kernels" / "models.yaml"


@cache
def registry() -> dict[str, Shape]:
    """Return the shapes by the models' names."""
    text = registry_path().read_text(encoding="utf-8")
    return TypeAdapter(dict[str, Shape]).validate_python(YAML(typ="safe", pure=True).load(text))
