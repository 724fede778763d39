"""Other tools on the same models: optional, run by their own public interface, their refusals kept as reasons.

::

    peer = PEERS["modeldna"]
    prints = {name: peer.fingerprint(folder, name=name) for name, folder in folders.items()}  # once per model
    score = peer.score(prints["base"], prints["child"])  # once per pair; value, reason, parts, verdict

modelDNA (Apache-2.0, arXiv 2607.10617) is installed by ``ci/peers``, without its dependencies: of these only numpy is
imported on the way from a folder of safetensors to a verdict. It is handed local folders alone, never a name it could look
up, so it opens no connection; and neither its reference database nor its saved scans, which would lie in the user's home, are
on that way: it writes nothing.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, Literal, Protocol

import numpy as np

from modelassay.errors import CheckpointError, HostError
from modelassay.models.reference import Model
from modelassay.storage.store import Store

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
    fingerprint: Extract
    score: Callable[[PeerFingerprint, PeerFingerprint], PeerScore]
    parts: Mapping[str, str]
    """What each of a score's parts is."""

    def installed_version(self) -> str:
        """Return the version that runs, for the record.

        Raises:
            HostError: the peer is not installed.
        """
        try:
            return version(self.name)
        except PackageNotFoundError as error:
            raise _missing(self, "it is not installed") from error

    def caveat(self) -> str | None:
        """Return what to print beside scores of another version than the one the project was measured with."""
        installed = self.installed_version()
        if installed == self.version:
            return None
        return f"{self.name} {installed} was run; the project's figures are of {self.version}"


def peer_fingerprint(peer: Peer, model: Model, *, store: Store) -> PeerFingerprint:
    """Return what a peer reads of a model; of one that has an identity it is kept, since many cells compare with it.

    Raises:
        CheckpointError: the model's files cannot be had.
        HostError: the peer is not installed, or lacks a package.
    """
    if model.identity is None:
        return peer.fingerprint(model.folder, name=model.reference)

    def extract(folder: Path) -> None:
        content = pickle.dumps(peer.fingerprint(model.folder, name=model.reference))
        (folder / "print.pickle").write_bytes(content)

    recipe = {"kind": "peer", "peer": peer.name, "version": peer.installed_version(), "model": model.identity}
    path = store.get(recipe, extract) / "print.pickle"
    content: PeerFingerprint = pickle.loads(path.read_bytes())  # noqa: S301 - our own
    return content


def _missing(peer: Peer, why: str) -> HostError:
    return HostError(
        f"peer {peer.name}: {why} for {sys.executable}; to have it in the table: "
        f"pip install --no-deps {peer.name}=={peer.version} (as ci/peers does)"
    )


MODELDNA_PARTS = MappingProxyType({
    "F1": "Pearson r of sigma-curves over layers, mean over attention and MLP roles",
    "F2": "cosine, not centred, of norm gains and biases, mean over roles",
    "F3": "cosine of weights at the same sampled positions, mean over roles",
    "F4": "Pearson r of log singular values, mean over layers and attention roles",
})  # fmt: skip
_FEATURES = MappingProxyType({"F1": "sigma_r", "F2": "vector_cos", "F3": "pcs_cos", "F4": "spectra_r"})
_LONG = ("vector_samples", "pcs_samples")


@cache
def _modeldna() -> SimpleNamespace:
    """What is used of modelDNA.

    Raises:
        HostError: it is not installed, or is a version without these names.
    """
    places = {
        "io.source": ("LocalSource",), "fingerprint.extract": ("Fingerprint", "extract_fingerprint"),
        "compare": ("compare_fingerprints",), "verdict": ("judge",), 
    }  # fmt: skip
    peer = PEERS["modeldna"]
    installed = peer.installed_version()
    try:
        return SimpleNamespace(**{
            name: getattr(import_module(f"modeldna.{module}"), name) for module, names in places.items() for name in names
        })  # fmt: skip
    except (ImportError, AttributeError) as error:
        raise _missing(peer, f"version {installed} cannot be used ({error})") from error


