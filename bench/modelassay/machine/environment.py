"""The machine a run happened on, and the code that ran: recorded without asking, with no secret in it.

:func:`capture` says where a number comes from; `modelassay.machine.code` says whether a number
made now may stand beside one made earlier. Neither imports torch, so both are free for the command line.
"""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modelassay.machine.code import library_versions, native_extension
from modelassay.machine.gpu import ask, opened_nvml
from modelassay.machine.scrub import JSON, is_secret_name, known_secrets, scrub_argv, scrub_json

THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY", "KMP_AFFINITY",
    "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "POLARS_MAX_THREADS", "TOKENIZERS_PARALLELISM",
)  # fmt: skip

VARIABLES: Final = frozenset({
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE",
    "PYTHONHASHSEED", "PYTHONOPTIMIZE", "LC_ALL", "LANG", "TZ", "MODELASSAY_SKIP_CPP", "THP_MEM_ALLOC_ENABLE",
})  # fmt: skip
VARIABLE_FAMILIES: Final = ("PYTORCH_", "TORCH_", "TRITON_")

_PACKAGE: Final = Path(__file__).parents[1]


def capture(*, deep: bool = False) -> dict[str, JSON]:
    """Describe machine, libraries, code, launch command and GPUs as JSON; what cannot be known is None.

    Costs some 50 ms, most of it git. Only an allowlist of environment variables is kept, and every string passes
    through :mod:`modelassay.machine.scrub`, so that the result can be published.

    Args:
        deep: import torch for what only torch knows (threads, CUDA, cuDNN, determinism); otherwise that is filled
            only if torch is already imported.

    >>> environment = capture()
    >>> environment["libraries"]["modelassay"], "torch" in environment
    ('0.1.0', True)
    """
    now = datetime.datetime.now(datetime.UTC)
    secrets = known_secrets(os.environ)
    described: dict[str, JSON] = {
        "format": 1,
        "started_utc": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "command": list(scrub_argv([Path(sys.argv[0]).name, *sys.argv[1:]], secrets)),
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "os": _operating_system(),
        "cpu": _processor(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "container": _container(os.environ),
        "libraries": dict(library_versions()),
        "native_extension": native_extension() is not None,
        "git": _git_state(_PACKAGE),
        "gpu": _gpus(),
        "torch": _torch_settings(deep=deep),
        "threads": {name: os.environ.get(name) for name in THREAD_VARIABLES},
        "variables": dict(kept_variables(os.environ)),
    }
    clean = scrub_json(described, secrets)
    assert isinstance(clean, dict)
    return clean


def kept_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables worth recording, without those whose name sounds like a secret; values are not yet scrubbed.

    >>> kept_variables({"LANG": "C", "TORCH_LOGS": "graph", "TORCH_HUB_TOKEN": "abc", "HOME": "/root"})
    {'LANG': 'C', 'TORCH_LOGS': 'graph'}
    """
    return {
        name: value
        for name, value in sorted(environ.items())
        if (name in VARIABLES or name.startswith(VARIABLE_FAMILIES)) and not is_secret_name(name)
    }


def _container(environ: Mapping[str, str]) -> JSON:
    """Say which image this is; whoever started the container knows, the process inside can only be told."""
    return {
        "inside": in_container(),
        "image": environ.get("MODELASSAY_IMAGE"),
        "image_digest": environ.get("MODELASSAY_IMAGE_DIGEST"),
        "unlocked": environ.get("MODELASSAY_IMAGE_UNLOCKED"),
    }


def in_container(root: Path = Path("/")) -> bool:
    """Tell whether this process runs in a container, by the marks that Docker, Podman and Kubernetes leave."""
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        return True
    groups = _read(root / "proc/1/cgroup")
    return any(engine in groups for engine in ("docker", "kubepods", "containerd", "libpod", "lxc"))


def _operating_system() -> JSON:
    try:
        distribution = platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        distribution = None
    return {
        "system": platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "distribution": distribution,
        "libc": " ".join(platform.libc_ver()).strip() or None,
    }


def _processor() -> JSON:
    models = [
        line.partition(":")[2].strip() for line in _read(Path("/proc/cpuinfo")).splitlines() if "model name" in line
    ]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": models[0] if models else platform.processor() or None,
        "logical_cores": os.cpu_count(),
        "usable_cores": usable,
    }


def _git_state(folder: Path) -> JSON:
    """Describe the checkout that ``folder`` is tracked in; a copy installed below somebody's repository is not one."""
    if not _git(folder, "ls-files", "--", "__init__.py"):
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain", "--untracked-files=normal", ":/")
    if commit is None or status is None:
        return None
    return {"commit": commit, "dirty": bool(status), "changed_files": len(status.splitlines())}


def _git(folder: Path, *arguments: str) -> str | None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # A mounted checkout belongs to another user, which git refuses; its code is running already, so reading is no risk.
    command = ["git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=30, env=environ | {"GIT_OPTIONAL_LOCKS": "0"}, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _gpus() -> JSON:
    with opened_nvml() as (nvml, reason):
        if nvml is None:
            return {"devices": [], "driver": None, "cuda": None, "reason": reason}
        cuda = ask(nvml, "nvmlSystemGetCudaDriverVersion_v2")
        return {
            "devices": [_gpu(nvml, index) for index in range(ask(nvml, "nvmlDeviceGetCount") or 0)],
            "driver": _text(ask(nvml, "nvmlSystemGetDriverVersion")),
            "cuda": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
            "reason": None,
        }


def _gpu(nvml: Any, index: int) -> JSON:
    handle = ask(nvml, "nvmlDeviceGetHandleByIndex", index)
    if handle is None:
        return None
    memory = ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    power_mw = ask(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle)
    return {
        "name": _text(ask(nvml, "nvmlDeviceGetName", handle)),
        "memory_bytes": None if memory is None else int(memory.total),
        "max_sm_clock_mhz": ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM),
        "max_memory_clock_mhz": ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_MEM),
        "power_limit_w": None if power_mw is None else power_mw / 1e3,
    }


def _torch_settings(*, deep: bool) -> JSON:
    torch: Any = importlib.import_module("torch") if deep else sys.modules.get("torch")
    if torch is None:
        return None
    return {
        "num_threads": torch.get_num_threads(),
        "num_interop_threads": torch.get_num_interop_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _text(value: bytes | str | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
