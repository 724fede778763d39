"""A reference, as a user writes it -> the model it names."""

from __future__ import annotations

from modelassay import zoo
from modelassay.models.checkpoints import config_path
from modelassay.models.checkpoints.opened import open_form
from modelassay.models.hub import HubFiles, LocalFiles
from modelassay.models.reference import Model
from modelassay.storage.store import Store
from modelassay.zoo.ancestry import Connection


def resolve(reference: str, *, store: Store, family: str | None = None) -> Model:
    """Return the model that a folder, ``hf:ORG/NAME[@COMMIT]`` or ``zoo:NAME`` names.

    Costs config.json of a repository that the cache lacks. A member of the zoo is made when its files are first asked for.

    Args:
        reference: what the user wrote.
        store: where members of the zoo lie.
        family: the root it is declared to descend from; members of the zoo know their own.

    Raises:
        CheckpointError: it names no model.
        HostError: the Hub cannot be reached, or its cache cannot be written.
    """
    if zoo.is_zoo(reference):
        return Model(
            reference=reference,
            open_files=lambda: LocalFiles(str(zoo.ensure(reference, store=store))),
            identity=zoo.recipe(reference),
            family=family_of(reference, family),
        )
    files = open_form(reference)
    config_path(files)
    identity = None
    if isinstance(files, HubFiles):
        named = {} if files.chosen is None else {"file": files.chosen}
        identity = {"hub": files.repository, "commit": files.revision, **named}
    return Model(reference=reference, open_files=lambda: files, identity=identity, family=family)


def family_of(reference: str, declared: str | None) -> str | None:
    """Return the root a model is known to descend from: the declared one, or what the zoo knows of its own."""
    return zoo.family(reference) if declared is None and zoo.is_zoo(reference) else declared


def connection_of(one: tuple[str, str | None], other: tuple[str, str | None]) -> Connection | None:
    """Return what the weights of two models are known to have to do with each other; None where a family is not known.

    Models are given by reference and family. Of the zoo's own `zoo.connection` tells; others have inherited if they are of one
    family.
    """
    if one[1] is None or other[1] is None:
        return None
    if all(zoo.is_zoo(reference) and family == zoo.family(reference) for reference, family in (one, other)):
        return zoo.connection(one[0], other[0])
    return "inherited" if one[1] == other[1] else "independent"


def has_kin(reference: str, family: str | None) -> bool:
    """Return whether a model of the zoo, under its own family, is neither relative nor stranger of some other (`zoo.has_kin`)."""
    return zoo.is_zoo(reference) and family == zoo.family(reference) and zoo.has_kin(reference)


def stands_for_family(reference: str, family: str | None) -> bool:
    """Return whether a model may speak for its family among strangers: neither `has_kin` nor a mixture of two families."""
    is_own = zoo.is_zoo(reference) and family == zoo.family(reference)
    return not is_own or (not zoo.has_kin(reference) and len(zoo.roots(reference)) == 1)


def utility_of(reference: str, *, store: Store) -> dict[str, float]:
    """Return a zoo model's held-out loss by language and what it changed of its parent's; nothing for other models."""
    return zoo.utility(reference, store=store) if zoo.is_zoo(reference) else {}
