"""One cell: open a checkpoint, measure the standard deviation of Q, K, V, O in every layer."""

from __future__ import annotations

from modelassay.experiments.fingerprinting.measure import measure_layer, open_model
from modelassay.experiments.fingerprinting.params import Params
from modelassay.meter import Meter
from modelassay.state import State


def run(params: Params, meter: Meter, state: State) -> None:
    """Record ``model`` once and ``sigma`` per role and layer; goes on after the last checkpointed layer."""
    checkpoint = open_model(params.model, store=state.store, timer=meter.microbatch)
    saved = state.restore()
    start = 0
    if saved is None:
        stratum = checkpoint.stratum()
        meter.metric(
            "model", checkpoint.num_layers, hidden_size=stratum.hidden_size, num_heads=stratum.num_heads,
            num_kv_heads=stratum.num_kv_heads, vocab_size=stratum.vocab_size, tokenizer=stratum.tokenizer_key or "none",
            architecture=checkpoint.architecture, revision=checkpoint.revision or "none",
        )  # fmt: skip
    else:
        start = saved.payload["layer"]
    for layer in range(start, checkpoint.num_layers):
        spans = checkpoint.layer_spans(layer)
        with meter.microbatch("layer-std", bytes=sum(span.num_bytes for span in spans.values()), layer=layer):
            sigmas = measure_layer(spans)
        for role, sigma in sigmas.items():
            meter.metric("sigma", sigma, role=role, layer=layer)
        if state.checkpoint_due():
            state.checkpoint({"layer": layer + 1})
