"""The command line in forks of a process that has imported what it loads: a tenth of a second instead of one to five.

Each fork gets the arguments, environment, folder and pipes that a process of its own would get, and runs
``python -m modelassay.cli`` from there. Only what Python would import anew is shared; `multiprocessing`'s fork server and
resource tracker are forked as well. A child that is spawned is a new process, as ever.
"""

from __future__ import annotations

import atexit
import gc
import json
import multiprocessing.util
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from modelassay.machine.code import SourceGraph

LIGHT = (
    "modelassay.commands.run",
    "modelassay.experiments",
    "modelassay.runs.cell",
    "toy.params",
    "toy.run",
    "numpy",
    "rich.console",
    "rich.table",
)
"""What verbs and toy cells import. Nothing that starts a thread: a fork would not have it."""

WITH_MODELS = (*LIGHT, "scipy.stats", "modelassay.charts", "modelassay.experiments.downloads.run",
               "modelassay.experiments.fingerprinting.run", "modelassay.experiments.spectral.run")  # fmt: skip
"""What a run with models imports besides."""

AT_START = ("PYTHON", "LD_", "LC_", "LANG", "OMP_", "OPENBLAS_", "MKL_")
"""How variables begin that Python and NumPy read when they start, so that a fork would not notice another value."""

AT_ANY_TIME = {"MODELASSAY_CACHE", "MODELASSAY_IMAGE", "MODELASSAY_IMAGE_DIGEST", "PYTEST_CURRENT_TEST"}
"""Variables that are read when they are needed; of others the libraries of ``WITH_MODELS`` may have kept something."""


class WarmServer:
    """The client's end of one server."""

    forks_cpu_s = 0.0
    """Processor seconds of all forks of all servers, with the children that they waited for."""

    def __init__(self, modules: Sequence[str], environ: Mapping[str, str]) -> None:
        self._modules = tuple(modules)
        self._environ = self._decisive(environ)
        self._sending = threading.Lock()
        self._socket, served = socket.socketpair()
        with served:
            command = [sys.executable, "-m", "support.warm_server", str(served.fileno()), *modules]
            self._process = subprocess.Popen(command, env=environ, pass_fds=[served.fileno()], stdin=subprocess.DEVNULL)
        atexit.register(self._end)

    def _end(self) -> None:
        self._socket.close()
        self._process.wait()

    def _decisive(self, environ: Mapping[str, str]) -> dict[str, str]:
        if self._modules == LIGHT:
            return {name: value for name, value in environ.items() if name.startswith(AT_START)}
        return {name: value for name, value in environ.items() if name not in AT_ANY_TIME}

    def fits(self, environ: Mapping[str, str]) -> bool:
        """Tell whether a process with ``environ`` may be a fork of this server."""
        return self._decisive(environ) == self._environ

    def run(
        self, arguments: Sequence[str], *, environ: Mapping[str, str], folder: str, timeout_s: float
    ) -> tuple[int, bytes, bytes]:
        """Run the command line to its end: exit code, negative where a signal ended it, stdout, stderr.

        Raises:
            subprocess.TimeoutExpired: it is killed after ``timeout_s`` seconds.
        """
        pipes = [os.pipe() for _ in range(2)]
        answer, answered = socket.socketpair()
        with answer, answer.makefile("r") as line:
            with answered:
                request = json.dumps({"arguments": arguments, "environ": dict(environ), "folder": folder}).encode()
                descriptors = [pipes[0][1], pipes[1][1], answered.fileno()]
                with self._sending:  # threads may call beside each other
                    socket.send_fds(self._socket, [len(request).to_bytes(8, "big")], descriptors)
                    self._socket.sendall(request)
            for _, writer in pipes:
                os.close(writer)
            process = int(line.readline())
            try:
                out, err = _read_all([reader for reader, _ in pipes], time.monotonic() + timeout_s)
            except TimeoutError:
                os.kill(process, signal.SIGKILL)
                raise subprocess.TimeoutExpired(list(arguments), timeout_s) from None
            finally:
                for reader, _ in pipes:
                    os.close(reader)
            status, used_s = line.readline().split()
            WarmServer.forks_cpu_s += float(used_s)
            return os.waitstatus_to_exitcode(int(status)), out, err


