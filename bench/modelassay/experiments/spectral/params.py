"""What one cell of `spectral` is: an operator of one model on one text, and how closely its spectrum is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelassay.data.corpus import CORPUS
from modelassay.experiments.references import FileReference, ModelReference
from modelassay.storage.needs import File, Need
from modelassay.zoo.needs import needs_of

Kind = Literal["hessian", "gauss-newton", "empirical-fisher", "sampled-fisher"]


class Params(BaseModel):
    """One operator of one model on one text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: ModelReference | None = None
    """A local folder, ``hf:ORG/NAME@COMMIT``, or ``zoo:NAME``; None where whoever runs it must say."""

    data: FileReference | None = None
    """``corpus:en`` or ``corpus:ja`` (text that no zoo model was trained on), a ``.jsonl`` file with a ``text`` in each
    line, or any other file: plain text, documents separated by empty lines. None as above."""

    tokens: int = Field(default=8192, ge=2)
    """Tokens read, rows of ``length``; the estimates are of this text, whose sampling error they do not contain."""

    length: int = Field(default=64, ge=2)
    """Tokens of a row; the first of each carries no loss."""

    microbatch: int = Field(default=16, ge=1)
    """Rows that go through the model together."""

    operator: Kind = "hessian"
    """Of the mean loss per token. The Fisher matrices are per token; the sampled one draws one label each."""

    precision: Literal["bf16", "fp32", "fp64"] = "fp32"
    """Of weights and activations. In bf16 whatever has an interval is taken from additional products in fp32."""

    steps: int = Field(default=120, ge=11)
    """Lanczos steps of a run: one product and one vector of the model's size kept each. More than the 10 eigenvalues that the
    pre-registered definition of the bulk removes; the definition that removes 50 is left open with fewer than 51."""

    probes: int = Field(default=10, ge=2)
    """Products with random vectors for the moments of the bulk; their spread is its interval."""

    runs: int = Field(default=5, ge=1)
    """Lanczos runs from different vectors, averaged in the density, and five at least for the share of negative eigenvalues, which one
    start vector gets wrong by a factor; all else needs but the first."""

    seed: int = Field(default=0, ge=0)
    """Of the start vectors, the probes and the sampled labels."""

    parameters: tuple[str, ...] = ("*",)
    """Shell patterns of the parameters that the operator acts on, such as ``*.mlp.*``."""

    embeddings: bool = True
    """Whether token and position embeddings and the output head are among them."""

    graph_mib: int | None = Field(default=None, ge=0)
    """Memory for the graphs of microbatches between products of the Hessian; None: a quarter of what is free."""

    dense: bool = False
    """Form the whole matrix as well and compare: at most 6,000 parameters."""

    @property
    def products(self) -> int:
        """Products that the estimates cost; with ``dense`` as many more as there are parameters. bf16 adds some in fp32."""
        lanczos = self.runs * self.steps
        return lanczos + (2 * self.probes + 3 if self.precision == "bf16" else self.probes)

    @model_validator(mode="after")
    def _at_least_one_row(self) -> Self:
        if self.tokens < self.length:
            raise ValueError(f"tokens ({self.tokens}) must be at least one row of length ({self.length})")
        return self


def needs(params: Params) -> list[Need]:
    """Return the model, where it must be made or lies here, and the text, where it is a file."""
    model = needs_of(params.model) if params.model else []
    is_file = params.data is not None and not params.data.startswith(CORPUS)
    return [*model, *([File(path=Path(str(params.data)))] if is_file else [])]
