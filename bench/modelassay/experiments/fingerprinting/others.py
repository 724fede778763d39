"""Which models a cell's model is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelassay.models.reference import Model
from modelassay.storage.store import Store
from modelassay.zoo.resolve import connection_of, resolve


def compared_with(model: Model, against: Sequence[str], families: Mapping[str, str], *, store: Store) -> list[Model]:
    """Return which of ``against`` a model is compared with.

    Not itself; of two models that both stand in the list the later is compared with the earlier; and of strangers of another
    width only the first of each, since strangers by shape tell little. Who narrowed a model is compared with its root all the same.
    """
    earlier = against[: against.index(model.reference)] if model.reference in against else against
    width, widths = model.sizes().hidden_size, set[int]()
    others = []
    for reference in earlier:
        other = resolve(reference, store=store, family=families.get(reference))
        other_width = other.sizes().hidden_size
        if other_width == width or other_width not in widths or is_connected(model, other):
            others.append(other)
        widths.add(other_width)
    return others


def is_connected(model: Model, other: Model) -> bool:
    """Return whether the weights of two models are known to have to do with each other: inherited, of one beginning or distilled."""
    connection = connection_of((model.reference, model.family), (other.reference, other.family))
    return connection not in (None, "independent")


def relatives_of(model: Model, others: Sequence[Model]) -> list[str]:
    """Return the references of those of ``others`` that are known to be of the model's family."""
    return [other.reference for other in others if other.family is not None and other.family == model.family]
