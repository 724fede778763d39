"""Other tools on the same models: optional, run by their own interface, their refusals kept as reasons.

::

    peer = PEERS["modeldna"]
    prints = {name: peer.fingerprint(folder, name=name) for name, folder in folders.items()}  # once per model
    score = peer.score(prints["base"], prints["child"])  # once per pair; value, reason, parts, verdict
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from modelassay.fingerprints.peers.modeldna import MODELDNA
from modelassay.fingerprints.peers.peer import Peer, PeerFingerprint, PeerScore
from modelassay.fingerprints.peers.provenance_kit import PROVENANCE_KIT
from modelassay.models.reference import Model
from modelassay.storage.store import Store

__all__ = ["PEERS", "Peer", "PeerFingerprint", "PeerScore", "peer_fingerprint"]

PEERS: Mapping[str, Peer] = MappingProxyType({peer.name: peer for peer in (MODELDNA, PROVENANCE_KIT)})
"""Every peer by name."""


def peer_fingerprint(peer: Peer, model: Model, *, store: Store) -> PeerFingerprint:
    """Return what a peer reads of a model; of one that has an identity it is kept, since many cells compare with it.

    Raises:
        CheckpointError: the model's files cannot be had.
        HostError: the peer is not installed, or lacks a package.
    """
    if model.identity is None:
        return peer.fingerprint(model.folder, name=model.reference)

    def extract(folder: Path) -> None:
        content = pickle.dumps(peer.fingerprint(model.folder, name=model.reference))
        (folder / "print.pickle").write_bytes(content)

    recipe = {"kind": "peer", "peer": peer.name, "version": peer.installed_version(), "model": model.identity}
    path = store.get(recipe, extract) / "print.pickle"
    content: PeerFingerprint = pickle.loads(path.read_bytes())  # noqa: S301 - our own
    return content
