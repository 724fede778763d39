"""One cell: what the methods read of one checkpoint, layer by layer, then its scores against other models' weights."""

from __future__ import annotations

import torch

from modelassay.errors import Diverged
from modelassay.experiments.fingerprinting.compare import compare
from modelassay.experiments.fingerprinting.numbering import number
from modelassay.experiments.fingerprinting.params import Params
from modelassay.experiments.fingerprinting.sketches import record_sketch
from modelassay.fingerprints.independence.blocks import SampledModel
from modelassay.fingerprints.measure import attention_key, fault_of, measure_layer, num_bytes, spans_of
from modelassay.fingerprints.peers import PEERS
from modelassay.models.checkpoints import Checkpoint, checkpoint_of
from modelassay.models.checkpoints.layers import layer_spans
from modelassay.models.load import preload, threads_for
from modelassay.models.reference import Model
from modelassay.models.weights_only import WeightsOnly
from modelassay.recording.context import CellContext
from modelassay.zoo.resolve import resolve, utility_of

preload()  # once, before cells are forked


def run(params: Params, cell: CellContext) -> None:
    """Record the fact ``model``, ``sigma`` and ``product`` per role and layer, ``score`` per method and other model.

    And, if asked, the fact ``numbering`` per other model; of a sampled model the facts ``sampled`` and ``sketch`` alone. Goes on after the last
    checkpointed layer, or comparison.

    Raises:
        Diverged: an attention matrix is not finite or is constant: a finding about the checkpoint.
        HostError: a peer is not installed; told before anything is made or measured.
    """
    for peer in params.peers:
        PEERS[peer].installed_version()
    model = resolve(params.model, store=cell.store, family=params.family)
    if params.sampled:
        _sample(model, cell)
        return
    checkpoint = model.checkpoint()
    torch.set_num_threads(threads_for(checkpoint.hidden_size))
    saved = cell.restore()
    payload = {"layer": 0} if saved is None else saved.payload
    if saved is None:
        _describe(checkpoint, cell)
        for name, loss in utility_of(params.model, store=cell.store).items():
            cell.metric("utility", loss, measure=name)
    extras = layer_spans(checkpoint) if params.whole else [{} for _ in range(checkpoint.num_layers)]
    for layer in range(payload["layer"], checkpoint.num_layers):
        spans = spans_of(checkpoint, layer)
        with cell.microbatch("layer", bytes=num_bytes(spans), layer=layer):
            measured = measure_layer(checkpoint, layer, spans, extras[layer])
        for name, role, value in measured:
            cell.metric(name, value, role=role, layer=layer)
        if faults := [fault for name, role, value in measured
                      if name == "sigma" and role in spans and (fault := fault_of(role, layer, value))]:  # fmt: skip
            raise Diverged("; ".join(faults))
        if cell.checkpoint_due():
            cell.checkpoint({"layer": layer + 1})
    compare(params, model, cell)
    if params.numbering:
        number(params, model, cell)


def _sample(model: Model, cell: CellContext) -> None:
    """Record what an index keeps of a model, and what it cost; take away again what was fetched of its weights."""
    files = WeightsOnly(model.files)
    checkpoint = checkpoint_of(files)
    record_sketch(SampledModel(checkpoint), cell)
    cell.fact("sampled", {
        "architecture": checkpoint.architecture, "revision": checkpoint.revision, "num_layers": checkpoint.num_layers,
        "weights_bytes": files.weights_bytes(), "fetched_bytes": files.fetched_bytes(),
    })  # fmt: skip
    files.release()


def _describe(checkpoint: Checkpoint, cell: CellContext) -> None:
    """Record what a background is matched by, and which weights these are."""
    stratum = checkpoint.stratum()
    with cell.microbatch("hash", bytes=sum(num_bytes(spans_of(checkpoint, at)) for at in range(stratum.num_layers))):
        key = attention_key(checkpoint)
    about = {"architecture": checkpoint.architecture, "revision": checkpoint.revision, "weights": key}
    cell.fact("model", {**vars(stratum), "intermediate_size": checkpoint.intermediate_size, **about})
