"""modelDNA (Apache-2.0, arXiv 2607.10617): sigma-curves, norms, sampled weights and spectra, put together by a logistic.

Installed without its dependencies: of these only numpy is imported on the way from a folder of safetensors to a verdict. It is
handed local folders alone, never a name it could look up, so it opens no connection; and neither its reference database nor its saved
scans, which would lie in the user's home, are on that way: it writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, Literal

import numpy as np

from modelassay.errors import CheckpointError
from modelassay.fingerprints.peers.peer import (
    NAN,
    Peer,
    PeerFingerprint,
    PeerScore,
    missing,
    not_its_answer,
    reason_of,
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
    installed = MODELDNA.installed_version()
    try:
        return SimpleNamespace(**{
            name: getattr(import_module(f"modeldna.{module}"), name) for module, names in places.items() for name in names
        })  # fmt: skip
    except (ImportError, AttributeError) as error:
        raise missing(MODELDNA, f"version {installed} cannot be used ({error})") from error


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
        raise not_its_answer("modeldna", name, error) from error
    except Exception as error:  # whatever else it raises is its answer for this model, and kept as such
        return PeerFingerprint(model=name, content=None, reason=reason_of(name, error).replace(str(folder), name))
    return PeerFingerprint(model=name, content=_compact(extracted), num_bytes=int(extracted["bytes_read"]))


def _compact(extracted: Mapping[str, Any]) -> dict[str, Any]:
    """Hold the long lists as float32, to which modelDNA has rounded them: it widens them again before it computes."""
    long = {
        part: {role: np.array(values, dtype=np.float32) for role, values in extracted[part].items()} for part in _LONG
    }
    return {**extracted, **long}


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
        raise not_its_answer("modeldna", f"{a.model} and {b.model}", error) from error
    except Exception as error:  # as above
        reason = reason_of(f"{a.model} and {b.model}", error)
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


MODELDNA = Peer(name="modeldna", version="0.1.0", fingerprint=modeldna_fingerprint, score=modeldna_score, parts=MODELDNA_PARTS,
                threshold=0.9, reached=True)  # fmt: skip
