"""Which engine is meant: contexts that are missing or cut short are told, sockets of rootless engines are found."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from modelassay.containers import endpoint
from modelassay.containers.engine import connect
from modelassay.errors import HostError


class Machine(NamedTuple):
    """A user's home, their runtime folder, and the system's socket, none of which has an engine yet."""

    home: Path
    runtime: Path
    system: Path
    environ: dict[str, str]

    def config(self, content: Any) -> Path:
        path = self.home / ".docker" / "config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def context(self, name: str, content: Any) -> Path:
        identity = hashlib.sha256(name.encode()).hexdigest()
        path = self.home / ".docker" / "contexts" / "meta" / identity / "meta.json"
        path.parent.mkdir(parents=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    top = Path(tempfile.mkdtemp(dir="/tmp"))  # a socket's path must be short
    monkeypatch.setattr(endpoint, "SYSTEM_SOCKET", str(top / "docker.sock"))
    for name in ("home", "run"):
        (top / name).mkdir()
    environ = {"HOME": str(top / "home"), "XDG_RUNTIME_DIR": str(top / "run")}
    yield Machine(top / "home", top / "run", top / "docker.sock", environ)
    shutil.rmtree(top)


def listen(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen()
    return server


def meta(name: str, host: str, **more: Any) -> dict[str, Any]:
    return {"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host, **more}}}


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(HostError) as caught:
        endpoint.find_endpoint(environ)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert "; " in text
    return text


# Contexts


def test_the_context_of_the_configuration_is_taken(machine: Machine) -> None:
    machine.config({"currentContext": "far", "auths": {}})
    machine.context("far", meta("far", "tcp://10.0.0.1:2375"))
    with listen(machine.system):
        assert endpoint.find_endpoint(machine.environ).url == "tcp://10.0.0.1:2375"


def test_docker_host_counts_before_docker_context_and_that_before_the_configuration(machine: Machine) -> None:
    machine.config("{")
    machine.context("far", meta("far", "tcp://10.0.0.1:2375"))
    environ = machine.environ | {"DOCKER_CONTEXT": "far"}
    assert endpoint.find_endpoint(environ).url == "tcp://10.0.0.1:2375"
    assert endpoint.find_endpoint(environ | {"DOCKER_HOST": "tcp://10.0.0.2:1"}).url == "tcp://10.0.0.2:1"


def test_folder_of_the_configuration_may_be_elsewhere(machine: Machine, tmp_path: Path) -> None:
    machine.config({"currentContext": "far"})
    machine.context("far", meta("far", "ssh://me@host"))
    (machine.home / ".docker").rename(tmp_path / "elsewhere")
    named = endpoint.find_endpoint(machine.environ | {"DOCKER_CONFIG": str(tmp_path / "elsewhere")})
    assert named.parameters == {"base_url": "ssh://me@host", "use_ssh_client": True}


@pytest.mark.parametrize("place", ["DOCKER_CONTEXT", "config.json"])
def test_context_that_is_missing_is_told_and_not_replaced(machine: Machine, place: str) -> None:
    machine.context("rootless", meta("rootless", "unix:///x"))
    named_by = "DOCKER_CONTEXT" if place == "DOCKER_CONTEXT" else str(machine.config({"currentContext": "rotless"}))
    environ = machine.environ | ({"DOCKER_CONTEXT": "rotless"} if place == "DOCKER_CONTEXT" else {})
    with listen(machine.system):
        text = refusal(environ)
    assert f"Docker's context 'rotless', which {named_by} names, does not exist: there is no {machine.home}" in text
    assert "did you mean 'rootless'?; there are: default, rootless; choose one with `docker context use NAME`" in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ('{"Name": "far", "Endp', "is damaged or cut short"),
        ("[]", "holds list, no mapping"),
        ({"Name": "far"}, "has no Endpoints.docker.Host"),
        ({"Name": "far", "Endpoints": {}}, "has no Endpoints.docker.Host"),
        ({"Name": "far", "Endpoints": {"kubernetes": {"Host": "https://k"}}}, "has no Endpoints.docker.Host"),
        ({"Name": "far", "Endpoints": {"docker": {}}}, "has no Endpoints.docker.Host"),
        ({"Name": "far", "Endpoints": {"docker": {"Host": ""}}}, "has no Endpoints.docker.Host"),
        ({"Name": "far", "Endpoints": {"docker": {"Host": 3}}}, "has no Endpoints.docker.Host"),
        ({"Name": "far", "Endpoints": {"docker": None}}, "has no Endpoints.docker.Host"),
        ({"Name": "far", "Endpoints": [1]}, "has no Endpoints.docker.Host"),
        (meta("far", "npipe:////./pipe/docker"), "is no engine's address"),
        (meta("far", "10.0.0.1"), "is no engine's address"),
        ("[" * 100_000, "is damaged or cut short"),
    ],
)
def test_context_that_is_cut_short_is_told_and_not_replaced(machine: Machine, content: Any, says: str) -> None:
    machine.config({"currentContext": "far"})
    path = machine.context("far", content)
    with listen(machine.system):
        text = refusal(machine.environ)
    assert str(path) in text
    assert says in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"currentContext": "fa', "is damaged or cut short"),
        ("[]", "holds list, no mapping"),
        ('{"currentContext": 3}', "currentContext is int, no name"),
        ("", "is empty"),
    ],
)
def test_configuration_that_is_cut_short_is_told(machine: Machine, content: str, says: str) -> None:
    machine.context("far", meta("far", "tcp://10.0.0.1:2375"))
    path = machine.config(content)
    with listen(machine.system):
        text = refusal(machine.environ)
    assert str(path) in text
    assert says in text


@pytest.mark.parametrize("content", ["", "{}", '{"currentContext": ""}', '{"currentContext": "default"}'])
def test_configuration_that_names_no_context_leaves_the_usual_place(machine: Machine, content: str) -> None:
    machine.config(content)
    with listen(machine.system):
        assert endpoint.find_endpoint(machine.environ).socket_path == str(machine.system)


def test_configuration_that_may_not_be_read(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    path = machine.config({})
    opening = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opening(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert f"{path}: permission denied" in refusal(machine.environ)


def test_context_with_half_a_certificate(machine: Machine) -> None:
    machine.config({"currentContext": "far"})
    path = machine.context("far", meta("far", "tcp://10.0.0.1:2376"))
    folder = machine.home / ".docker" / "contexts" / "tls" / path.parent.name / "docker"
    folder.mkdir(parents=True)
    (folder / "cert.pem").write_text("x")
    assert f"{folder} has only one of cert.pem and key.pem" in refusal(machine.environ)
    (folder / "key.pem").write_text("x")
    (folder / "ca.pem").write_text("x")
    tls = endpoint.find_endpoint(machine.environ).tls
    assert (tls.cert, tls.ca_cert, tls.verify) == (
        (str(folder / "cert.pem"), str(folder / "key.pem")),
        str(folder / "ca.pem"),
        True,
    )


@pytest.mark.parametrize("host", ["/var/run/docker.sock", "fd://", "tcp://host:port", "http//x"])
def test_docker_host_that_is_no_address(machine: Machine, host: str) -> None:
    with listen(machine.system):
        text = refusal(machine.environ | {"DOCKER_HOST": host})
    assert text.startswith(f"DOCKER_HOST: {host} is no engine's address")


def test_certificates_that_docker_host_needs_and_that_are_missing(machine: Machine) -> None:
    environ = machine.environ | {"DOCKER_HOST": "tcp://x:1", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/nowhere"}
    assert refusal(environ).startswith("DOCKER_CERT_PATH: ")


# Sockets


@pytest.mark.parametrize("place", ["docker.sock", "podman/podman.sock"])
def test_rootless_engine_is_found_where_nothing_is_named(machine: Machine, place: str) -> None:
    with listen(machine.runtime / place):
        assert endpoint.find_endpoint(machine.environ).url == f"unix://{machine.runtime / place}"


def test_the_runtime_folder_may_be_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    sockets = endpoint.usual_sockets({"HOME": "/home/me"})
    assert sockets == [
        "/var/run/docker.sock", "/run/user/1234/docker.sock", "/home/me/.docker/run/docker.sock",
        "/home/me/.docker/desktop/docker.sock", "/run/user/1234/podman/podman.sock", "/run/podman/podman.sock",
    ]  # fmt: skip


def test_the_system_engine_counts_before_others(machine: Machine) -> None:
    with listen(machine.system), listen(machine.runtime / "docker.sock"):
        assert endpoint.find_endpoint(machine.environ).socket_path == str(machine.system)


def test_system_socket_without_an_engine_does_not_hide_a_rootless_one(machine: Machine) -> None:
    listen(machine.system).close()
    with listen(machine.runtime / "docker.sock"):
        assert endpoint.find_endpoint(machine.environ).socket_path == str(machine.runtime / "docker.sock")


@pytest.mark.parametrize(
    ("place", "command"),
    [
        ("docker.sock", "systemctl --user start docker"),
        ("podman/podman.sock", "systemctl --user start podman.socket"),
        ("../home/.docker/desktop/docker.sock", "systemctl --user start docker-desktop"),
        ("../docker.sock", "systemctl start docker"),
    ],
)
def test_engine_that_has_stopped_is_started_by_whoever_runs_it(machine: Machine, place: str, command: str) -> None:
    path = Path(os.path.normpath(machine.runtime / place))
    listen(path).close()
    assert (
        refusal(machine.environ) == f"no container engine answers at {path} (connection refused); start it: {command}"
    )


def test_rootless_engine_that_is_named_and_not_there_is_started_by_its_user(machine: Machine) -> None:
    path = machine.runtime / "docker.sock"
    machine.config({"currentContext": "rootless"})
    machine.context("rootless", meta("rootless", f"unix://{path}"))
    with listen(machine.system):
        text = refusal(machine.environ)
    config = machine.home / ".docker" / "config.json"
    assert text == (
        f"no container engine: there is no {path}, which context 'rootless' ({config}) names;"
        " start it: systemctl --user start docker"
    )


def test_rootless_engine_that_is_installed_and_not_running(machine: Machine) -> None:
    unit = machine.home / ".config" / "systemd" / "user" / "docker.service"
    unit.parent.mkdir(parents=True)
    unit.touch()
    text = refusal(machine.environ)
    assert (
        f"there is no {machine.system}; rootless Docker is installed and not running; start it: systemctl --user"
        in text
    )


def test_socket_of_another_is_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Socket(socket.socket):
        def connect(self, address: Any) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket, "socket", Socket)
    assert f"{machine.system}: this user may not use the container engine; add them" in refusal(machine.environ)


def test_socket_whose_path_is_too_long(machine: Machine) -> None:
    text = refusal(machine.environ | {"DOCKER_HOST": f"unix:///{'x' * 200}"})
    assert "longer than a socket's path may be (107 bytes); link to it under a short name" in text


def test_engine_that_accepts_and_never_answers_is_told_soon(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelassay.containers.engine.FIRST_ANSWER_S", 0.5)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{machine.system}")
    with listen(machine.system), pytest.raises(HostError, match="no container engine answers at unix://"):
        connect()


def test_configuration_that_the_sdk_dies_of(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.config([1])
    for name, value in (machine.environ | {"DOCKER_HOST": f"unix://{machine.system}"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.setattr("modelassay.containers.engine.FIRST_ANSWER_S", 0.5)
    with listen(machine.system), pytest.raises(HostError):
        connect()
