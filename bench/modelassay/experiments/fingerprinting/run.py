"""One cell: open a checkpoint, measure the standard deviation of Q, K, V, O in every layer."""

from __future__ import annotations

from modelassay.errors import Diverged
from modelassay.experiments.fingerprinting.measure import fault_of, measure, num_bytes, open_model, spans_of
from modelassay.experiments.fingerprinting.params import Params
from modelassay.meter import Meter
from modelassay.models import zoo_build  # noqa: F401 - its transformers (4 s) is imported once, before cells are forked
from modelassay.models.checkpoint import Checkpoint
from modelassay.state import State


def run(params: Params, meter: Meter, state: State) -> None:
    """Record ``model`` once and ``sigma`` per role and layer; goes on after the last checkpointed layer.

    Raises:
        Diverged: a matrix is not finite or is constant: a finding about the checkpoint.
    """
    checkpoint = open_model(params.model, store=state.store, timer=meter.microbatch)
    saved = state.restore()
    if saved is None:
        _describe(checkpoint, meter)
    for layer in range(0 if saved is None else saved.payload["layer"], checkpoint.num_layers):
        spans = spans_of(checkpoint, layer)
        with meter.microbatch("layer-std", bytes=num_bytes(spans), layer=layer):
            sigmas = measure(spans)
        for role, sigma in sigmas.items():
            meter.metric("sigma", sigma, role=role, layer=layer)
        if faults := [fault for role, sigma in sigmas.items() if (fault := fault_of(role, layer, sigma))]:
            raise Diverged("; ".join(faults))
        if state.checkpoint_due():
            state.checkpoint({"layer": layer + 1})


def _describe(checkpoint: Checkpoint, meter: Meter) -> None:
    """Record what a background is matched by, as labels on the number of layers."""
    stratum = checkpoint.stratum()
    meter.metric(
        "model", stratum.num_layers, hidden_size=stratum.hidden_size, num_heads=stratum.num_heads,
        num_kv_heads=stratum.num_kv_heads, vocab_size=stratum.vocab_size, tokenizer=stratum.tokenizer_key or "none",
        architecture=checkpoint.architecture, revision=checkpoint.revision or "none",
    )  # fmt: skip
