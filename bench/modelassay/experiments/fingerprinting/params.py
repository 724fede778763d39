"""What one cell of `fingerprinting` is: what the methods read of one model, and its scores against others."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from modelassay.references import FileReference, ModelReference

Peer = Literal["modeldna"]


class Measured(BaseModel):
    """CSV files of overlaps that others measured: columns for a model, its overlap and its downloads."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    earlier: tuple[FileReference, ...] = Field(min_length=1)
    """Members of the family that were chosen whatever their downloads."""

    popular: tuple[FileReference, ...] = ()
    """Members that were chosen for their downloads; of one that stands in both the first row counts."""

    same_tokenizer: tuple[FileReference, ...] = ()
    """Models of other families with the base's tokenizer."""

    other_tokenizer: tuple[FileReference, ...] = ()
    """Models of other families with another tokenizer."""


class Members(BaseModel):
    """The family of a base on the Hub, and which of its members are compared with the base."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    listing: FileReference | None = None
    """The ``listing.json`` among the artifacts of an earlier run; None: the Hub is asked, once, when the cell begins."""

    earlier: int | None = Field(default=None, ge=1)
    """How many loadable members are drawn whatever their downloads, the same for the same listing; None: all."""

    popular: int = Field(default=50, ge=0)
    """How many loadable members are taken for having the most downloads."""

    more_than: int = Field(default=10, ge=0)
    """Downloads that a member must exceed to pass the filter; 10 is the published one."""

    threshold: float | None = Field(default=None, ge=0, le=1)
    """Overlap from which a published rule calls a model this base's; None: there is no such rule."""

    measured: Measured | None = None
    """Tables to analyse instead: the Hub is not asked and no model is loaded."""


class Params(BaseModel):
    """One model, and the models whose weights it is compared with."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: ModelReference
    """A local folder, ``hf:ORG/NAME@COMMIT``, or ``zoo:NAME``."""

    family: str | None = None
    """The root it is known to descend from, itself for a root; models of different known families are strangers to one
    another and make up the background. Zoo models know their own; None: its ancestry is what is asked."""

    whole: bool = True
    """Read biases, norms, feed-forward matrices and embeddings too, which methods beyond the four attention matrices need;
    of a repository on the Hub that fetches all its weights."""

    against: tuple[ModelReference, ...] = ()
    """Models that this one's weights are compared with, where a method needs both at hand; of two models of this list the
    later is compared with the earlier."""

    behaviour: bool = False
    """Ask this model and each of ``against`` which tokens they find least likely, with prompts that the latter grow; loads whole
    models, and of a repository on the Hub fetches all of them."""

    peers: tuple[Peer, ...] = ()
    """Other tools that score the same pairs; they must be installed (`ci/peers`)."""

    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Level at which a pair is called related, the same in all cells."""

    members: Members | None = None
    """Compare the members of this model's family on the Hub with it, and with the other models of the run, by bottom-k
    overlap, and set that against their downloads; all cells of a run do, or none."""

    @field_validator("against", "peers")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := [name for name in names if names.count(name) > 1]:
            message = f"{repeated[0]} stands there twice; a pair is scored once, name each once"
            raise ValueError(message)
        return names
