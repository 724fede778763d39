"""Is one model another one quantised? Quantise it again and compare the bits.

A stranger's bits are never met: what matches is the other model's weights, rounded. Formats whose definition gives the bits are
made again (`blocks`, `scaled`, plain casts); others are named and left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from modelassay.fingerprints.rederived.compare import ABSENT, OTHER_SHAPE
from modelassay.fingerprints.rederived.converted import gguf_file, remake_gguf
from modelassay.fingerprints.rederived.result import Remade
from modelassay.fingerprints.rederived.stored import may_be_quantised, remake_tensors
from modelassay.models.checkpoints.tensors import TensorTable
from modelassay.models.reference import Model

__all__ = ["Rederivation", "Remade", "rederived"]


MIN_SHARE = 0.5
"""Of the weights that must have been compared before a model is called re-derived: embeddings alone, where a quantiser that is not
known here packed the rest, are no such evidence."""


@dataclass(frozen=True, kw_only=True)
class Rederivation:
    """What quantising A again says of B."""

    tensors: tuple[Remade, ...]
    """Those that could be made again, varied enough to say something; by B's names, in order."""
    not_redone: tuple[str, ...]
    """What could not, one sentence for each reason."""

    share: float
    """Of the source's weights that could be made again; alike or small tensors count on neither side."""

    @property
    def matched(self) -> tuple[Remade, ...]:
        """Tensors of which every bit is the same."""
        return tuple(tensor for tensor in self.tensors if tensor.is_equal)

    @property
    def partly(self) -> tuple[Remade, ...]:
        """Tensors of which some blocks are other bits."""
        return tuple(tensor for tensor in self.tensors if not tensor.is_equal)

    @property
    def is_rederived(self) -> bool:
        """Whether all that could be made again is B's bits, some of it in fewer bits than A has, and most of the weights could be.

        It does not tell which was first: a model that was widened gives its origin's bits when it is quantised again.
        """
        is_quantised = any(tensor.is_narrower for tensor in self.tensors)
        return is_quantised and self.share > MIN_SHARE and all(tensor.is_equal for tensor in self.tensors)

    @property
    def formats(self) -> dict[str, int]:
        """How many tensors were made again in each format, the commonest first."""
        return dict(Counter(tensor.format for tensor in self.tensors).most_common())


def rederived(a: Model, b: Model) -> Rederivation | None:
    """Quantise ``a`` as ``b`` is stored and compare bits; None where ``b`` is not stored in fewer bits, or in another 16-bit dtype.

    Formats that cannot be made again are named in the result.

    ``b`` may be a folder with safetensors (dtypes that were cast, int8, fp8, NF4) or one with a single .gguf file. Exchange the
    arguments to ask the other way round. Of a repository all files with weights are fetched. Costs a read of both models and a few
    roundings of each tensor, one tensor in memory at a time.

    Raises:
        CheckpointError: a file cannot be read, or is damaged.
        HostError: the Hub cannot be reached, or its cache cannot be written.
    """
    source = TensorTable(a.files)
    path = gguf_file(b.files)
    if path is not None:
        tensors, reasons = remake_gguf(source, a.sizes(), path)
    elif may_be_quantised(source, copy := TensorTable(b.files, as_stored=True)):
        tensors, reasons = remake_tensors(source, copy, b.files)
    else:
        return None
    is_packed = any(reason not in {ABSENT, OTHER_SHAPE} for reason, _ in reasons)
    if not is_packed and not any(tensor.is_narrower for tensor in tensors):
        return None
    num_left = sum(num_weights for _, num_weights in reasons)
    num_compared = sum(tensor.num_weights for tensor in tensors)
    counts = Counter(reason for reason, _ in reasons)
    return Rederivation(
        tensors=tuple(tensors),
        not_redone=tuple(f"{reason}: {count} tensors" for reason, count in counts.items()),
        share=num_compared / (num_compared + num_left),
    )
