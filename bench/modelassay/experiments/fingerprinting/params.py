"""What one cell of `fingerprinting` is: the sigma-curves of one model."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Params(BaseModel):
    """One model whose attention matrices are measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """A local folder, ``hf:ORG/NAME@COMMIT``, or ``zoo:NAME``."""

    family: str | None = None
    """The root it is known to descend from, itself for a root; models of different known families are strangers to one
    another and make up the background. Zoo models know their own; None: its ancestry is what is asked."""

    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Level at which a pair is called related, the same in all cells."""
