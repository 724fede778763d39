"""What fitting factors and scoring will take of memory and disk, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelassay.curvature.ekfac.capture import CHUNK_BYTES
from modelassay.curvature.ekfac.modules import LinearModule


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes, beside the model and its activations."""

    factors_disk: int
    """What fitting leaves: two covariances, two bases, their eigenvalues and lambda of each layer."""
    parts_disk: int
    """What it needs besides while it runs: sums of each data part."""
    covariance_memory: int
    """Sums of one group of layers."""
    lambda_memory: int
    """Bases and sums of one group, and a chunk of row gradients."""
    eigh_memory: int
    """The largest decomposition, in fp64."""
    query_memory: int
    """All query gradients, compressed where that is less."""
    train_cache_disk: int
    """Inputs and output gradients of all positions, where train gradients are kept (`factors.Fit.cache`, `influence.train.keep`): at most, since
    layers in turn that are given the same inputs store them once, and padding within a microbatch apart."""

    def lines(self) -> list[str]:
        """Return the plan in words.

        >>> LinearModule(name="a", num_outputs=2, num_inputs=3, has_bias=False).shape
        (2, 3)
        """
        return [f"{name.replace('_', ' ')}: {value / 2**20:,.1f} MiB" for name, value in vars(self).items()]


def plan_of(modules: Sequence[LinearModule], *, num_groups: int = 1, num_parts: int = 1, num_queries: int = 0, rank: int | None = None,
            num_positions: int = 0, diagonal: bool = False, itemsize: int = 4) -> Plan:  # fmt: skip
    """Return what the factors of ``modules`` and the scores of ``num_queries`` take; ``num_positions`` of the train rows with a cache.

    >>> plan_of([LinearModule(name="a", num_outputs=2, num_inputs=3, has_bias=False)]).factors_disk
    148
    """
    shapes = [module.shape for module in modules]
    squares = [o * o + j * j for o, j in shapes]
    sizes = [o * j for o, j in shapes]
    group = -(-len(shapes) // num_groups)
    groups = [range(start, min(start + group, len(shapes))) for start in range(0, len(shapes), group)]
    kept = sum(
        2 * square + sum(shape) + size * (1 + diagonal)
        for square, shape, size in zip(squares, shapes, sizes, strict=True)
    )
    queries = sum(min(o * j, (o + j) * rank) if rank else o * j for o, j in shapes) * num_queries
    return Plan(
        factors_disk=kept * itemsize,
        parts_disk=num_parts * itemsize * (sum(squares) + sum(sizes) * (1 + diagonal)),
        covariance_memory=itemsize * max(sum(squares[i] + sizes[i] * diagonal for i in group_) for group_ in groups),
        lambda_memory=itemsize * max(sum(squares[i] + sizes[i] for i in group_) for group_ in groups) + CHUNK_BYTES,
        eigh_memory=3 * 8 * max(max(shape) ** 2 for shape in shapes),
        query_memory=itemsize * queries,
        train_cache_disk=itemsize * num_positions * sum(sum(shape) for shape in shapes),
    )
