"""One cell: what the methods read of one checkpoint, layer by layer, then its scores against other models' weights."""

from __future__ import annotations

import torch

from modelassay.errors import Diverged
from modelassay.experiments.fingerprinting.compare import code_key, compare
from modelassay.experiments.fingerprinting.downloads.family import run_family
from modelassay.experiments.fingerprinting.measure import (
    attention_key,
    fault_of,
    make_together,
    measure_layer,
    num_bytes,
    open_model,
    spans_of,
    utility_of,
)
from modelassay.experiments.fingerprinting.methods.peers import PEERS
from modelassay.experiments.fingerprinting.params import Params
from modelassay.meter import Meter
from modelassay.models import (
    zoo,
    zoo_build,  # noqa: F401 - its transformers (4 s) is imported once, before cells are forked
)
from modelassay.models.checkpoint import Checkpoint
from modelassay.models.layer_tensors import layer_spans
from modelassay.state import State

# What all cells ask for is found once, before they are forked.
zoo.recipe("base")
code_key()

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
    compare(params, checkpoint, payload["compared"], meter, state)


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
