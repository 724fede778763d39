"""What one cell of `downloads` is: a base, the rules by which its family is chosen, and the bases that members are compared with."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelassay.experiments.references import FileReference, ModelReference
from modelassay.storage.needs import File, Need
from modelassay.zoo.ancestry import descendants, is_zoo
from modelassay.zoo.needs import needs_of


class Measured(BaseModel):
    """CSV files of overlaps that others measured: columns for a model, its overlap and its downloads."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    random_sample: tuple[FileReference, ...] = Field(min_length=1)
    """Members of the family that were chosen whatever their downloads."""

    most_downloaded: tuple[FileReference, ...] = ()
    """Members that were chosen for their downloads; of one that stands in both the first row counts."""

    same_tokenizer: tuple[FileReference, ...] = ()
    """Models of other families with the base's tokenizer."""

    other_tokenizer: tuple[FileReference, ...] = ()
    """Models of other families with another tokenizer."""

    @property
    def files(self) -> tuple[FileReference, ...]:
        """All of them."""
        return (*self.random_sample, *self.most_downloaded, *self.same_tokenizer, *self.other_tokenizer)


class Params(BaseModel):
    """A base and its family, on the Hub or in the zoo, and which of its members are compared with the bases."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: ModelReference
    """The base: ``hf:ORG/NAME[@COMMIT]``, ``zoo:NAME``, or, with ``listing``, a local folder."""

    bases: tuple[ModelReference, ...] = ()
    """All bases of the run: each member answers the prompts of each, so that the members of one family are strangers to the
    others. The own base always asks."""

    family: str | None = None
    """The root that the base is known to descend from, itself for a root; bases of one root are no strangers to each other. Zoo
    models know their own."""

    listing: FileReference | None = None
    """The ``listing.json`` among the artifacts of an earlier run; None: the Hub, or the zoo, is asked when the cell begins."""

    random_sample: int | None = Field(default=None, ge=1)
    """How many loadable members are drawn whatever their downloads, the same for the same listing; None: all."""

    most_downloaded: int = Field(default=50, ge=0)
    """How many loadable members are taken for having the most downloads."""

    more_than: int = Field(default=10, ge=0)
    """Downloads that a member must exceed to pass the filter; 10 is the published one."""

    threshold: float | None = Field(default=None, ge=0, le=1)
    """Overlap from which a published rule calls a model this base's; None: there is no such rule."""

    measured: Measured | None = None
    """Tables to analyse instead: nobody is asked for members and no model is loaded."""

    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Share of strangers that may reach a calibrated threshold, the same in all cells."""

    @property
    def asking(self) -> tuple[str, ...]:
        """The bases whose prompts members answer, each once."""
        return tuple(dict.fromkeys(self.bases if self.model in self.bases else (self.model, *self.bases)))

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.measured is not None and self.listing is not None:
            raise ValueError("measured and listing are two sources of one family; give one of them")
        return self


def needs(params: Params) -> list[Need]:
    """Return the tables, or the listing, the bases, and of a family of the zoo all its members."""
    if params.measured is not None:
        return [File(path=Path(file)) for file in params.measured.files]
    listing = [File(path=Path(params.listing))] if params.listing else []
    members = descendants(params.model) if is_zoo(params.model) and not params.listing else []
    return [*listing, *chain.from_iterable(map(needs_of, (*params.asking, *members)))]


def cores(params: Params) -> int | None:
    """Return one core for tables and for the zoo, whose models are too small for a second to help; others are timed."""
    return 1 if params.measured is not None or all(map(is_zoo, params.asking)) else None
