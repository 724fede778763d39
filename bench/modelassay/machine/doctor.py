"""What this machine has, lacks, and how to mend it: the checks behind ``modelassay doctor``.

Every check stands alone and none may take the examination down with it: libraries are imported in processes of their
own (an import can abort, hang or exit), and a failure becomes the text of its check.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from modelassay.machine.gpu import ask, opened_nvml
from modelassay.machine.scrub import scrub_text
from modelassay.storage.store import cache_root

Status = Literal["ok", "missing", "failed"]

SUPPORTED_PYTHON: Final = ((3, 11), (3, 13))
LEAST_TORCH: Final = (2, 11)
LEAST_TRANSFORMERS: Final = (5, 10)
LEAST_FREE_BYTES: Final = 5 * 10**9  # a zoo with its checkpoints and one small real model
LEAST_SHM_BYTES: Final = 10**9  # containers get 64 MiB unless told otherwise, too little for data workers
HUB_TIMEOUT_S: Final = 2.0
_IMPORT_TIMEOUT_S: Final = 120  # a cold import of torch from a network disk takes most of a minute

_ENV_OFF: Final = frozenset({"", "0", "false", "no", "off"})

_PROBES: Final = {
    "torch": (
        "import torch; facts = {'version': torch.__version__, 'threads': torch.get_num_threads(),"
        " 'cuda': torch.version.cuda, 'gpus': torch.cuda.device_count() if torch.cuda.is_available() else 0}"
    ),
    "transformers": "import transformers; facts = {'version': transformers.__version__}",
    "triton": "import triton; facts = {'version': triton.__version__}",
    "native": "import modelassay_kernels._native as native; facts = {'file': native.__file__}",
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check."""

    name: str
    """What was looked at, in a word or three."""
    status: Status
    """``missing`` is absent, ``failed`` is there and broken or insufficient."""
    required: bool
    """Whether the bench cannot work without it."""
    detail: str
    """What was found."""
    fix: str | None = None
    """What to do about it; None when nothing needs doing."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What an import in a process of its own gave."""

    facts: dict[str, Any] | None
    """What the probe printed, None when the import failed."""
    failure: str = ""
    """The last line of the failure's text."""
    absent: bool = False
    """Whether the package itself is not installed."""


def examine(*, runs: Path = Path("runs")) -> list[Check]:
    """Run every check and return them in reading order; never raises for what it finds. About ten seconds, imports mostly.

    Args:
        runs: the folder that is to hold the runs.
    """
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        waiting = {name: pool.submit(probe, name) for name in _PROBES}
        hub_waiting = pool.submit(check_hub)
        local = [check_compiler("C++ compiler", "CXX", ("c++", "g++", "clang++")), check_c_compiler()]
        local += [check_writable("cache folder", cache_root()), check_free_disk(cache_root())]
        local += [check_writable("runs folder", runs), check_shared_memory(), check_git()]
        results = {name: future.result() for name, future in waiting.items()}
    gpus, driver = _gpus()
    return [
        check_python(sys.version_info[:2]),
        check_torch(results["torch"]),
        check_library("transformers", results["transformers"], LEAST_TRANSFORMERS, required=True),
        check_native(results["native"]),
        check_library("triton", results["triton"], None, required=False),
        check_gpu(gpus, driver, results["torch"]),
        *local,
        hub_waiting.result(),
    ]


def probe(name: str) -> Probe:
    """Import one of ``torch``, ``transformers``, ``triton``, ``native`` in a fresh interpreter with this one's path."""
    package = {"native": "modelassay_kernels._native"}.get(name, name)
    script = f"{_PROBES[name]}; import json; print('\\n' + json.dumps(facts))"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-P", "-c", script]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_IMPORT_TIMEOUT_S,
            env=environ,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Probe(facts=None, failure=f"importing {package} took more than {_IMPORT_TIMEOUT_S} s")
    except OSError as error:
        return Probe(facts=None, failure=f"{sys.executable} cannot be started: {error}")
    if done.returncode == 0:
        return Probe(facts=json.loads(done.stdout.splitlines()[-1]))
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    failure = scrub_text(lines[-1].strip()) if lines else f"the interpreter ended with status {done.returncode}"
    if done.returncode < 0:
        failure = f"importing {package} ended the interpreter by {signal.Signals(-done.returncode).name}"
    return Probe(facts=None, failure=failure, absent=failure == f"ModuleNotFoundError: No module named '{package}'")