def _read_all(readers: Sequence[int], deadline: float) -> list[bytes]:
    """Read every pipe to its end."""
    read = {reader: bytearray() for reader in readers}
    with selectors.DefaultSelector() as selector:
        for reader in readers:
            selector.register(reader, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                if chunk := os.read(key.fd, 1 << 16):
                    read[key.fd] += chunk
                else:
                    selector.unregister(key.fd)
    return [bytes(content) for content in read.values()]


@cache
def warm_server(modules: tuple[str, ...], environ: Callable[[], dict[str, str]]) -> WarmServer | None:
    """The server with ``modules``, one for each process that tests; None where the system has no way to wait for many forks."""
    return WarmServer(modules, environ()) if hasattr(os, "pidfd_open") else None


def _receive(server: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Read one request and its descriptors; None after the last."""
    size, descriptors, *_ = socket.recv_fds(server, 8, 3)
    if not size:
        return None
    request, length = b"", int.from_bytes(size, "big")
    while len(request) < length:
        request += server.recv(length - len(request))
    return json.loads(request), descriptors


def _serve(server: socket.socket) -> dict[str, Any] | None:
    """Fork for every request. Returns in each fork, with what it is to do; in the server, after the last request: None."""
    answers: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not server:
                    process, answer = answers.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    _, status, used = os.wait4(process, 0)
                    with answer, suppress(BrokenPipeError):
                        answer.sendall(b"%d %f\n" % (status, used.ru_utime + used.ru_stime))
                    continue
                received = _receive(server)
                if received is None:
                    return None
                request, (out, err, reply) = received
                if (process := os.fork()) == 0:
                    os.dup2(out, 1)
                    os.dup2(err, 2)
                    for waiting, (_, other) in answers.items():
                        os.close(waiting)
                        other.close()
                    server.close()
                    for descriptor in (out, err, reply):
                        os.close(descriptor)
                    return request
                os.close(out)
                os.close(err)
                answer = socket.socket(fileno=reply)
                answer.sendall(b"%d\n" % process)
                waiting = os.pidfd_open(process)
                answers[waiting] = process, answer
                selector.register(waiting, selectors.EVENT_READ)


def _be_a_new_process() -> None:
    """Give signals the handlers that Python starts with, as after an exec: what is ignored stays so."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_spawn = multiprocessing.util.spawnv_passfds


def _fork_instead(path: bytes, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
    """Start what `multiprocessing` starts; its servers, which would import all anew, as a fork."""
    program = arguments[arguments.index("-c") + 1]
    if not program.startswith(("from multiprocessing.forkserver ", "from multiprocessing.resource_tracker ")):
        return _spawn(path, arguments, descriptors)
    if process := os.fork():
        return process
    code = 1
    try:
        kept = {0, 1, 2, *descriptors}
        for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
            if descriptor not in kept:
                with suppress(OSError):
                    os.close(descriptor)
        _be_a_new_process()
        exec(program, {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _command_line(request: Mapping[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    sys.argv = ["modelassay.cli", *request["arguments"]]
    tempfile.tempdir = None  # that of the server's environment
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.util.spawnv_passfds = _fork_instead
    try:
        runpy.run_module("modelassay.cli", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, int | None) or threading.active_count() > 1:
            raise
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)  # taking all modules down again takes longer than most verbs


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its client
    own_end = socket.socket(fileno=int(sys.argv[1]))
    own_modules = tuple(sys.argv[2:])
    for module in own_modules:
        import_module(module)
    SourceGraph().closure(*own_modules)  # what each imports is read from its source once
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, f"importing {own_modules} started {len(threads) - 1} threads, which forks would not have"
    if own_modules == LIGHT:
        loaded = sys.modules.keys() & {"torch", "transformers", "huggingface_hub", "httpx", "docker"}
        assert not loaded, f"{loaded} read the environment when they are imported, which a fork would not repeat"
    gc.collect()
    gc.freeze()
    if (mission := _serve(own_end)) is not None:
        _command_line(mission)
