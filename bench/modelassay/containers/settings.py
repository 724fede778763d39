"""What a container is told: user, mounts, environment, limits and devices, worked out without asking an engine.

Every path is mounted where it is on this machine, so that a command, its messages and its records mean the same inside
and outside.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from docker.types import DeviceRequest, Mount, Ulimit

from modelassay.containers.paths import require_file, require_place, views
from modelassay.experiments.references import Reference, references
from modelassay.machine.environment import THREAD_VARIABLES
from modelassay.machine.lifeline import VARIABLE as LIFELINE
from modelassay.models.connection import LOGIN as HUB_LOGIN
from modelassay.storage.store import cache_root, home_folder
from modelassay.suite import Suite

SHM_BYTES: Final = 16 << 30  # data workers and vLLM pass tensors through it; it takes memory only as it is used
PIDS_LIMIT: Final = 16_384
"""Processes and threads. One process with the pools of torch, numpy, Polars and tokenizers at 256 threads each has 1,317
(measured), so that ten such fit: a cell and its parent, or vLLM's workers for eight GPUs. Half of the 32,768 that Linux numbers
at the least is left to the machine."""

LABEL: Final = "org.modelassay.run"
"""Carries the run directory, by which a container is found again."""

CLIENT_LABEL: Final = "org.modelassay.client"
"""Carries the client that made the container, which stops no other."""

SECRETS: Final = ("HF_TOKEN", HUB_LOGIN)
"""Handed on when there is a network; their values are in the container's environment and nowhere else."""