def modeldna_fingerprint(
    folder: Path, *, name: str | None = None, mode: Literal["fast", "full"] = "full"
) -> PeerFingerprint:
    """Extract modelDNA's four signals from a folder of safetensors.

    ``full`` reads whole tensors and compares exact singular values of every layer; ``fast``, its default for models read over
    a network, sketches those of every fourth layer. The other three signals are the same where, as in the zoo, tensors have
    fewer than 524,288 elements. Costs, of a model of 6 x 48, 8 x 64 and 12 x 96, 16, 31 and 100 ms of one core (``fast`` 12, 21
    and 47), and 0.35, 0.8 and 1.5 MB to hold; all 219 of the embedded zoo 9 s.

    Raises:
        CheckpointError: there is no such folder.
        HostError: modelDNA is not installed, or lacks a package it needs for this kind of checkpoint.
    """
    api = _modeldna()
    name = name or folder.name
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; a peer reads local checkpoints only")
    try:
        # By its type, not through its own resolution of names, which takes a path that is not there for a model of the Hub.
        extracted = api.extract_fingerprint(api.LocalSource(folder), mode=mode, model_id=name).to_dict()
    except (MemoryError, ImportError) as error:
        raise _not_its_answer(name, error) from error
    except Exception as error:  # whatever else it raises is its answer for this model, and kept as such
        return PeerFingerprint(model=name, content=None, reason=_reason(name, error).replace(str(folder), name))
    return PeerFingerprint(model=name, content=_compact(extracted), num_bytes=int(extracted["bytes_read"]))


def _compact(extracted: Mapping[str, Any]) -> dict[str, Any]:
    """Hold the long lists as float32, to which modelDNA has rounded them: it widens them again before it computes."""
    long = {
        part: {role: np.array(values, dtype=np.float32) for role, values in extracted[part].items()} for part in _LONG
    }
    return {**extracted, **long}


def _reason(name: str, error: Exception) -> str:
    return f"{name}: {type(error).__name__}: {error}"


def _not_its_answer(name: str, error: Exception) -> HostError:
    what = "out of memory" if isinstance(error, MemoryError) else f"a package it needs is missing ({error})"
    return HostError(f"peer modeldna: {name}: {what}; see {sys.executable} -m pip show modeldna for what it requires")


def modeldna_score(a: PeerFingerprint, b: PeerFingerprint) -> PeerScore:
    """Return modelDNA's probability that ``a`` shares its lineage with ``b``, by the calibrator it ships.

    p = 1 / (1 + exp(6 - 5.5 F1 - 1.5 F2 - 4.5 F3 - F4)) in 0.1.0; it calls 0.9 and above a lineage, 0.5 to 0.9 unresolved.
    NaN with its reason where layer counts or shapes differ, or where it could not read a model. The same both ways round.
    Costs 1.4 to 2.8 ms of one core in the zoo, 0.01 ms where it refuses: all 23,871 pairs 18 s.

    Raises:
        HostError: modelDNA is not installed.
    """
    api = _modeldna()
    unread = [side.reason or f"{side.model}: nothing was extracted" for side in (a, b) if side.content is None]
    if unread:
        return PeerScore(value=NAN, reason="; ".join(unread), parts=dict.fromkeys(MODELDNA_PARTS, NAN))
    try:
        suspect, candidate = (api.Fingerprint.from_dict(side.content) for side in (a, b))
        evidence = api.compare_fingerprints(suspect, candidate)
        judged = api.judge(
            [(evidence, b.model)],
            suspect_dtype=suspect.arch.torch_dtype,
            candidate_dtypes={candidate.model_id: candidate.arch.torch_dtype},
        )
    except MemoryError as error:
        raise _not_its_answer(f"{a.model} and {b.model}", error) from error
    except Exception as error:  # as above
        reason = _reason(f"{a.model} and {b.model}", error)
        return PeerScore(value=NAN, reason=reason, parts=dict.fromkeys(MODELDNA_PARTS, NAN))
    return _as_score(evidence, judged)


def _as_score(evidence: Any, judged: Any) -> PeerScore:
    features = evidence.features()
    parts = {part: NAN if features[name] is None else float(features[name]) for part, name in _FEATURES.items()}
    (only,) = judged.candidates
    if only.probability is None:
        reason = "; ".join([str(only.ruled_out), *evidence.notes])
        return PeerScore(value=NAN, reason=reason, parts=parts, verdict=judged.verdict.value)
    return PeerScore(value=float(only.probability), parts=parts, verdict=judged.verdict.value)


PEERS: Mapping[str, Peer] = MappingProxyType({
    "modeldna": Peer(name="modeldna", version="0.1.0", fingerprint=modeldna_fingerprint, score=modeldna_score,
                     parts=MODELDNA_PARTS),
})  # fmt: skip
"""Every peer by name."""
