"""Which container engine is meant, and where it listens: DOCKER_HOST, Docker's context, or the sockets where engines usually are.

As Docker's own command line has it: DOCKER_HOST counts before DOCKER_CONTEXT, and that before ``currentContext`` of config.json.
What is named and cannot be had is an error, never replaced by another engine. Only where nothing is named are the usual sockets
tried: the system's, then those of rootless engines.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import docker.errors
import docker.tls
import docker.utils

from modelassay.errors import HostError, did_you_mean, printable

INSTALL: Final = "install Docker (docs.docker.com/engine/install) and start it, or name an engine with DOCKER_HOST"

KNOCK_S: Final = 5.0
"""How long a local socket may take to accept a connection."""

SYSTEM_SOCKET: Final = "/var/run/docker.sock"

_MAX_BYTES: Final = 10_000_000
"""Of a configuration; real ones take kilobytes."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where an engine listens."""

    url: str
    named_by: str = ""
    """The variable or file that names it; "" for a usual place."""
    tls: Any = None
    """A ``docker.tls.TLSConfig``, None without one."""

    @property
    def parameters(self) -> dict[str, Any]:
        """What the SDK's client needs to find it."""
        tls = {} if self.tls is None else {"tls": self.tls}
        ssh = {"use_ssh_client": True} if self.url.startswith("ssh://") else {}
        return {"base_url": self.url, **tls, **ssh}

    @property
    def socket_path(self) -> str | None:
        """The path of a local socket, None of what is elsewhere."""
        path = self.url.removeprefix("http+").removeprefix("unix://")
        return None if path == self.url else "/" + path.lstrip("/")


def find_endpoint(environ: Mapping[str, str] = os.environ) -> Endpoint:
    """Return where the engine listens that is meant.

    Raises:
        HostError: what is named is not there or cannot be read; or nothing is named, and no engine listens at a usual place.
    """
    endpoint = named_endpoint(environ)
    if endpoint is not None:
        refusal = _why_silent(endpoint.socket_path)
        if refusal is not None:
            raise _refused(endpoint, refusal, environ)
        return endpoint
    refusals = []
    for path in usual_sockets(environ):
        endpoint = Endpoint(url=f"unix://{path}")
        refusal = _why_silent(path)
        if refusal is None:
            return endpoint
        refusals.append((endpoint, refusal))
    present = [pair for pair in refusals if not isinstance(pair[1], FileNotFoundError | NotADirectoryError)]
    if present:
        raise _refused(*present[0], environ)
    raise HostError(f"no container engine: there is no {SYSTEM_SOCKET}; {_how_to_begin(environ)}")


def named_endpoint(environ: Mapping[str, str]) -> Endpoint | None:
    """Return the engine that a variable or Docker's configuration names, None where nothing does.

    Raises:
        HostError: what names it is damaged, or names what is not there.
    """
    try:
        parameters = docker.utils.kwargs_from_env(dict(environ) or {"": ""})
    except docker.errors.TLSParameterError as error:
        raise HostError(
            f"DOCKER_CERT_PATH: {error}; mend it, or unset DOCKER_TLS_VERIFY and DOCKER_CERT_PATH"
        ) from error
    if host := environ.get("DOCKER_HOST", "").strip():
        return Endpoint(url=_address(host, "DOCKER_HOST"), named_by="DOCKER_HOST", tls=parameters.get("tls"))
    folder = config_folder(environ)
    name, named_by = environ.get("DOCKER_CONTEXT", ""), "DOCKER_CONTEXT"
    if not name:
        path = folder / "config.json"
        name, named_by = _current_context(path), str(path)
    return None if name in ("", "default") else _endpoint_of_context(name, named_by, folder / "contexts")


def config_folder(environ: Mapping[str, str]) -> Path:
    """Return where Docker's command line keeps its configuration."""
    return Path(environ.get("DOCKER_CONFIG") or f"{environ.get('HOME') or os.path.expanduser('~')}/.docker")  # noqa: PTH111


