"""What a rogue cell takes."""

from pydantic import BaseModel, ConfigDict


class Params(BaseModel):
    """One misdeed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    deed: str
    """The name of a function in `rogue.run`."""
