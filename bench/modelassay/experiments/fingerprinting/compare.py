"""A model's scores against other models' weights and behaviour; those of zoo models are kept, for the next run of the same code."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from modelassay import environment
from modelassay.experiments.fingerprinting.derivation import derivation
from modelassay.experiments.fingerprinting.evidence.derivations import swapped
from modelassay.experiments.fingerprinting.measure import family_of, open_model, peer_fingerprint, worth_comparing
from modelassay.experiments.fingerprinting.methods import BY_BEHAVIOUR, BY_WEIGHTS
from modelassay.experiments.fingerprinting.methods.behaviour import Speaker, listen_to, signals
from modelassay.experiments.fingerprinting.methods.peers import PEERS
from modelassay.experiments.fingerprinting.methods.weights import load_weights
from modelassay.experiments.fingerprinting.params import Params
from modelassay.meter import Meter
from modelassay.models import zoo
from modelassay.models.checkpoint import Checkpoint
from modelassay.models.zoo_members import untimed
from modelassay.state import State, content_key


class Reading(NamedTuple):
    """One metric, as `Meter.metric` takes it."""

    name: str
    value: float
    labels: dict[str, str]


@cache
def code_key() -> str:
    """Return the key of everything but the models that decides a score: the code as it is on disk, and its libraries."""
    versions = {name: environment.library_versions()[name] for name in environment.LIBRARIES_THAT_DECIDE}
    return content_key([environment.code_fingerprint("modelassay.experiments.fingerprinting"), versions])


def compare(params: Params, checkpoint: Checkpoint, done: int, meter: Meter, state: State) -> None:
    """Record ``score`` per method and other model of ``params.against``, from the one after the first ``done``.

    Where all are zoo models, what was recorded is kept in the store under the models' recipes and `code_key`, and a later run
    reads it in one unit ``recall``; scores of a comparison that went on after an interruption are not kept.
    """
    others = worth_comparing(params.model, checkpoint.hidden_size, params.against, store=state.store)
    if not others:
        return
    families = {cell.model: family_of(cell.model, cell.family) for cell in state.siblings}
    mine = families.get(params.model)
    relatives = [other for other in others if mine is not None and families.get(other) == mine]
    readings = _readings(params, checkpoint, others, relatives, done, meter, state)
    if done or not all(zoo.is_zoo(model) for model in (params.model, *others)):
        _record(readings, meter)
        return
    measured: list[Reading] = []

    def build(folder: Path) -> None:
        measured.extend(_record(readings, meter))
        (folder / "scores.json").write_text(json.dumps(measured))

    folder = state.store.get(_recipe(params, others, relatives), build)
    if not measured:
        with meter.microbatch("recall", others=len(others)):
            recalled = [Reading(*kept) for kept in json.loads((folder / "scores.json").read_text())]
        _record(recalled, meter)


def _record(readings: Iterable[Reading], meter: Meter) -> list[Reading]:
    """Record each reading as it comes, and return them."""
    recorded = []
    for reading in readings:
        meter.metric(reading.name, reading.value, **reading.labels)
        recorded.append(reading)
    return recorded


def _recipe(params: Params, others: Sequence[str], relatives: Sequence[str]) -> dict[str, Any]:
    return {
        "kind": "scores", "model": zoo.recipe(params.model), "name": params.model, "relatives": list(relatives),
        "others": [[other, content_key(zoo.recipe(other))] for other in others], "behaviour": params.behaviour,
        "peers": {name: PEERS[name].installed_version() for name in params.peers}, "code": code_key(),
    }  # fmt: skip


def _readings(params: Params, checkpoint: Checkpoint, others: list[str], relatives: Sequence[str], done: int,
              meter: Meter, state: State) -> Iterator[Reading]:  # fmt: skip
    """Yield what the methods and the peers make of the model and each of ``others``; take checkpoints on the way."""
    mine = load_weights(params.model, store=state.store)
    peers = [PEERS[name] for name in params.peers]
    prints = {peer.name: peer_fingerprint(peer, params.model, store=state.store) for peer in peers}
    speaker, bases = _listen(params, others, done, meter, state) if params.behaviour else (None, {})
    for number, other in enumerate(others[done:], start=done + 1):
        with meter.microbatch("compare", other=other):
            theirs = load_weights(other, store=state.store)
            scores = {name: method.score(mine, theirs) for name, method in BY_WEIGHTS.items()}
        for name, score in scores.items():
            yield _score(name, other, score.value, score.reason)
        if speaker is not None:
            yield from _ask(speaker, bases.pop(other), meter)
        if other in relatives:
            yield _derive(params.model, checkpoint, other, meter, state)
        for peer in peers:
            with meter.microbatch("peer", other=other, peer=peer.name):
                found = peer.score(prints[peer.name], peer_fingerprint(peer, other, store=state.store))
            for part, value in found.parts.items():
                yield Reading("peer-signal", value, {"peer": peer.name, "signal": part, "other": other})
            yield _score(peer.name, other, found.value, found.reason)
        if state.checkpoint_due():
            state.checkpoint({"layer": checkpoint.num_layers, "compared": number})


def _listen(
    params: Params, others: list[str], done: int, meter: Meter, state: State
) -> tuple[Speaker, dict[str, Speaker]]:
    """Answer the prompts of all others in one go, and return the model and those of them that are still to be compared."""
    speaker = Speaker(params.model, store=state.store)
    bases = {other: Speaker(other, store=state.store) for other in others}
    timer = (
        untimed if done else meter.microbatch
    )  # all are answered again after an interruption: sums hang on the batch
    with timer("listen", others=len(others)):
        listen_to(speaker, bases.values())
    return speaker, {other: bases[other] for other in others[done:]}


def _ask(speaker: Speaker, base: Speaker, meter: Meter) -> Iterator[Reading]:
    """Yield how alike a model and its suspected base answer the base's prompts."""
    with meter.microbatch("ask", other=base.reference):
        scores = {name: method.score(speaker, base) for name, method in BY_BEHAVIOUR.items()}
        told = signals(speaker, base)
    for name, score in scores.items():
        yield _score(name, base.reference, score.value, score.reason, grown_by=base.reference)
    for signal, value in told.items():
        yield Reading("bottom-k", value, {"signal": signal, "other": base.reference, "grown_by": base.reference})


def _derive(model: str, checkpoint: Checkpoint, other: str, meter: Meter, state: State) -> Reading:
    """Return what the weights of two relatives tell of how the one was made: 1 if the other is called the parent."""
    theirs = open_model(other, store=state.store)
    swap = swapped(model, other)
    with meter.microbatch("derive", other=other):
        found = derivation(theirs, checkpoint) if swap else derivation(checkpoint, theirs)
    parent = math.nan if found.parent is None else float((found.parent == "a") == swap)
    return Reading("derivation", parent, {"other": other, "kind": found.kind, "steps": "+".join(found.steps)})


def _score(method: str, other: str, value: float, reason: str | None, **labels: str) -> Reading:
    """Return a score, and where it is not defined why not."""
    return Reading(
        "score", value, {"method": method, "other": other, **labels, **({"reason": reason} if reason else {})}
    )
