"""What reads the data that others published of it, by the name that a suite writes under ``reader``."""

from __future__ import annotations

from collections.abc import Mapping

from modelassay.data.published import Reader
from modelassay.data.similarities import SimilarityTable

READERS: Mapping[str, type[Reader]] = {"similarities": SimilarityTable}
"""Tables of similarities of pairs, or of a base with the members of its family."""
