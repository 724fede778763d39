"""What one cell of `fingerprinting` is: what the methods read of one model, and its scores against others."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from modelassay.experiments.references import ModelReference
from modelassay.storage.needs import Need
from modelassay.zoo.ancestry import is_zoo
from modelassay.zoo.needs import needs_of

Peer = Literal["modeldna", "cisco-ai-provenance-kit"]


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

    sampled: bool = False
    """Read nothing but a few rows, for an index of many models: a sketch, and neither curves nor scores; of a repository on the Hub some thousandths
    are fetched, and removed again."""

    against: tuple[ModelReference, ...] = ()
    """Models that this one's weights are compared with, where a method needs both at hand; of two models of this list the
    later is compared with the earlier."""

    families: dict[ModelReference, str] = {}
    """The roots that models of ``against`` are known to descend from, by their references there; zoo models know their own.
    How a model was made is asked only of relatives that its cell knows: ``family`` of the other's cell does not reach it."""

    behaviour: bool = False
    """Ask this model and each of ``against`` which tokens they find least likely, with prompts that the latter grow; loads whole
    models, and of a repository on the Hub fetches all of them."""

    numbering: bool = False
    """Test whether this model and others of ``against`` were numbered independently, which takes all weights of both and no background:
    a model of the list against all that it is compared with, any other against what it is connected with and some ``strangers``."""

    strangers: int = Field(default=2, ge=0)
    """Models of no common root that ``numbering`` tests a descendant against, drawn anew for each: they repeat what their roots showed."""

    peers: tuple[Peer, ...] = ()
    """Other tools that score the same pairs; they must be installed (`ci/peers`)."""

    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Level at which a pair is called related, the same in all cells."""

    @model_validator(mode="after")
    def _sampled_is_alone(self) -> Self:
        others = {
            "against": self.against,
            "behaviour": self.behaviour,
            "numbering": self.numbering,
            "peers": self.peers,
        }
        if self.sampled and (unfit := [name for name, value in others.items() if value]):
            message = f"sampled reads a few rows, and {unfit[0]} needs whole models; leave one of them out"
            raise ValueError(message)
        return self

    @field_validator("against", "peers")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := [name for name in names if names.count(name) > 1]:
            message = f"{repeated[0]} is listed twice; a pair is scored once, so list each once"
            raise ValueError(message)
        return names


def needs(params: Params) -> list[Need]:
    """Return the model with its held-out losses, and all that it is compared with."""
    others = [need for other in params.against for need in needs_of(other)]
    return [*needs_of(params.model, with_utility=not params.sampled), *others]


def cores(params: Params) -> int | None:
    """Return one core where all models are the zoo's, too small for a second to help; others are read as fast as memory allows."""
    return 1 if all(is_zoo(model) for model in (params.model, *params.against)) else None
