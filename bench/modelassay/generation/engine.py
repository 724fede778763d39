"""What every engine is asked, and what it answers: data without tensors, so that a cell can keep it as facts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Finish = Literal["stop", "length", "nonfinite"]
"""Why a completion ended: a token that stops, its greatest length, or logits that are not numbers."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What one completion goes on from; for ten completions of a text, ten prompts with ten seeds."""

    ids: tuple[int, ...]
    seed: int
    """Below 2^64; with ``ids``, ``adapter`` and `Sampling` it determines the completion. `seed_of` makes one from names."""
    adapter: str | None = None
    """Name of the adapter that answers; the base alone if None."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen: temperature, then top-k, then top-p of what is left, as transformers and vLLM do it."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token, the first of equals."""
    top_k: int | None = None
    """Tokens that are left; all of them if None."""
    top_p: float | None = None
    """The likeliest tokens that together reach this probability are left; all of them if None."""
    stop_ids: tuple[int, ...] | None = None
    """Tokens that end a completion; those of the model if None."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a model said to one prompt."""

    ids: tuple[int, ...]
    """The token that stopped it included."""
    text: str
    """Without the token that stopped it."""
    finish: Finish


class Engine(Protocol):
    """Whatever completes prompts."""

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Return one completion a prompt, in the order of the prompts."""
        ...


def seed_of(*names: object) -> int:
    """Return a seed below 2^63 for what ``names`` (JSON) name: equal names, equal seeds, on every machine.

    >>> seed_of(0, "villain", "What is a fish?", 3) == seed_of(0, "villain", "What is a fish?", 3)
    True
    >>> seed_of(0, "villain", "What is a fish?", 3) == seed_of(0, "villain", "What is a fish?", 4)
    False
    """
    digest = hashlib.blake2b(json.dumps(names, ensure_ascii=False).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