_NETWORK_VARIABLES: Final = (
    "HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
_VARIABLES: Final = (
    *THREAD_VARIABLES, "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE", "PYTHONHASHSEED",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bind:
    """A file or folder of this machine that the container sees."""

    path: Path
    """Where, inside and outside."""
    source: Path
    """What, free of symlinks."""
    writable: bool


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One container, but for what the engine may refuse."""

    folder: Path
    """The run directory, absolute."""
    binds: tuple[Bind, ...]
    environment: Mapping[str, str]
    """Holds secrets: never to be shown or stored."""
    user: str
    """``uid:gid``."""
    network: Literal["none", "bridge"]
    memory_bytes: int | None
    """Its limit; None: the machine's."""
    shm_bytes: int
    client: str
    """Which client the container is of: others may be at the same run."""
    own_user_ids: bool
    """Whether an engine that remaps user ids is told not to."""


@dataclass(frozen=True)
class ContainerRequest:
    """What an engine may refuse, and what is asked for instead."""

    gpus: Literal["none", "request", "cdi"]
    """Not at all, by the engine's GPU driver, or by the names of the Container Device Interface."""
    ulimits: bool = True
    """Raised limits on locked memory and stack; a rootless engine may not raise them."""

    @property
    def in_words(self) -> str:
        """What is asked for."""
        gpus = {"none": "no GPU", "request": "GPUs by the engine's driver", "cdi": "GPUs by CDI"}[self.gpus]
        return f"{gpus} and {'raised' if self.ulimits else 'its own'} limits on locked memory and stack"

    def after(self, refusal: str) -> ContainerRequest | None:
        """Return what to try after the engine said ``refusal``; None when nothing less would do.

        >>> ContainerRequest("request").after('could not select device driver "" with capabilities: [[gpu]]')
        ContainerRequest(gpus='cdi', ulimits=True)
        >>> ContainerRequest("cdi").after("error setting rlimit type 8: operation not permitted")
        ContainerRequest(gpus='cdi', ulimits=False)
        >>> ContainerRequest("cdi").after('could not select device driver "cdi" with capabilities: []') is None
        True
        """
        if self.ulimits and "rlimit" in refusal:
            return replace(self, ulimits=False)
        if self.gpus == "request" and is_about_gpus(refusal):
            return replace(self, gpus="cdi")
        return None


def is_about_gpus(refusal: str) -> bool:
    """Tell whether the engine refused a container because of its GPUs."""
    said = refusal.lower()
    return any(word in said for word in ("device driver", "nvidia", "cdi device", "libcuda", "gpu"))


def device_requests(gpus: str) -> list[DeviceRequest]:
    """Return the request for all GPUs of the machine in the form ``gpus`` (see `ContainerRequest`)."""
    if gpus == "request":
        return [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    if gpus == "cdi":
        return [DeviceRequest(driver="cdi", device_ids=["nvidia.com/gpu=all"])]
    return []


def host_settings(settings: Settings, ask: ContainerRequest) -> dict[str, Any]:
    """Return the keyword arguments of ``docker.types.HostConfig``."""
    temporary = "rw,exec,nosuid,nodev,mode=1777"  # exec: Triton compiles into it what it then loads
    if settings.memory_bytes:
        temporary += f",size={settings.memory_bytes // 2}"
    tmpfs = {"/tmp": temporary}
    if not settings.user.startswith("0:") and any(bind.path.is_relative_to("/root") for bind in settings.binds):
        tmpfs["/root"] = "rw,nosuid,nodev,mode=0755"  # an image's /root lets nobody else through to what is below
    ulimits = [Ulimit(name="memlock", soft=-1, hard=-1), Ulimit(name="stack", soft=64 << 20, hard=64 << 20)]
    return {
        "auto_remove": True,
        "init": True,
        "network_mode": settings.network,
        "read_only": True,
        "tmpfs": tmpfs,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "group_add": ["0"],  # the images' own writable folders belong to group 0, as any user id is allowed in them
        "userns_mode": "host" if settings.own_user_ids else None,
        "shm_size": settings.shm_bytes,
        "ulimits": ulimits if ask.ulimits else [],
        "mem_limit": settings.memory_bytes,
        "memswap_limit": settings.memory_bytes,  # no swap: out of memory is told at once, not after an hour of paging
        "pids_limit": PIDS_LIMIT,
        "device_requests": device_requests(ask.gpus),
        "mounts": [
            Mount(target=str(bind.path), source=str(bind.source), type="bind", read_only=not bind.writable)
            for bind in settings.binds
        ],
    }


def config_settings(settings: Settings) -> dict[str, Any]:
    """Return the keyword arguments of ``APIClient.create_container`` that stand beside the host's."""
    return {
        "user": settings.user,
        "environment": dict(settings.environment),
        "working_dir": str(Path.cwd()),
        "labels": {LABEL: str(settings.folder), CLIENT_LABEL: settings.client},
        "stdin_open": True,  # its end tells the run inside that its client is gone
        "stop_signal": "SIGTERM",
    }


def needs_hub(suite: Suite) -> bool:
    """Tell whether a parameter that is declared as a model names one of the Hugging Face Hub."""
    return any(reference.of_hub for reference in suite_references(suite))


def is_offline(suite: Suite, environ: Mapping[str, str]) -> bool:
    """Tell whether the suite can do, or is to do, without a network."""
    asked = environ.get("HF_HUB_OFFLINE", "").lower() not in {"", "0", "false", "no", "off"}
    return asked or not needs_hub(suite)


def environment(environ: Mapping[str, str], *, offline: bool) -> dict[str, str]:
    """Return the container's variables: where to write, what decides numbers and, where there is a network, access to it."""
    cache = cache_root().absolute()
    chosen = {
        LIFELINE: "stdin", "HOME": "/tmp", "MODELASSAY_CACHE": str(cache), "TRITON_CACHE_DIR": str(cache / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"), "HF_HUB_CACHE": str(hub_cache(environ)),
    }  # fmt: skip
    passed = _VARIABLES if offline else (*_VARIABLES, *_NETWORK_VARIABLES, *SECRETS)
    chosen |= {name: environ[name] for name in passed if environ.get(name)}
    return chosen | {"HF_HUB_OFFLINE": "1"} if offline else chosen


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Return where ``huggingface_hub`` keeps what it fetched; the folder above it may hold a token and is not shared."""
    if explicit := environ.get("HF_HUB_CACHE"):
        return Path(explicit).expanduser().absolute()
    base = environ.get("XDG_CACHE_HOME")
    home = environ.get("HF_HOME") or str((Path(base) if base else home_folder() / ".cache") / "huggingface")
    return Path(home).expanduser().absolute() / "hub"


def binds(
    suite: Suite, folder: Path, environ: Mapping[str, str], *, offline: bool, suite_file: bool
) -> tuple[Bind, ...]:
    """Return what the container sees of this machine: writable the run directory and the caches, all else to read.

    Args:
        suite: names the models.
        folder: the run directory.
        environ: says where the caches are.
        offline: whether the Hub's cache is only read.
        suite_file: whether the suite's own file is needed inside.

    Raises:
        UsageError: a parameter or the run directory names what no container is shown (see `views`).
    """
    seen: dict[Path, Bind] = {}

    def show(path: Path, *, writable: bool = False) -> None:
        inside = Path(os.path.abspath(path))  # noqa: PTH100 - not resolve(): the command inside names it like this
        seen.setdefault(inside, Bind(path=inside, source=path.resolve(), writable=writable))

    require_place(folder, "the run directory")
    show(folder, writable=True)
    show(cache_root(), writable=True)
    hub = hub_cache(environ)
    if needs_hub(suite) and (not offline or hub.is_dir()):
        show(hub, writable=not offline)
    if suite_file:
        require_file(suite.source, "suites")
        show(suite.source)
    private = {
        folder.resolve(): "the run directory",
        cache_root().resolve(): "modelassay's cache",
        hub.resolve(): "the Hub's cache",
        Path(os.path.expanduser("~")).resolve(): "your home folder",  # noqa: PTH111 - pathlib raises where there is none
        (hub.parent / "token").resolve(): "the Hub's token",
        (hub.parent / "stored_tokens").resolve(): "tokens of the Hub",
    }
    for reference in suite_references(suite):
        for view in views(reference, hub=hub.resolve(), private=private):
            seen.setdefault(view.path, Bind(path=view.path, source=view.source, writable=False))
    return tuple(seen.values())


def suite_references(suite: Suite) -> list[Reference]:
    """Return what the parameters of all cells name, each model and file once."""
    named: dict[tuple[str, str], Reference] = {}
    for cell in suite.cells:
        for reference in references(cell.params):
            named.setdefault((reference.kind, reference.text), reference)
    return list(named.values())


def shm_bytes(memory_bytes: int | None, machine_bytes: int) -> int:
    """Return the size of shared memory: 16 GiB, or what there is if that is less.

    >>> shm_bytes(None, 64 << 30) >> 30, shm_bytes(4 << 30, 64 << 30) >> 30
    (16, 4)
    """
    return min(SHM_BYTES, memory_bytes or machine_bytes or SHM_BYTES)
