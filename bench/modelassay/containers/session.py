"""One container's life as its client sees it: started, listened to, stopped, removed."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import docker.errors
import requests
from docker.utils.socket import STDOUT, frames_iter

from modelassay.containers.engine import Engine, LocalImage, engine_errors, explanation
from modelassay.containers.settings import (
    CLIENT_LABEL,
    LABEL,
    ContainerRequest,
    Settings,
    config_settings,
    host_settings,
    is_about_gpus,
)
from modelassay.errors import HostError, UsageError
from modelassay.machine.gpu import ask as ask_nvml
from modelassay.machine.gpu import opened_nvml
from modelassay.runs.folder import CLIENT_LOCK
from modelassay.runs.progress import Report
from modelassay.storage.files import run_lock

GRACE_S: Final = 10
"""Seconds a container has to stop by itself, and the engine to tidy up."""

TOOLKIT: Final = (
    "install the NVIDIA Container Toolkit, then: nvidia-ctk runtime configure --runtime=docker && systemctl restart docker"
    " (or, for CDI: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml); `modelassay doctor --container` examines it"
)


@dataclass(kw_only=True)
class ContainerExit:
    """What the engine reported of a container's life."""

    exit_code: int | None = None
    """Of the command inside; None until it ended."""
    out_of_memory: bool = False
    """Whether the kernel ended a process inside because the container's memory was used up."""
    removed: bool = False
    """Whether the container was removed."""


class TimedOut(Exception):  # noqa: N818 - named for what happened
    """The time that the user gave is over."""


@dataclass(kw_only=True)
class Attached:
    """A started container and the two streams that tell of it.

    Why events and not its state: the engine removes a container that ended, also when nobody is left to ask.
    """

    identity: str
    events: Any
    stream: Any
    inbox: queue.SimpleQueue[tuple[str, Any]] = field(default_factory=queue.SimpleQueue)
    """``("out" | "err", bytes)``, ``("eof", None)``, ``("event", dict)``, ``("lost", None)``."""

    def listen(self) -> None:
        """Gather both streams in ``inbox``."""
        for pump in (self._pump_output, self._pump_events):
            threading.Thread(target=pump, daemon=True).start()

    def close(self) -> None:
        """Let go of both; the engine then ends the container's standard input."""
        # Closing the file around a socket leaves the socket open.
        connection = getattr(self.stream, "_sock", None) or self.stream
        shut_down = lambda: connection.shutdown(socket.SHUT_RDWR)  # noqa: E731
        for close in (shut_down, connection.close, self.stream.close, self.events.close):
            with contextlib.suppress(OSError, AttributeError):  # the engine was quicker; TLS has no shutdown
                close()

    def _pump_output(self) -> None:
        try:
            for stream, data in frames_iter(self.stream, tty=False):
                self.inbox.put(("out" if stream == STDOUT else "err", data))
        except (OSError, ValueError):  # closed at either end
            pass
        self.inbox.put(("eof", None))

    def _pump_events(self) -> None:
        try:
            for event in self.events:
                self.inbox.put(("event", event))
        except (OSError, ValueError, AttributeError, docker.errors.DockerException):  # closed at either end
            pass
        self.inbox.put(("lost", None))


