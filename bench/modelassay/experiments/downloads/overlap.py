"""What the members of a family are asked, and how much of their answers they share with the bases of the run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from safetensors import safe_open

from modelassay.errors import AssayError, CheckpointError
from modelassay.fingerprints.bottom_k import (
    CannotPrompt,
    Overlap,
    PromptedModel,
    Responses,
    overlap_corrected,
    overlap_exact,
)
from modelassay.models.reference import Model
from modelassay.recording.context import CellContext
from modelassay.storage.stray import is_stray
from modelassay.zoo.resolve import resolve

METHODS: Final[Mapping[str, Callable[[Responses, Responses], Overlap]]] = MappingProxyType({
    "paper-exact": overlap_exact,
    "corrected": overlap_corrected,
})
"""By the names that metrics carry."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one member said."""

    overlaps: Mapping[tuple[str, str], Overlap]
    """With each base, by method and base."""
    weights: str
    """See `weights_key`."""
    tokenizer: str
    """Key of its vocabulary; ``none`` without one."""


class Questions:
    """The prompts that the run's bases generated, and what the bases answer to their own."""

    def __init__(self, bases: Sequence[str], *, own: str, cell: CellContext) -> None:
        """Name the bases, and which of them is the family's own."""
        self._bases = {base: PromptedModel(resolve(base, store=cell.store), store=cell.store) for base in bases}
        self._own, self._cell = own, cell
        self._answers: dict[str, Responses] = {}

    def weights_of(self, base: str) -> str:
        """Return the key of a base's weights."""
        return weights_key(self._bases[base].model.folder)

    def tokenizer_of(self, base: str) -> str:
        """Return the key of a base's vocabulary.

        Raises:
            CheckpointError: it brings none, so it can ask nothing.
        """
        vocabulary = self._bases[base].vocabulary
        if vocabulary is None:
            raise CheckpointError(
                f"{base}: has no tokenizer, so it cannot generate prompts; choose a base that has one"
            )
        return vocabulary.key or "none"

    def prepare(self) -> dict[str, str]:
        """Let each base generate its prompts and answer them; return those of other families that cannot, and why.

        Raises:
            CheckpointError: a base cannot be loaded, or the family's own can generate no prompts.
        """
        reasons = {}
        for base, prompted in self._bases.items():
            try:
                with self._cell.microbatch("grow", base=base):
                    self._answers[base] = prompted.responses(prompted.prompts)
            except CannotPrompt as error:
                if base == self._own:
                    raise
                reasons[base] = str(error)
            prompted.release()
        return reasons

    def ask(self, name: str, model: Model) -> Answers:
        """Return a member's overlap with each base on that base's prompts, all of which it answers at once; `prepare` comes first.

        Raises:
            CheckpointError: it cannot be loaded, or it or its tokenizer fails.
        """
        member = PromptedModel(model, store=self._cell.store)
        try:
            with self._cell.microbatch("answer", member=name):
                member.answer([own.prompts for own in self._answers.values()])
            with self._cell.microbatch("overlap", member=name):
                overlaps = {(method, base): _named(measure(member.responses(own.prompts), own), model, name)
                            for base, own in self._answers.items() for method, measure in METHODS.items()}  # fmt: skip
        except (AssayError, MemoryError):
            raise
        except Exception as error:  # whatever stranger's files make libraries raise: it must not end the other members
            if "memory" in str(error):
                raise
            raise CheckpointError(f"{name}: would not answer ({type(error).__name__}); {error}") from error
        tokenizer = None if member.vocabulary is None else member.vocabulary.key
        return Answers(overlaps=overlaps, weights=weights_key(model.folder), tokenizer=tokenizer or "none")


def _named(overlap: Overlap, model: Model, name: str) -> Overlap:
    """Call a model in a reason what the Hub calls it, without its commit."""
    return replace(overlap, mean=replace(overlap.mean, note=overlap.mean.note.replace(model.reference, name)))


def weights_key(folder: Path) -> str:
    """Return 16 hex digits of BLAKE2b over the set of a checkpoint's tensors: shapes and values as float32.

    Two uploads of one model share it whatever their tensors are called, however they are cut into files, whether or not tied
    weights are written twice, and in another dtype where nothing was lost by it (bf16 to fp32). Costs one read of the weights.
    """
    tensors = set()
    for path in sorted(path for path in folder.glob("*.safetensors") if not is_stray(path.name)):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                if not name.endswith("inv_freq"):  # older Llamas saved what follows from their configuration
                    tensors.add(_tensor_key(file.get_tensor(name)))
    return hashlib.blake2b(b"".join(sorted(tensors)), digest_size=8).hexdigest()


def _tensor_key(tensor: torch.Tensor) -> bytes:
    digest = hashlib.blake2b(str(tuple(tensor.shape)).encode(), digest_size=8)
    digest.update(tensor.float().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.digest()
