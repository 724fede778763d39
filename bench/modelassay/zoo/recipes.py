"""What determines a member, its text and its held-out losses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from modelassay.data import corpus
from modelassay.storage.store import content_key
from modelassay.zoo.ancestry import member
from modelassay.zoo.catalogue import NUM_THREADS, Text

RECIPE_VERSION = 1
"""Raised when the code that makes a model changes what it makes; all else that matters is in the recipe itself."""


def recipe(name: str) -> dict[str, Any]:
    """Return everything that determines the weights of a member, its ancestors' recipes included by key.

    On another processor the last bits may still differ: its vector width decides the order of sums.
    """
    model = member(name)
    others = {} if model.other_parent is None else {"other_parent": content_key(recipe(model.other_parent))}
    if model.taught_by is not None:
        others["taught_by"] = content_key(recipe(model.taught_by))
    adapters = {"peft": _version("peft")} if model.made_by == "lora" else {}
    return {
        "kind": "zoo",
        "text": content_key(text_recipe(model.text)),
        "parent": None if model.parent is None else content_key(recipe(model.parent)),
        "made_by": model.made_by,
        "seed": model.seed,
        "settings": dict(model.settings),
        "num_threads": NUM_THREADS,
        **others,
        **adapters,
        **_versions(),
    }


def loss_recipe(name: str) -> dict[str, Any]:
    """Return everything that determines a member's held-out losses."""
    return {"kind": "zoo-loss", "model": content_key(recipe(name)), "corpus": _corpus_key(), "version": RECIPE_VERSION}


def text_recipe(text: Text) -> dict[str, Any]:
    """Return everything that determines a text."""
    return {"kind": "zoo-text", **_fields(text), "corpus": _corpus_key(), **_versions()}


def _fields(text: Text) -> dict[str, Any]:
    """The fields that are set: what is None today was no field when the first texts were made, and their keys stand."""
    fields = {key: value for key, value in vars(text).items() if value is not None}
    return fields if text.tokenizer_of is None else {**fields, "tokenizer_of": _fields(text.tokenizer_of)}


@cache
def _corpus_key() -> str:
    """The corpus by what it says: any change to grammar or generator shows in its first sentences."""
    return content_key([list(corpus.generate(language, seed=0, num_sentences=300)) for language in corpus.LANGUAGES])


_version = cache(version)  # which parses a package's metadata, once per recipe of a chain otherwise


@cache
def _versions() -> Mapping[str, Any]:
    return {
        "version": RECIPE_VERSION,
        **{package: _version(package) for package in ("torch", "transformers", "tokenizers")},
    }
