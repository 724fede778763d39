"""What a peer is: another tool on the same models, run by its own interface, its refusals kept as reasons."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from modelassay.errors import HostError

NAN = float("nan")


@dataclass(frozen=True, kw_only=True, eq=False)
class PeerFingerprint:
    """What a peer extracted from one model: plain values and arrays, so that pickle keeps it."""

    model: str
    """The name that reasons give."""
    content: Mapping[str, Any] | None
    """As the peer itself serialises it; None where it could not read the model."""
    reason: str | None = None
    """The peer's own error, where ``content`` is None."""
    num_bytes: int | None = None
    """Bytes the peer read by its own count."""


@dataclass(frozen=True, kw_only=True)
class PeerScore:
    """What a peer says of one pair."""

    value: float
    """Its final score; NaN, with the reason, where it gives none."""
    parts: Mapping[str, float]
    """Its signals one by one; NaN where it did not compare one. Some can be defined where ``value`` is not."""
    reason: str | None = None
    """Why ``value`` is NaN, in the peer's words."""
    verdict: str | None = None
    """The word it would print."""


class Extract(Protocol):
    """Read one model; ``name`` is what reasons call it, the folder's name if None."""

    def __call__(self, folder: Path, *, name: str | None = None) -> PeerFingerprint:
        """Return what the peer extracts, or its error as the reason."""
        ...


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One tool: how to read a model with it, how to compare two, and which version the project's figures are of."""

    name: str
    """As in the package registry."""
    version: str
    """What ``ci/peers`` installs."""
    needs: tuple[str, ...] = ()
    """What it imports beyond our own libraries, as ``ci/peers`` installs it: name==version."""
    fingerprint: Extract
    score: Callable[[PeerFingerprint, PeerFingerprint], PeerScore]
    parts: Mapping[str, str]
    """What each of a score's parts is."""
    threshold: float
    """The score above which, or from which on, the tool itself says that two models are related."""
    reached: bool
    """Whether a score that equals ``threshold`` is enough."""

    def calls(self, score: float) -> bool:
        """Return whether the tool would call a pair of that score related; not where it gives none."""
        return score >= self.threshold if self.reached else score > self.threshold

    @property
    def requirements(self) -> tuple[str, ...]:
        """What ``ci/peers`` installs, without dependencies."""
        return (f"{self.name}=={self.version}", *self.needs)

    def installed_version(self) -> str:
        """Return the version that runs, for the record.

        Raises:
            HostError: the peer is not installed.
        """
        try:
            return version(self.name)
        except PackageNotFoundError as error:
            raise missing(self, "it is not installed") from error

    def caveat(self) -> str | None:
        """Return what to print beside scores of another version than the one the project was measured with."""
        installed = self.installed_version()
        if installed == self.version:
            return None
        return f"{self.name} {installed} was run; the project's figures are of {self.version}"


def missing(peer: Peer, why: str) -> HostError:
    """Return the error of a peer that cannot be used, with how to install it."""
    return HostError(
        f"peer {peer.name}: {why} for {sys.executable}; to have it in the table: "
        f"pip install --no-deps {' '.join(peer.requirements)} (as ci/peers does)"
    )


def reason_of(name: str, error: Exception) -> str:
    """Return an exception of a peer as its answer."""
    return f"{name}: {type(error).__name__}: {error}"


def not_its_answer(peer: str, name: str, error: Exception) -> HostError:
    """Return the error for what is no answer of a peer: want of memory, or a package that it lacks."""
    what = "out of memory" if isinstance(error, MemoryError) else f"a package it needs is missing ({error})"
    return HostError(f"peer {peer}: {name}: {what}; see {sys.executable} -m pip show {peer} for what it requires")
