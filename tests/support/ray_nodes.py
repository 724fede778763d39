"""A Ray cluster of three nodes on this machine, in a process of its own: what is said to it is a line, and so is what it answers.

head           one CPU and no GPU; the driver joins here
h100, a100     two CPUs and one GPU each that is only claimed, labelled gpu=h100 and gpu=a100
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.toy_suite import REPOSITORY, environ

FOLDER = os.environ.get("MODELASSAY_TEST_RAY", "")
"""Where the package ray is installed, if not where the tests run."""

MAIN = """
import json, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
def add(kind):
    return cluster.add_node(num_cpus=2, num_gpus=1, labels={"gpu": kind})
nodes = {kind: add(kind) for kind in ("h100", "a100")}
print(json.dumps(cluster.address), flush=True)
for line in sys.stdin:
    word, kind = line.split()
    if word == "remove":
        cluster.remove_node(nodes.pop(kind), allow_graceful=False)
    else:
        nodes[kind] = add(kind)
    print(json.dumps(word), flush=True)
cluster.shutdown()
"""


def ray_environ() -> dict[str, str]:
    env = environ()
    paths = [*(str(REPOSITORY / name) for name in ("bench", "kernels", "tests")), *([FOLDER] if FOLDER else [])]
    # Ray's workers would run at nice 15 and, beside other tests, hardly at all; nor would its agents come up in half a minute.
    own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_agent_register_timeout_ms": "300000"}
    return env | {"PYTHONPATH": os.pathsep.join(paths)} | own


def require_ray() -> None:
    """Skip the test where Ray is not installed."""
    if not (Path(FOLDER, "ray").is_dir() if FOLDER else importlib.util.find_spec("ray") is not None):
        pytest.skip("no Ray here: pip install 'modelassay[ray]', or --target a folder that MODELASSAY_TEST_RAY names")


class Nodes:
    """The cluster's process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", MAIN], env=ray_environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            self.address: str = self._answer()
        except ChildProcessError:
            self.end()
            raise

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith('"'):
                return json.loads(line)
        raise ChildProcessError("the Ray cluster ended")

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        self._answer()

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@contextmanager
def nodes() -> Iterator[Nodes]:
    """Have a cluster; skips the test where Ray is not installed."""
    require_ray()
    try:
        cluster = Nodes()
    except (
        ChildProcessError
    ):  # Ray gives each of its processes half a minute to come up, which a busy machine may not have
        cluster = Nodes()
    try:
        yield cluster
    finally:
        cluster.end()
