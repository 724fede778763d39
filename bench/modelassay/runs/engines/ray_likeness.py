"""Whether the nodes of a Ray cluster are like this machine: Python, Ray, modelassay, and whether they see the run directory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from modelassay.errors import HostError, printable
from modelassay.runs.engines.ray_cluster import living

DESCRIBE_S: Final = 180.0
"""How long nodes may take to say what they have; to start Python on a busy machine takes half a minute."""

POLL_S: Final = 5.0


def describe_nodes(ray: Any, manifest: str) -> list[dict[str, str]]:
    """Return what each node has (`ray_node.describe`), by a task on each; one that is lost meanwhile is none.

    Raises:
        HostError: a node does not answer.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from modelassay.runs.engines import ray_node

    ray.cloudpickle.register_pickle_by_value(ray_node)
    asked = {}
    for node in living(ray):
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(ray_node.describe).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
        asked[node["NodeID"]] = (node["NodeManagerHostname"], task.remote(manifest))
    described, deadline = [], time.monotonic() + DESCRIBE_S
    for identity, (name, task) in asked.items():
        while identity in {
            node["NodeID"] for node in living(ray)
        }:  # one that was lost is found out in half a minute or so
            try:
                described.append(ray.get(task, timeout=POLL_S))
                break
            except Exception as error:  # Ray raises whatever its parts raise
                if isinstance(error, ray.exceptions.GetTimeoutError) and time.monotonic() < deadline:
                    continue
                if identity not in {node["NodeID"] for node in living(ray)}:
                    break
                said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
                raise HostError(f"Ray's node {name} does not answer: {printable(said)}") from None
    return described


def why_unfit(node: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Return why workers cannot run on ``node`` for a driver ``here``; "" where they can."""
    if node["python"] != here["python"]:
        return f"it has Python {node['python']}, and this is {here['python']}; give all nodes the same"
    if node["ray"].split(".")[:2] != here["ray"].split(".")[:2]:
        return f"it has Ray {node['ray']}, and this is {here['ray']}; install ray=={here['ray']} there"
    if not node["code"]:
        return "its Python has no modelassay; install the same version there"
    if node["code"] != here["code"]:
        return "its modelassay is another than this; install the same version there"
    return ""