def check_python(version: tuple[int, ...]) -> Check:
    """Check the interpreter's version, given as (major, minor).

    >>> check_python((3, 12)).status, check_python((3, 9)).status
    ('ok', 'failed')
    """
    low, high = (".".join(map(str, bound)) for bound in SUPPORTED_PYTHON)
    supported = SUPPORTED_PYTHON[0] <= version <= SUPPORTED_PYTHON[1]
    return Check(
        name="Python",
        status="ok" if supported else "failed",
        required=True,
        detail=f"{'.'.join(map(str, version))}, supported are {low} to {high}; {platform.python_implementation()}",
        fix=None
        if supported
        else f"make a virtual environment with Python {low} to {high}: python{high} -m venv .venv",
    )


def check_library(name: str, result: Probe, least: tuple[int, ...] | None, *, required: bool) -> Check:
    """Check that a library could be imported and is at least version ``least`` (None: any)."""
    requirement = name if least is None else f"{name}>={'.'.join(map(str, least))}"
    fix = f"pip install '{requirement}'"
    if result.facts is None:
        status: Status = "missing" if result.absent else "failed"
        return Check(name=name, status=status, required=required, detail=result.failure, fix=fix)
    version = str(result.facts["version"])
    if least is not None and version_tuple(version) < least:
        return Check(name=name, status="failed", required=required, detail=f"{version} is too old", fix=fix)
    return Check(name=name, status="ok", required=required, detail=version)


def check_torch(result: Probe) -> Check:
    """Check torch, its version and its threads."""
    check = check_library("torch", result, LEAST_TORCH, required=True)
    if check.status != "ok" or result.facts is None:
        return check
    build = f"CUDA {result.facts['cuda']}" if result.facts["cuda"] else "CPU build"
    detail = f"{check.detail}, {build}, {result.facts['threads']} threads"
    return Check(name="torch", status="ok", required=True, detail=detail)


def check_native(result: Probe) -> Check:
    """Check the compiled CPU kernels; without them the PyTorch reference serves."""
    if result.facts is not None:
        return Check(name="native extension", status="ok", required=False, detail=Path(result.facts["file"]).name)
    return Check(
        name="native extension",
        status="missing" if result.absent else "failed",
        required=False,
        detail=f"{result.failure}; the PyTorch reference serves, more slowly",
        fix="install a C++ compiler (apt install g++) and install modelassay again: pip install --force-reinstall"
        " --no-deps modelassay, or in a checkout: pip install -e .",
    )


def check_gpu(names: list[str], driver: str, torch_found: Probe) -> Check:
    """Check the GPUs that the driver sees against those that torch can use.

    Args:
        names: the cards, as NVML names them.
        driver: the driver's version, or why there is none when ``names`` is empty.
        torch_found: the probe of torch.
    """
    if not names:
        return Check(
            name="GPU",
            status="missing",
            required=False,
            detail=f"none ({driver}); everything but the GPU kernels and the paper profiles works",
            fix="install the NVIDIA driver; in a container start it with --gpus all",
        )
    detail = f"{', '.join(names)}; driver {driver}"
    if torch_found.facts is None or torch_found.facts["gpus"]:
        return Check(name="GPU", status="ok", required=False, detail=detail)
    if torch_found.facts["cuda"] is None:
        trouble, fix = "torch is a CPU build", "install a CUDA build of torch (pytorch.org/get-started)"
    else:
        trouble = f"torch, built for CUDA {torch_found.facts['cuda']}, sees none"
        fix = "check CUDA_VISIBLE_DEVICES, then that the driver is new enough for this CUDA (nvidia-smi)"
    return Check(name="GPU", status="failed", required=False, detail=f"{detail}; {trouble}", fix=fix)


def check_compiler(name: str, variable: str, candidates: tuple[str, ...]) -> Check:
    """Check for a compiler: the command in the environment variable if it is set, else the first candidate found."""
    chosen = os.environ.get(variable, "").strip()
    tried = [shlex.split(chosen)[0]] if chosen else list(candidates)
    for command in tried:
        if shutil.which(command):
            return Check(name=name, status="ok", required=False, detail=_first_line(command, "--version") or command)
    return Check(
        name=name,
        status="missing",
        required=False,
        detail=f"none of {', '.join(tried)}" + (f" (from {variable})" if chosen else ""),
        fix=f"apt install build-essential, or set {variable}; needed to build the CPU kernels",
    )


def check_c_compiler() -> Check:
    """Check for the C compiler with which Triton builds its launcher when a kernel first runs."""
    check = check_compiler("C compiler", "CC", ("cc", "gcc", "clang"))
    if check.status == "ok":
        return check
    fix = "apt install gcc, or set CC; needed by Triton on a GPU"
    return Check(name=check.name, status=check.status, required=False, detail=check.detail, fix=fix)


