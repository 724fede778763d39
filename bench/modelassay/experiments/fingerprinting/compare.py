"""A model's scores against other models' weights and behaviour; kept for the next run of the same code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from modelassay.experiments.fingerprinting.others import compared_with, relatives_of
from modelassay.experiments.fingerprinting.params import Params
from modelassay.fingerprints.bottom_k import PromptedModel, compute_responses, signals
from modelassay.fingerprints.lineage import lineage, swapped
from modelassay.fingerprints.methods import BY_BEHAVIOUR, BY_WEIGHTS
from modelassay.fingerprints.peers import PEERS, peer_fingerprint
from modelassay.fingerprints.weights import load_weights
from modelassay.models.reference import Model
from modelassay.recording.context import CellContext, Recorder
from modelassay.storage.store import Store
from modelassay.zoo.resolve import connection_of


def compare(params: Params, model: Model, cell: CellContext) -> None:
    """Record ``score`` per method and other model of ``params.against``.

    One stage: what it records is kept and recalled by a later run of the same code where all models have an identity; otherwise
    it lies in the cell's own folder. Goes on after the last checkpointed comparison.
    """
    others = compared_with(model, params.against, params.families, store=cell.store)
    if not others:
        return
    _connect(model, others, cell)
    relatives = relatives_of(model, others)
    recipe = {
        "model": [model.reference, model.identity], "others": [[other.reference, other.identity] for other in others],
        "relatives": relatives, "behaviour": params.behaviour,
        "peers": {name: PEERS[name].installed_version() for name in params.peers},
    }  # fmt: skip
    build = partial(_compare, params, model, others, relatives, cell.store)
    is_determined = all(each.identity is not None for each in (model, *others))
    cell.stage("scores", recipe=recipe, build=build, shared=is_determined)


def _connect(model: Model, others: Sequence[Model], cell: CellContext) -> None:
    """Record what the weights of the model and of each other are known to have to do with each other."""
    known = {}
    for other in others:
        connection = connection_of((model.reference, model.family), (other.reference, other.family))
        if connection is not None:
            known[other.reference] = connection
    cell.fact("connections", known)


def _compare(
    params: Params, model: Model, others: Sequence[Model], relatives: Sequence[str], store: Store, stage: Recorder
) -> None:
    """Record what the methods and the peers make of the model and each of ``others``."""
    saved = stage.restore()
    done = 0 if saved is None else int(saved.payload["compared"])
    weights = load_weights(model, store=store)
    peers = [PEERS[name] for name in params.peers]
    prints = {peer.name: peer_fingerprint(peer, model, store=store) for peer in peers}
    suspect, bases = _respond(model, others, done, store, stage) if params.behaviour else (None, {})
    for number, other in enumerate(others[done:], start=done + 1):
        with stage.microbatch("compare", other=other.reference):
            other_weights = load_weights(other, store=store)
            scores = {name: method.score(weights, other_weights) for name, method in BY_WEIGHTS.items()}
        for name, score in scores.items():
            _score(stage, name, other.reference, score.value, score.reason)
        if suspect is not None:
            _ask(suspect, bases.pop(other.reference), stage)
        if other.reference in relatives:
            _derive(model, other, stage)
        for peer in peers:
            with stage.microbatch("peer", other=other.reference, peer=peer.name):
                score_of_peer = peer.score(prints[peer.name], peer_fingerprint(peer, other, store=store))
            for part, value in score_of_peer.parts.items():
                stage.metric("peer-signal", value, peer=peer.name, signal=part, other=other.reference)
            _score(stage, peer.name, other.reference, score_of_peer.value, score_of_peer.reason)
        stage.progress(number, len(others), "comparisons")
        if stage.checkpoint_due():
            stage.checkpoint({"compared": number})


def _respond(
    model: Model, others: Sequence[Model], done: int, store: Store, stage: Recorder
) -> tuple[PromptedModel, dict[str, PromptedModel]]:
    """Answer the prompts of all others in one go, and return the model and those of them that are still to be compared."""
    suspect = PromptedModel(model, store=store)
    bases = {other.reference: PromptedModel(other, store=store) for other in others}
    # All are answered again after an interruption: sums depend on the batch.
    with nullcontext() if done else stage.microbatch("listen", others=len(others)):
        compute_responses(suspect, bases.values())
    return suspect, {other.reference: bases[other.reference] for other in others[done:]}


def _ask(suspect: PromptedModel, base: PromptedModel, stage: Recorder) -> None:
    """Record how alike a model and its suspected base answer the base's prompts."""
    with stage.microbatch("ask", other=base.reference):
        scores = {name: method.score(suspect, base) for name, method in BY_BEHAVIOUR.items()}
        values = signals(suspect, base)
    for name, score in scores.items():
        _score(stage, name, base.reference, score.value, score.reason, grown_by=base.reference)
    for signal, value in values.items():
        stage.metric("bottom-k", value, signal=signal, other=base.reference, grown_by=base.reference)


def _derive(model: Model, other: Model, stage: Recorder) -> None:
    """Record what the weights of two relatives tell of how the one was made: 1 if the other is called the parent."""
    swap = swapped(model.reference, other.reference)
    pair = (other.checkpoint(), model.checkpoint()) if swap else (model.checkpoint(), other.checkpoint())
    with stage.microbatch("derive", other=other.reference):
        answer = lineage(*pair)
    parent = math.nan if answer.parent is None else float((answer.parent == "a") == swap)
    stage.metric("derivation", parent, other=other.reference, kind=answer.kind, steps="+".join(answer.steps))


def _score(stage: Recorder, method: str, other: str, value: float, reason: str | None, **labels: str) -> None:
    """Record a score, and where it is not defined why not."""
    stage.metric("score", value, method=method, other=other, **labels, **({"reason": reason} if reason else {}))
