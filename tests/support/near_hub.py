"""A stand-in Hub that the testing process itself takes for the Hub, and models on it that are made when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants

from modelassay.models import connection, parts, redirects, transfer
from support.hub_server import HubServer, VirtualFile, serve_hub

TOKEN = "hf_secretsecretsecretsecretsecretse"
PIECE = 1 << 16


@contextmanager
def near_hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Serve a Hub whose large files come from a second host, with a cache under ``home``."""
    with serve_hub() as hub, serve_hub() as contents:
        contents.url = contents.url.replace("127.0.0.1", "localhost")
        hub.contents = contents
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.delenv("HF_ENDPOINT", raising=False)
        monkeypatch.setenv("MODELASSAY_CACHE", str(home / "cache"))
        monkeypatch.setattr(transfer, "WAIT_S", 0.01)
        monkeypatch.setattr(connection, "WAITS_S", (0.01, 0.02))
        for memory in (connection._absent, connection._pauses, redirects._renamed, parts._opened):
            memory.clear()
        yield hub
        parts._opened.clear()


LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 32_000, "tie_word_embeddings": False,
}  # fmt: skip
"""2.2 GB in bf16."""


def llama_file(seed: int, *, noise: float = 0.0, noise_seed: int = 0, config: dict[str, Any] = LLAMA) -> VirtualFile:
    """A Llama's safetensors file in bf16: independent normal weights of ``seed``, and further ones of ``noise_seed`` times ``noise``."""
    header, at = {}, 0
    for name, shape in _shapes(config).items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text

    @lru_cache(maxsize=64)
    def piece(number: int) -> bytes:
        values = np.random.default_rng([seed, number]).standard_normal(PIECE // 2, dtype=np.float32)
        if noise:
            values += noise * np.random.default_rng([1, noise_seed, number]).standard_normal(
                PIECE // 2, dtype=np.float32
            )
        bits = (0.02 * values).view(np.uint32) + 0x8000  # rounds
        return (bits >> 16).astype(np.uint16).tobytes()

    def read(begin: int, end: int) -> bytes:
        data = head[begin:end]
        begin, end = max(begin - len(head), 0), end - len(head)
        if begin >= end:
            return data
        first, last = begin // PIECE, -(-end // PIECE)
        whole = b"".join(piece(number) for number in range(first, last))
        return data + whole[begin - first * PIECE : end - first * PIECE]

    return VirtualFile(len(head) + at, read)


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner, vocabulary = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    kv = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (vocabulary, width),
        "model.embed_tokens.weight": (vocabulary, width),
    }
    for layer in range(config["num_hidden_layers"]):
        stem = f"model.layers.{layer}."
        shapes |= {
            stem + "input_layernorm.weight": (width,), stem + "mlp.down_proj.weight": (width, inner),
            stem + "mlp.gate_proj.weight": (inner, width), stem + "mlp.up_proj.weight": (inner, width),
            stem + "post_attention_layernorm.weight": (width,), stem + "self_attn.k_proj.weight": (kv, width),
            stem + "self_attn.o_proj.weight": (width, width), stem + "self_attn.q_proj.weight": (width, width),
            stem + "self_attn.v_proj.weight": (kv, width),
        }  # fmt: skip
    return shapes | {"model.norm.weight": (width,)}


def put_llama(hub: HubServer, name: str, folder: Path, file: VirtualFile, *, config: dict[str, Any] = LLAMA) -> str:
    """Serve a model of one weights file, beside a tokenizer of 9 MB; return its commit."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes(b" " * 9_000_000)
    commit = hub.add(name, folder)
    assert hub.contents is not None
    hub.contents.add(name, folder)
    for server in (hub, hub.contents):
        server.virtual[name, "model.safetensors"] = file
    return commit