def start(engine: Engine, image: LocalImage, settings: Settings, command: Sequence[str], report: Report) -> Attached:
    """Start ``command`` in ``image``; where the engine refuses a device or a limit, ask for what it may grant instead.

    Raises:
        HostError: it refuses all the same.
    """
    api = engine.client.api
    ask = ContainerRequest("request" if num_gpus() else "none")
    while True:
        with engine_errors("to make the container"):
            host = api.create_host_config(**host_settings(settings, ask))
            container = api.create_container(image.id, list(command), host_config=host, **config_settings(settings))
            identity = container["Id"]
            events = api.events(decode=True, filters={"container": identity, "type": "container"})
            stream = api.attach_socket(identity, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
        attached = Attached(identity=identity, events=events, stream=stream)
        try:
            api.start(identity)
        except docker.errors.APIError as error:
            attached.close()
            refusal = explanation(error)
            instead = ask.after(refusal)
            remove(engine, identity)
            if instead is None:
                raise HostError(why_not_started(refusal, image)) from error
            reason = ": ".join(refusal.removesuffix(": unknown").split(": ")[-2:])
            report(f"the engine refused ({reason}), so with {instead.in_words}")
            ask = instead
        else:
            attached.listen()
            return attached


def num_gpus() -> int:
    """Return how many NVIDIA GPUs the driver of this machine sees."""
    with opened_nvml() as (nvml, _):
        return 0 if nvml is None else int(ask_nvml(nvml, "nvmlDeviceGetCount") or 0)


def why_not_started(refusal: str, image: LocalImage) -> str:
    """Return what the engine said with what to do about it."""
    refused = f"the container engine refused to start {image.reference}: {refusal}"
    if "bind source path does not exist" in refusal:
        return f"{refused}; it runs on another machine, or in one that does not share this folder: work in one that it shares"
    if "executable file not found" in refusal or "no such file or directory" in refusal:
        return f"{refused}; take an image that holds modelassay: modelassay images build NAME"
    return f"{refused}; {TOOLKIT}" if is_about_gpus(refusal) else refused


def follow(
    attached: Attached, *, timeout_s: float | None, report: Report, write: Callable[[bytes], None]
) -> ContainerExit:
    """Pass on what the container prints until it is gone: whole lines to ``report``, stdout as it comes to ``write``.

    Raises:
        TimedOut: the command inside has not ended after ``timeout_s`` seconds.
        HostError: the engine is gone.
    """
    ending, rest, printing = ContainerExit(), b"", True
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while printing or not ending.removed:
        try:
            kind, item = attached.inbox.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            if ending.exit_code is None:
                raise TimedOut from None
            break  # it ended, and the engine takes its time to tidy up
        if kind == "out":
            write(item)
        elif kind == "err":
            *lines, rest = (rest + item).split(b"\n")
            _report_lines(lines, report)
        elif kind == "eof":
            _report_lines([rest] if rest else [], report)
            printing = False
        elif kind == "event":
            _note(ending, item)
            if ending.exit_code is not None:
                deadline = time.monotonic() + GRACE_S
        elif ending.exit_code is None:
            raise HostError("the container engine went away; when it is back, run the same directory again")
        else:
            ending.removed = True
    return ending


def _report_lines(lines: Sequence[bytes], report: Report) -> None:
    for line in lines:
        if not line.startswith(b"run directory: "):  # the client says it, whatever becomes of the container
            report(line.decode(errors="replace"))


def _note(ending: ContainerExit, event: dict[str, Any]) -> None:
    match event.get("Action"):
        case "oom":
            ending.out_of_memory = True
        case "die":
            ending.exit_code = int(event["Actor"]["Attributes"].get("exitCode", -1))
        case "destroy":
            ending.removed = True


def stop(engine: Engine, settings: Settings) -> None:
    """Stop this client's containers as gently as they allow, and remove them. A second Ctrl-C is less gentle."""
    try:
        left = _containers(engine, f"{CLIENT_LABEL}={settings.client}")
        try:
            for container in left:
                container.stop(timeout=GRACE_S)
        except docker.errors.NotFound:
            pass
        finally:
            for container in left:
                remove(engine, container.id)
    except (docker.errors.DockerException, requests.exceptions.RequestException):
        pass  # the engine is gone; what is left will be removed when this run goes on


def remove_left(engine: Engine, settings: Settings) -> None:
    """Remove the containers of this run directory, and those of others that were made and never started.

    Their clients are gone: each is at its run directory as long as it lives, and we are alone at ours.
    """
    with engine_errors("to remove what an earlier run left"):
        for left in _containers(engine, f"{LABEL}={settings.folder}"):
            remove(engine, left.id)
        for container in engine.client.containers.list(
            filters={"label": LABEL, "status": "created"}, ignore_removed=True
        ):
            if not _is_held(Path(container.labels[LABEL])):
                remove(engine, container.id)


def _is_held(folder: Path) -> bool:
    try:
        if not (folder / CLIENT_LOCK).exists():
            return False
        with run_lock(folder, CLIENT_LOCK):
            return False
    except (HostError, UsageError, OSError):  # held, no lock of ours, or another user's run: then nobody can tell
        return True


def _containers(engine: Engine, label: str) -> list[Any]:
    return list(engine.client.containers.list(all=True, filters={"label": label}, ignore_removed=True))


def remove(engine: Engine, identity: str) -> None:
    """Remove a container, running or not, and wait until it is gone."""
    deadline = time.monotonic() + GRACE_S
    while True:
        try:
            engine.client.api.remove_container(identity, force=True)
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            if time.monotonic() > deadline or error.status_code != 409:  # 409: the engine is at it already
                raise
        time.sleep(0.05)
