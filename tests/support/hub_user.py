"""Somebody who opens checkpoints of a stand-in Hub, each in a process of its own.

huggingface_hub reads HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE when it is imported, so each opening is a fork of a process that
has not imported it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from modelassay.models.checkpoints import open_checkpoint
from support.hub_server import HubServer, serve_hub
from support.tiny_models import make_model, save

_FORKER = """
import contextlib, json, os, resource, signal, socket, sys, tempfile, time
import filelock, httpx, torch, tqdm.contrib, yaml  # slow imports, once; huggingface_hub is imported by each child under its own environment
from modelassay.errors import AssayError
from modelassay.models.checkpoints import open_checkpoint

def describe(reference):
    try:
        c = open_checkpoint(reference)
    except AssayError as error:
        return {"error": type(error).__name__, "message": str(error)}
    sums = [[m.role, m.layer, c.read(m).double().sum().item()] for m in c.matrices]
    return {"folder": str(c.folder), "revision": c.revision, "tokenizer": c.tokenizer_key, "sums": sums}

def blocked(*arguments, **options):
    time.sleep(60)

for line in sys.stdin:
    reference, limit, environment = json.loads(line)
    if (child := os.fork()) == 0:
        assert "huggingface_hub" not in sys.modules
        os.environ.update({name: value for name, value in environment.items() if name != "NAMES_HANG"})
        if "NAMES_HANG" in environment:
            socket.getaddrinfo = blocked
        with contextlib.suppress(ValueError), contextlib.redirect_stdout(sys.stderr):  # of an HF_ENDPOINT that is no address
            from huggingface_hub import HfApi, hf_hub_download  # which is no part of the time that opening takes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        stderr, began = os.dup(2), time.monotonic()
        with tempfile.TemporaryFile() as printed:
            os.dup2(printed.fileno(), 2)
            answer = describe(reference)
            seconds = time.monotonic() - began
            os.dup2(stderr, 2)
            printed.seek(0)
            print(json.dumps([answer, printed.read().decode(), seconds]), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("opening crashed")
"""


class Opening(NamedTuple):
    """What came of it."""

    answer: dict[str, Any]
    """What the checkpoint is, or the error."""
    stderr: str
    """What was printed meanwhile."""
    seconds: float


class User(NamedTuple):
    """Someone with a cache of their own."""

    home: Path
    endpoint: str
    forker: subprocess.Popen[str]

    def watch(self, reference: str, *, largest_file: int = -1, **environment: str) -> Opening:
        """Open a checkpoint."""
        own = {"HF_HOME": str(self.home), "MODELASSAY_CACHE": str(self.home / "own"), "HF_ENDPOINT": self.endpoint,
               "NO_PROXY": "127.0.0.1"}  # fmt: skip
        assert self.forker.stdin is not None
        assert self.forker.stdout is not None
        print(json.dumps([reference, largest_file, own | environment]), file=self.forker.stdin, flush=True)
        line = self.forker.stdout.readline()
        assert line, "the opening process crashed; its traceback is on stderr"
        return Opening(*json.loads(line))

    def opens(self, reference: str, *, largest_file: int = -1, **environment: str) -> dict[str, Any]:
        """Open a checkpoint and return what it is, or the error."""
        return self.watch(reference, largest_file=largest_file, **environment).answer


@pytest.fixture(scope="module")
def forker() -> Iterator[subprocess.Popen[str]]:
    """The process that opens, without the settings of the machine that tests."""
    foreign = ("HF_", "HUGGING", "HTTP", "http", "ALL_PROXY", "all_proxy", "SSL_CERT", "NO_PROXY", "no_proxy")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    command = [sys.executable, "-c", _FORKER]
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A stand-in Hub."""
    with serve_hub() as server:
        yield server


@pytest.fixture
def user(hub: HubServer, tmp_path: Path, forker: subprocess.Popen[str]) -> User:
    """Somebody with an empty cache."""
    return User(tmp_path / "home", hub.url, forker)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose embeddings fill shards that hold no attention, with a tokenizer."""
    folder = save(make_model("llama", vocab_size=200), tmp_path_factory.mktemp("sharded"), max_shard_size="9KB")
    (folder / "vocab.json").write_text(json.dumps({f"t{i}": i for i in range(200)}))
    return folder


def expected(folder: Path) -> list[list[Any]]:
    """Return the role, layer and sum of every matrix in ``folder``."""
    checkpoint = open_checkpoint(folder)
    return [[m.role, m.layer, checkpoint.read(m).double().sum().item()] for m in checkpoint.matrices]


def attention_shards(folder: Path) -> set[str]:
    """Return the shards that hold attention matrices."""
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return {file for name, file in weight_map.items() if ".self_attn." in name}