def usual_sockets(environ: Mapping[str, str]) -> list[str]:
    """Return where engines listen that nobody names: the system's Docker, then the user's own, then Podman's."""
    home = environ.get("HOME", "")
    runtimes = list(dict.fromkeys([environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.getuid()}"]))
    own = [f"{runtime}/docker.sock" for runtime in runtimes if runtime]
    desktop = [f"{home}/.docker/{name}/docker.sock" for name in ("run", "desktop") if home]
    podman = [f"{runtime}/podman/podman.sock" for runtime in runtimes if runtime]
    return [SYSTEM_SOCKET, *own, *desktop, *podman, "/run/podman/podman.sock"]


def _address(host: str, named_by: str) -> str:
    """Return ``host`` if it is an address of an engine."""
    try:
        scheme = host.partition("://")[0]
        if scheme not in ("unix", "http+unix", "tcp", "http", "https", "ssh"):
            raise ValueError("nothing that is spoken here")
        if not host.startswith("ssh://"):
            docker.utils.parse_host(host)
    except (docker.errors.DockerException, ValueError) as error:
        raise HostError(
            f"{named_by}: {printable(host)} is no engine's address ({error}); write it as unix:///PATH, tcp://HOST:PORT or"
            " ssh://USER@HOST"
        ) from error
    return host


def _current_context(path: Path) -> str:
    """Return the context that config.json makes the current one, "" where it names none."""
    if not path.exists():
        return ""
    config = _read(path, whose="Docker's configuration", allow_empty=not any(_contexts(path.parent / "contexts")))
    name = config.get("currentContext") or ""
    if not isinstance(name, str):
        raise HostError(f"{path}: currentContext is {type(name).__name__}, no name; {_choose()}")
    return name


def _endpoint_of_context(name: str, named_by: str, contexts: Path) -> Endpoint:
    identity = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    path = contexts / "meta" / identity / "meta.json"
    shown = f"Docker's context '{printable(name)}', which {named_by} names,"
    if not path.is_file():
        others = sorted({"default", *_contexts(contexts)})
        there = ", ".join(map(printable, others))
        raise HostError(
            f"{shown} does not exist: there is no {path}{did_you_mean(name, others)}; there are: {there}; {_choose()}"
        )
    meta = _read(path, whose=shown)
    endpoints = meta.get("Endpoints")
    endpoint = endpoints.get("docker") if isinstance(endpoints, dict) else None
    host = endpoint.get("Host") if isinstance(endpoint, dict) else None
    if not isinstance(endpoint, dict) or not isinstance(host, str) or not host:
        raise HostError(f"{shown} says of no engine where it is: {path} has no Endpoints.docker.Host; {_choose()}")
    tls = _tls(contexts / "tls" / identity / "docker", verify=not endpoint.get("SkipTLSVerify"), shown=shown)
    return Endpoint(url=_address(host, str(path)), named_by=f"context '{printable(name)}' ({named_by})", tls=tls)


def _tls(folder: Path, *, verify: bool, shown: str) -> Any:
    files = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key")}
    present = {name for name, path in files.items() if path.is_file()}
    if not present:
        return None
    if ("cert" in present) != ("key" in present):
        raise HostError(f"{shown} is not whole: {folder} has only one of cert.pem and key.pem; {_choose()}")
    client_cert = (str(files["cert"]), str(files["key"])) if "cert" in present else None
    try:
        return docker.tls.TLSConfig(
            client_cert=client_cert, ca_cert=str(files["ca"]) if "ca" in present else None, verify=verify
        )
    except docker.errors.TLSParameterError as error:
        raise HostError(f"{shown} is not whole: {error}; {_choose()}") from error


def _contexts(contexts: Path) -> Iterator[str]:
    """Yield the names of the contexts that can be read."""
    for path in (contexts / "meta").glob("*/meta.json"):
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            yield str(json.loads(path.read_bytes())["Name"])


def _read(path: Path, *, whose: str, allow_empty: bool = False) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
        value = {} if allow_empty and not data.strip() else json.loads(data)
    except OSError as error:
        raise HostError(
            f"{whose} cannot be read: {path}: {(error.strerror or str(error)).lower()}; {_choose()}"
        ) from error
    except (ValueError, RecursionError) as error:
        state = "is empty" if not data.strip() else f"is damaged or cut short ({error})"
        raise HostError(f"{whose} cannot be read: {path} {state}; mend it, or {_choose()}") from error
    if not isinstance(value, dict):
        raise HostError(
            f"{whose} cannot be read: {path} holds {type(value).__name__}, no mapping; mend it, or {_choose()}"
        )
    return value


def _choose() -> str:
    return "choose one with `docker context use NAME`, or name an engine with DOCKER_HOST"


def _why_silent(path: str | None) -> OSError | None:
    """Connect to a local socket, since its refusals say more than what the SDK makes of them; None where it takes it."""
    if path is None:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(KNOCK_S)
        try:
            client.connect(path)
        except OSError as error:
            return error
    return None


def _refused(endpoint: Endpoint, error: OSError, environ: Mapping[str, str]) -> HostError:
    path = printable(endpoint.socket_path or "")
    context = f", which {endpoint.named_by} names" if endpoint.named_by.startswith("context") else ""
    start = _start_command(path, environ)
    if isinstance(error, PermissionError):
        return HostError(
            f"{path}{context}: this user may not use the container engine; add them to its group (usermod -aG docker USER,"
            " then log in again), or use a rootless engine through DOCKER_HOST"
        )
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        fix = f"start it: {start}" if "--user" in start else INSTALL
        return HostError(f"no container engine: there is no {path}{context}; {fix}")
    if error.errno is None and not isinstance(error, TimeoutError):
        return HostError(f"{path}{context}: longer than a socket's path may be (107 bytes); link to it under a short name and"
                         " name that with DOCKER_HOST")  # fmt: skip
    reason = (error.strerror or "no answer").lower()
    return HostError(f"no container engine answers at {path}{context} ({reason}); start it: {start}")


def _start_command(path: str, environ: Mapping[str, str]) -> str:
    """Return what starts the engine that listens at ``path``: the user's own service, or the system's."""
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    is_own = path.startswith("/run/user/") or bool(runtime) and path.startswith(f"{runtime}/") or "/.docker/" in path
    service = "podman.socket" if "podman" in path else "docker-desktop" if "/.docker/desktop/" in path else "docker"
    return f"systemctl {'--user ' if is_own else ''}start {service}"


def _how_to_begin(environ: Mapping[str, str]) -> str:
    """Return how to get an engine where none listens: start the one that is installed, or install one."""
    config = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME', '')}/.config"
    if Path(config, "systemd/user/docker.service").exists():  # what dockerd-rootless-setuptool.sh writes
        return "rootless Docker is installed and not running; start it: systemctl --user start docker"
    if any(Path(folder, "systemd/system/docker.service").exists() for folder in ("/etc", "/lib", "/usr/lib")):
        return "Docker is installed and not running; start it: systemctl start docker"
    return INSTALL