def check_writable(name: str, folder: Path) -> Check:
    """Check that files can be made in ``folder``, or, where it does not exist yet, in the nearest folder above it."""
    existing = _nearest_existing(folder)
    try:
        # Asked by writing: root, quotas and network disks make the permission bits say little.
        with tempfile.TemporaryFile(dir=existing):
            return Check(name=name, status="ok", required=True, detail=str(folder))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    variable = "set MODELASSAY_CACHE to" if name == "cache folder" else "work in"
    fix = f"{variable} a folder of your own, or: chown -R $(id -u) {shlex.quote(str(existing))}"
    return Check(name=name, status="failed", required=True, detail=f"{existing}: {reason}", fix=fix)


def check_free_disk(folder: Path) -> Check:
    """Check the free space where ``folder`` lies or will lie."""
    free = shutil.disk_usage(_nearest_existing(folder)).free
    detail = f"{free / 1e9:.1f} GB free at {folder}"
    if free >= LEAST_FREE_BYTES:
        return Check(name="cache disk", status="ok", required=False, detail=detail)
    fix = f"free at least {LEAST_FREE_BYTES / 1e9:.0f} GB there, or set MODELASSAY_CACHE to a larger disk"
    return Check(name="cache disk", status="failed", required=False, detail=detail, fix=fix)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Check the shared memory that data workers and vLLM pass tensors through."""
    if not folder.is_dir():
        fix = "mount it: mount -t tmpfs shm /dev/shm"
        return Check(name="shared memory", status="missing", required=False, detail=f"no {folder}", fix=fix)
    total = shutil.disk_usage(folder).total
    detail = f"{total / 1e9:.2f} GB at {folder}"
    if total >= LEAST_SHM_BYTES:
        return Check(name="shared memory", status="ok", required=False, detail=detail)
    fix = "in a container start it with --shm-size=16g or --ipc=host"
    return Check(name="shared memory", status="failed", required=False, detail=detail, fix=fix)


def check_git() -> Check:
    """Check for git, which tells a run's commit."""
    version = _first_line("git", "--version") if shutil.which("git") else None
    if version:
        return Check(name="git", status="ok", required=False, detail=version)
    fix = "apt install git; without it runs record no commit"
    return Check(name="git", status="missing", required=False, detail="not on the PATH", fix=fix)


def check_hub() -> Check:
    """Check that the Hugging Face Hub (``HF_ENDPOINT``) answers within two seconds; asks nothing when offline.

    One HEAD request to that host and no other: redirects are not followed, proxies not used. Any HTTP answer counts.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() not in _ENV_OFF:
        return Check(name="Hub", status="ok", required=False, detail="not asked: HF_HUB_OFFLINE is set")
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    shown = scrub_text(endpoint)
    answer: list[str] = []
    # A thread, since the time that looking up a name takes has no limit of its own.
    asking = threading.Thread(target=lambda: answer.append(_head(endpoint)), daemon=True)
    asking.start()
    asking.join(HUB_TIMEOUT_S)
    trouble = answer[0] if answer else f"no answer within {HUB_TIMEOUT_S:g} s"
    if not trouble:
        return Check(name="Hub", status="ok", required=False, detail=f"{shown} answers")
    return Check(
        name="Hub",
        status="failed",
        required=False,
        detail=f"{shown}: {trouble}",
        fix="for work on local models set HF_HUB_OFFLINE=1; otherwise check the network, or set HF_ENDPOINT to a mirror",
    )


def version_tuple(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version.

    >>> version_tuple("2.13.0+cpu"), version_tuple("5.17.0.dev0")
    ((2, 13, 0), (5, 17, 0))
    """
    leading = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()


def _head(endpoint: str) -> str:
    """Return what is wrong with ``endpoint``, "" when it answers."""
    parts = urllib.parse.urlsplit(endpoint)
    kinds: dict[str, Callable[..., http.client.HTTPConnection]]
    kinds = {"https": http.client.HTTPSConnection, "http": http.client.HTTPConnection}
    if parts.scheme not in kinds or not parts.hostname:
        return "HF_ENDPOINT is not an http(s) address"
    try:
        connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=HUB_TIMEOUT_S)
        try:
            connection.request("HEAD", parts.path or "/")
            connection.getresponse()
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        return scrub_text(str(error)) or type(error).__name__
    return ""


def _gpus() -> tuple[list[str], str]:
    """Return the names of the cards and the driver's version, or none and the reason."""
    with opened_nvml() as (nvml, reason):
        if nvml is None:
            return [], reason
        handles = [
            ask(nvml, "nvmlDeviceGetHandleByIndex", index) for index in range(ask(nvml, "nvmlDeviceGetCount") or 0)
        ]
        names = [str(ask(nvml, "nvmlDeviceGetName", handle)) for handle in handles if handle is not None]
        driver = ask(nvml, "nvmlSystemGetDriverVersion")
        return names, str(driver) if names else "the driver is there and sees no card"


def _nearest_existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))


def _first_line(command: str, argument: str) -> str | None:
    try:
        done = subprocess.run([command, argument], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else None
