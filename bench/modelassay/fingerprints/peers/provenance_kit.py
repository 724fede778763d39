"""Cisco's Model Provenance Kit (Apache-2.0): configuration first, then five statistics of weights.

Its ``compare`` scores a pair 1.0 where the architecture fields of both config.json are equal, 0.9 where family and sizes are, and looks at
the weights of the others alone (its docs/scoring-and-model-loading.md, "MFI gate"). The score here is that one, put together
from its public functions so that each model is read once; the same to the last digit as its ``compare`` (tested). The
ungated score is the part ``identity``.

It is handed local folders alone and no cache: it opens no connection and writes nothing. Its wheel asks for Python 3.12 and runs
under 3.11 too.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

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

PARTS = MappingProxyType({
    "identity": "its weighted mean of the five signals of weights, which counts only beyond the gate",
    "MFI": "configuration: 1 equal architecture fields, 0.9 equal family and sizes, else a weighted match",
    "EAS": "self-similarity of the embeddings of anchor tokens",
    "NLF": "norms of layers",
    "LEP": "energy of each layer",
    "END": "histogram of embedding norms",
    "WVC": "statistics of sampled weights, layer by layer",
    "TFV": "features of the tokenizer; reported, not scored",
})  # fmt: skip
SIGNALS = ("eas", "nlf", "lep", "end", "wvc")
_GATE = 2
"""The last tier of its configuration match that decides without the weights."""
_PLACES = {
    "core.signals.metadata": ("extract_fingerprint", "similarity"),
    "core.signals.tokenizer": ("extract_tokenizer_features", "tfv_similarity"),
    "core.signals.weight_signals": ("extract_signals", *(f"{name}_similarity" for name in SIGNALS)),
    "core.scoring": ("compute_identity_score", "interpret_score"),
    "models.signals": ("MFIFingerprint", "TokenizerFeatures", "WeightSignalFeatures"),
    "services.model_loader": ("load_state_dict",),
    "utils.logging": ("configure_logging",),
}


@cache
def _kit() -> SimpleNamespace:
    """What is used of the kit.

    Raises:
        HostError: it is not installed, or is a version without these names.
    """
    installed = PROVENANCE_KIT.installed_version()
    try:
        api = SimpleNamespace(**{
            name: getattr(import_module(f"provenancekit.{module}"), name) for module, names in _PLACES.items() for name in names
        })  # fmt: skip
    except (ImportError, AttributeError) as error:
        raise missing(PROVENANCE_KIT, f"version {installed} cannot be used ({error})") from error
    api.configure_logging(verbose=False)  # else it prints a line for each step to stdout
    return api


def provenance_kit_fingerprint(folder: Path, *, name: str | None = None) -> PeerFingerprint:
    """Extract the kit's features of configuration, tokenizer and weights from a folder. Costs 0.3 to 0.8 s of one core in the zoo.

    Raises:
        CheckpointError: there is no such folder.
        HostError: the kit is not installed, or lacks a package it needs for this kind of checkpoint.
    """
    name = name or folder.name
    api = _kit()
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json there; a peer reads local checkpoints only")
    try:
        with _offline():
            configuration, tokenizer = api.extract_fingerprint(str(folder))
            features = api.extract_tokenizer_features(str(folder), tokenizer=tokenizer)
            loaded = api.load_state_dict(str(folder))
        signals = api.extract_signals(
            loaded.state_dict, loaded.config, tokenizer=tokenizer, vocab=list(tokenizer.get_vocab())
        )
    except (MemoryError, ImportError) as error:
        raise not_its_answer(PROVENANCE_KIT.name, name, error) from error
    except Exception as error:  # whatever else it raises is its answer for this model, and kept as such
        return PeerFingerprint(model=name, content=None, reason=reason_of(name, error).replace(str(folder), name))
    content = {"mfi": configuration.model_dump(), "tfv": features.model_dump(),
               "ws": None if signals is None else signals.to_cache_dict()}  # fmt: skip
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return PeerFingerprint(model=name, content=content, num_bytes=size)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep transformers from looking a local folder up on the Hub."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before


def provenance_kit_score(a: PeerFingerprint, b: PeerFingerprint) -> PeerScore:
    """Return the kit's pipeline score of two models, above 0.75 a "High-Confidence Match", above 0.65 a "Weak Match".

    NaN with its reason where it could not read a model. Costs 5 ms of one core.

    Raises:
        HostError: the kit is not installed.
    """
    api = _kit()
    if a.content is None or b.content is None:
        unread = [side.reason or f"{side.model}: nothing was extracted" for side in (a, b) if side.content is None]
        return PeerScore(value=NAN, reason="; ".join(unread), parts=dict.fromkeys(PARTS, NAN))
    contents = a.content, b.content
    try:
        match = api.similarity(*(api.MFIFingerprint.model_validate(content["mfi"]) for content in contents))
        tokens = api.tfv_similarity(*(api.TokenizerFeatures.model_validate(content["tfv"]) for content in contents))
        features = [
            None if content["ws"] is None else api.WeightSignalFeatures.from_cache_dict(content["ws"])
            for content in contents
        ]
        signals = [float(getattr(api, f"{name}_similarity")(*features)) for name in SIGNALS]
        identity = float(api.compute_identity_score(*signals))
    except MemoryError as error:
        raise not_its_answer(PROVENANCE_KIT.name, f"{a.model} and {b.model}", error) from error
    except Exception as error:  # as above
        return PeerScore(
            value=NAN, reason=reason_of(f"{a.model} and {b.model}", error), parts=dict.fromkeys(PARTS, NAN)
        )
    parts = dict(zip(PARTS, (identity, float(match.score), *signals, float(tokens)), strict=True))
    if match.tier <= _GATE:
        return PeerScore(value=float(match.score), parts=parts, verdict="Confirmed Match")
    value = float(match.score) if math.isnan(identity) else identity
    only = " (metadata only)" if math.isnan(identity) else ""
    return PeerScore(value=value, parts=parts, verdict=api.interpret_score(value).label + only)


PROVENANCE_KIT = Peer(
    name="cisco-ai-provenance-kit", version="1.0.0", needs=("structlog==26.1.0", "pydantic-settings==2.16.3", "python-dotenv==1.2.4"),
    fingerprint=provenance_kit_fingerprint, score=provenance_kit_score, parts=PARTS, threshold=0.65, reached=False,
)  # fmt: skip
