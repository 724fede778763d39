"""One cell: what the methods read of one checkpoint, layer by layer, then its scores against other models' weights."""

from __future__ import annotations

import math

import torch

from modelassay.errors import Diverged
from modelassay.experiments.fingerprinting.derivation import derivation
from modelassay.experiments.fingerprinting.downloads.family import run_family
from modelassay.experiments.fingerprinting.evidence.derivations import swapped
from modelassay.experiments.fingerprinting.measure import (
    attention_key,
    family_of,
    fault_of,
    make_together,
    measure_layer,
    num_bytes,
    open_model,
    peer_fingerprint,
    spans_of,
    utility_of,
    worth_comparing,
)
from modelassay.experiments.fingerprinting.methods import BY_BEHAVIOUR, BY_WEIGHTS
from modelassay.experiments.fingerprinting.methods.behaviour import Speaker, listen_to, signals
from modelassay.experiments.fingerprinting.methods.peers import PEERS
from modelassay.experiments.fingerprinting.methods.weights import load_weights
from modelassay.experiments.fingerprinting.params import Params
from modelassay.meter import Meter
from modelassay.models import (
    zoo,
    zoo_build,  # noqa: F401 - its transformers (4 s) is imported once, before cells are forked
)
from modelassay.models.checkpoint import Checkpoint
from modelassay.models.layer_tensors import layer_spans
from modelassay.models.zoo_members import untimed
from modelassay.state import State

zoo.recipe("base")  # finds what all recipes have in common, 0.2 s, once before cells are forked

WIDE = 1024
"""Hidden size from which matrices are large enough that several threads share the work of one faster than one alone."""


def run(params: Params, meter: Meter, state: State) -> None:
    """Record ``model`` once, ``sigma`` and ``product`` per role and layer, ``score`` per method and other model.

    Goes on after the last checkpointed layer or comparison. A model whose family is asked for takes another path (`family`).

    Raises:
        Diverged: an attention matrix is not finite or is constant: a finding about the checkpoint.
        HostError: a peer is not installed; told before anything is made or measured.
    """
    if params.members is not None:
        run_family(params, params.members, meter, state)
        return
    for peer in params.peers:
        PEERS[peer].installed_version()
    named = [name for cell in state.siblings for name in (cell.model, *cell.against)]
    make_together(named, params.model, store=state.store, meter=meter)
    checkpoint = open_model(params.model, store=state.store)
    if checkpoint.hidden_size < WIDE:
        torch.set_num_threads(1)
    saved = state.restore()
    payload = {"layer": 0, "compared": 0} if saved is None else saved.payload
    if saved is None:
        _describe(checkpoint, meter)
        for name, loss in utility_of(params.model, store=state.store).items():
            meter.metric("utility", loss, measure=name)
    extras = layer_spans(checkpoint) if params.whole else [{} for _ in range(checkpoint.num_layers)]
    for layer in range(payload["layer"], checkpoint.num_layers):
        spans = spans_of(checkpoint, layer)
        with meter.microbatch("layer", bytes=num_bytes(spans), layer=layer):
            measured = measure_layer(checkpoint, layer, spans, extras[layer])
        for name, role, value in measured:
            meter.metric(name, value, role=role, layer=layer)
        if faults := [fault for name, role, value in measured
                      if name == "sigma" and role in spans and (fault := fault_of(role, layer, value))]:  # fmt: skip
            raise Diverged("; ".join(faults))
        if state.checkpoint_due():
            state.checkpoint({"layer": layer + 1, "compared": 0})
    _compare(params, checkpoint, payload["compared"], meter, state)


def _describe(checkpoint: Checkpoint, meter: Meter) -> None:
    """Record what a background is matched by, and which weights these are, as labels on the number of layers."""
    stratum = checkpoint.stratum()
    with meter.microbatch("hash", bytes=sum(num_bytes(spans_of(checkpoint, at)) for at in range(stratum.num_layers))):
        key = attention_key(checkpoint)
    meter.metric(
        "model", stratum.num_layers, hidden_size=stratum.hidden_size, num_heads=stratum.num_heads,
        num_kv_heads=stratum.num_kv_heads, vocab_size=stratum.vocab_size, tokenizer=stratum.tokenizer_key or "none",
        intermediate_size=checkpoint.intermediate_size or "none", architecture=checkpoint.architecture,
        revision=checkpoint.revision or "none", weights=key,
    )  # fmt: skip


def _compare(params: Params, checkpoint: Checkpoint, done: int, meter: Meter, state: State) -> None:
    """Score the model against the weights and the behaviour of others, and let the peers do so."""
    others = worth_comparing(params.model, checkpoint.hidden_size, params.against, store=state.store)
    if not others:
        return
    mine = load_weights(params.model, store=state.store)
    peers = [PEERS[name] for name in params.peers]
    prints = {peer.name: peer_fingerprint(peer, params.model, store=state.store) for peer in peers}
    families = {cell.model: family_of(cell.model, cell.family) for cell in state.siblings}
    speaker, bases = _listen(params, others, done, meter, state) if params.behaviour else (None, {})
    for number, other in enumerate(others[done:], start=done + 1):
        with meter.microbatch("compare", other=other):
            theirs = load_weights(other, store=state.store)
            scores = {name: method.score(mine, theirs) for name, method in BY_WEIGHTS.items()}
        for name, score in scores.items():
            _record(meter, name, other, score.value, score.reason)
        if speaker is not None:
            _ask(speaker, bases.pop(other), meter)
        if families.get(params.model) is not None and families.get(other) == families[params.model]:
            _derive(params.model, checkpoint, other, meter, state)
        for peer in peers:
            with meter.microbatch("peer", other=other, peer=peer.name):
                found = peer.score(prints[peer.name], peer_fingerprint(peer, other, store=state.store))
            for part, value in found.parts.items():
                meter.metric("peer-signal", value, peer=peer.name, signal=part, other=other)
            _record(meter, peer.name, other, found.value, found.reason)
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


def _ask(speaker: Speaker, base: Speaker, meter: Meter) -> None:
    """Record how alike a model and its suspected base answer the base's prompts."""
    with meter.microbatch("ask", other=base.reference):
        scores = {name: method.score(speaker, base) for name, method in BY_BEHAVIOUR.items()}
        told = signals(speaker, base)
    for name, score in scores.items():
        _record(meter, name, base.reference, score.value, score.reason, grown_by=base.reference)
    for signal, value in told.items():
        meter.metric("bottom-k", value, signal=signal, other=base.reference, grown_by=base.reference)


def _derive(model: str, checkpoint: Checkpoint, other: str, meter: Meter, state: State) -> None:
    """Record what the weights of two relatives tell of how the one was made: 1 if the other is called the parent."""
    theirs = open_model(other, store=state.store)
    swap = swapped(model, other)
    with meter.microbatch("derive", other=other):
        found = derivation(theirs, checkpoint) if swap else derivation(checkpoint, theirs)
    parent = math.nan if found.parent is None else float((found.parent == "a") == swap)
    meter.metric("derivation", parent, other=other, kind=found.kind, steps="+".join(found.steps))


def _record(meter: Meter, method: str, other: str, value: float, reason: str | None, **labels: str) -> None:
    """Record a score, and where it is not defined why not."""
    meter.metric("score", value, method=method, other=other, **labels, **({"reason": reason} if reason else {}))
