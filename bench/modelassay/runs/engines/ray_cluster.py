"""A Ray cluster that workers are to run on: found, compared with this machine, and asked for what a worker needs."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from modelassay.errors import HostError, printable
from modelassay.suite import Resources

CONNECT_S: Final = 5.0
"""How long the head may take to answer."""

GPU_LABELS: Final = ("gpu-type", "gpu", "ray.io/accelerator-type")
"""Labels of nodes that name their GPUs; the last is Ray's own."""


def import_ray() -> Any:
    """Return the package ray.

    Raises:
        HostError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise HostError(f"--on ray needs Ray: pip install 'modelassay[ray]' ({error})") from None
    return ray


def connect(address: str | None, resources: Resources) -> Any:
    """Join the cluster at ``address`` (None: the one that runs on this machine) and return the package ray.

    Raises:
        HostError: Ray is not installed or of another version there, nothing answers, or no node has what a worker needs.
    """
    ray = import_ray()
    where = address or os.environ.get("RAY_ADDRESS") or "auto"
    _require_reachable(where)
    try:
        ray.init(address=where, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except ConnectionError:
        raise HostError("no Ray cluster runs on this machine; start one with `ray start --head`, or name one: --on ray:HOST:PORT"
                        if where == "auto" else f"ray:{where}: this machine is no node of it; run this on one (`ray job submit`)") from None  # fmt: skip
    except Exception as error:  # Ray raises whatever its parts raise
        raise HostError(f"ray:{printable(where)}: {printable(' '.join(str(error).split()))[:600]}") from None
    try:
        request(resources, living(ray))
    except HostError:
        ray.shutdown()
        raise
    return ray


def _require_reachable(where: str) -> None:
    """Refuse an address at which nothing listens; Ray itself tries for minutes.

    Raises:
        HostError: it is none of HOST:PORT, or nothing answers there.
    """
    if where in {"auto", "local"}:
        return
    host, _, port = where.rpartition(":")
    if not host or not port.isdecimal() or "/" in where:
        raise HostError(f"ray:{printable(where)}: no address of a cluster; write HOST:PORT, as ray:10.0.0.1:6379, and run this on a"
                        " node of the cluster (`ray job submit`)")  # fmt: skip
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_S):
            return
    except (OSError, OverflowError) as error:
        raise HostError(f"ray:{printable(where)}: nothing answers there ({error}); is the cluster up? `ray status` on its head"
                        " tells") from None  # fmt: skip


def living(ray: Any) -> list[dict[str, Any]]:
    """Return the nodes that are up, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def request(resources: Resources, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what one worker asks for, as the options of a task.

    Raises:
        HostError: no node has it, so that Ray would wait for ever.

    >>> node = {"Resources": {"CPU": 8.0, "GPU": 2.0, "memory": 1e12}, "Labels": {"gpu": "H100"}, "NodeManagerHostname": "a"}
    >>> request(Resources(gpus=1, gpu_type="h100"), [node])
    {'num_cpus': 1, 'num_gpus': 1, 'label_selector': {'gpu': 'in(H100)'}}
    """
    options: dict[str, Any] = {"num_cpus": resources.cpus or 1, "num_gpus": resources.gpus}
    if resources.memory_bytes is not None:
        options["memory"] = resources.memory_bytes
    fit = nodes
    if resources.gpu_type is not None:
        key, values = _labelled(resources.gpu_type, nodes)
        options["label_selector"] = {key: f"in({','.join(values)})"}
        fit = [node for node in nodes if node["Labels"].get(key) in values]
    asked = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options.get("memory", 0)}
    if not any(all(node["Resources"].get(name, 0) >= amount for name, amount in asked.items()) for node in fit):
        has = "; ".join(_in_words(node) for node in fit[:4])
        wanted = ", ".join(f"{amount} {name}" for name, amount in asked.items() if amount)
        raise HostError(
            f"no node of the Ray cluster has {wanted} for a worker, which the suite's resources ask for: {has}"
        )
    return options


def _labelled(kind: str, nodes: list[dict[str, Any]]) -> tuple[str, list[str]]:
    for key in GPU_LABELS:
        values = {str(node["Labels"][key]) for node in nodes if key in node["Labels"]}
        if same := sorted(value for value in values if value.lower() == kind.lower()):
            return key, same
    known = sorted({f"{key}={node['Labels'][key]}" for node in nodes for key in GPU_LABELS if key in node["Labels"]})
    raise HostError(f"no node of the Ray cluster is labelled as having GPUs of type {kind} (labels: {', '.join(known) or 'none'});"
                    f" start it with `ray start --labels gpu-type={kind}`")  # fmt: skip


def _in_words(node: Mapping[str, Any]) -> str:
    has = node["Resources"]
    return (f"{node['NodeManagerHostname']} has {has.get('CPU', 0):g} CPU, {has.get('GPU', 0):g} GPU,"
            f" {has.get('memory', 0) / 2**30:.0f} GiB")  # fmt: skip


def leave(ray: Any) -> None:
    """Leave the cluster."""
    with suppress(Exception):  # it may be gone
        ray.shutdown()
