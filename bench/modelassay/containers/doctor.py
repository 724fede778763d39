"""What this machine needs for ``--in container``: engine, image, disk, and whether a container sees its GPUs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modelassay.containers import images
from modelassay.errors import HostError
from modelassay.machine.doctor import Check, Status
from modelassay.machine.scrub import scrub_text

if TYPE_CHECKING:
    from modelassay.containers.engine import Engine, LocalImage

LEAST_FREE_BYTES: Final = 25 * 10**9  # the largest image, once built and once being built
_TIMEOUT_S: Final = 120

_LIST_GPUS: Final = ("nvidia-smi", "-L")  # the toolkit puts it into every container it gives a GPU
_USE_GPU: Final = ("python3", "-c", "import torch; print(torch.ones(1 << 20, device='cuda').sum().item())")

_EXPLAINED: Final = {
    "error 803": (
        "the driver's library inside does not fit the driver outside: after an update of the driver restart the machine and"
        " make the CDI specification anew (nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml); an image must not bring"
        " its own libcuda (no cuda-compat on LD_LIBRARY_PATH)"
    ),
    "error 804": (
        "the image's CUDA is newer than the driver, and this card cannot make up for it: update the driver (CUDA 13 wants"
        " 580 or later; nvidia-smi shows what it has)"
    ),
}


def examine_containers(*, required: bool) -> list[Check]:
    """Run the checks; never raises for what it finds. A second without a GPU, most of a minute with one.

    Args:
        required: whether runs are to happen in containers here; otherwise nothing found makes the machine unfit.
    """
    try:
        from modelassay.containers.engine import connect
        from modelassay.containers.session import num_gpus
    except ImportError as error:
        return [Check(name="container engine", status="missing", required=required, detail=str(error),
                      fix="pip install 'docker>=7.1'")]  # fmt: skip
    try:
        engine = connect(timeout_s=_TIMEOUT_S)
    except HostError as error:
        detail, _, fix = str(error).partition("; ")
        return [Check(name="container engine", status="missing", required=required, detail=detail, fix=fix)]
    try:
        gpus = num_gpus()
        checks = [
            check_engine(engine),
            check_images(engine, wanted="core" if gpus else "cpu"),
            check_engine_disk(engine),
        ]
        if gpus:
            checks.append(check_gpu_inside(engine))
    finally:
        engine.client.close()
    return [replace(check, required=required and check.name != "engine disk") for check in checks]


def check_engine(engine: Engine) -> Check:
    """Say which engine answers, and what it cannot do."""
    lacks = "" if engine.can_limit_memory else "; it cannot limit memory"
    return Check(name="container engine", status="ok", required=False, detail=engine.name + lacks)


def check_images(engine: Engine, *, wanted: str) -> Check:
    """Check that the image ``wanted`` is there and what docker/images.lock.json pins; the others are mentioned."""
    found = {name: _state(engine, name) for name in images.locked_images()}
    detail = "; ".join(f"{name}: {state}" for name, state in found.items())
    if found[wanted] == "locked":
        return Check(name="images", status="ok", required=False, detail=detail)
    status: Status = "missing" if found[wanted] == "not here" else "failed"
    return Check(name="images", status=status, required=False, detail=detail, fix=f"modelassay images build {wanted}")


def _state(engine: Engine, name: str) -> str:
    from modelassay.containers.engine import find_image

    try:
        return find_image(engine, name).unlocked or "locked"
    except HostError:
        return "not here"


def check_engine_disk(engine: Engine) -> Check:
    """Check the free space where the engine keeps images, if that is on this machine."""
    folder = Path(engine.root_dir or "/nowhere")
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return Check(name="engine disk", status="ok", required=False, detail=f"not seen from here ({folder})")
    detail = f"{free / 1e9:.1f} GB free at {folder}"
    if free >= LEAST_FREE_BYTES:
        return Check(name="engine disk", status="ok", required=False, detail=detail)
    fix = f"free at least {LEAST_FREE_BYTES / 1e9:.0f} GB: docker system df shows what takes it, docker image prune frees some"
    return Check(name="engine disk", status="failed", required=False, detail=detail, fix=fix)


def check_gpu_inside(engine: Engine) -> Check:
    """Start a container that lists the GPUs and, where the image has a CUDA build of torch, uses one."""
    image = next((found for name in ("core", "vllm", "cpu") if (found := _image(engine, name))), None)
    if image is None:
        return Check(name="GPU in a container", status="missing", required=False, detail="not tried: no image to try it in",
                     fix="modelassay images build core")  # fmt: skip
    uses = image.labels.get(images.LABEL_IMAGE) != "cpu"
    try:
        for command in (_LIST_GPUS, _USE_GPU) if uses else (_LIST_GPUS,):
            code, said, how = run_with_gpus(engine, image, command)
            if code != 0:
                return gpu_trouble(f"{how}: {said[-1] if said else f'{command[0]} ended with {code}'}")
            if command is _LIST_GPUS:
                listed = f"{', '.join(line.partition(' (UUID')[0] for line in said)} ({how})"
    except HostError as error:
        return gpu_trouble(str(error))
    return Check(name="GPU in a container", status="ok", required=False, detail=listed)


def gpu_trouble(said: str) -> Check:
    """Return the failed check for what the engine or the container ``said``, with the fix that it calls for.

    >>> check = gpu_trouble("RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility")
    >>> check.fix.partition(":")[0]
    "the image's CUDA is newer than the driver, and this card cannot make up for it"
    """
    from modelassay.containers.session import TOOLKIT

    fix = next((fix for sign, fix in _EXPLAINED.items() if sign in said.lower()), TOOLKIT)
    return Check(name="GPU in a container", status="failed", required=False, detail=scrub_text(said), fix=fix)


def run_with_gpus(engine: Engine, image: LocalImage, command: tuple[str, ...]) -> tuple[int, list[str], str]:
    """Run ``command`` in a container with all GPUs; return its exit code, its lines, and how the GPUs were asked for.

    Raises:
        HostError: the engine refuses both ways.
    """
    import docker.errors
    import requests

    from modelassay.containers.engine import engine_errors, explanation
    from modelassay.containers.session import remove, why_not_started
    from modelassay.containers.settings import ContainerRequest, device_requests

    ask = ContainerRequest("request", ulimits=False)
    while True:
        with engine_errors("to make a container with GPUs"):
            container: Any = engine.client.containers.create(
                image.id, entrypoint=list(command), network_mode="none", device_requests=device_requests(ask.gpus)
            )
        try:
            container.start()
            code = int(container.wait(timeout=_TIMEOUT_S)["StatusCode"])
            said = container.logs().decode(errors="replace").splitlines()
            return code, [line.strip() for line in said if line.strip()], ask.in_words.partition(" and ")[0]
        except docker.errors.APIError as error:
            instead = ask.after(explanation(error))
            if instead is None:
                raise HostError(why_not_started(explanation(error), image)) from error
            ask = instead
        except requests.exceptions.RequestException as error:
            raise HostError(f"{command[0]} in {image.reference} has not ended after {_TIMEOUT_S} s") from error
        finally:
            with engine_errors("to remove a container"):
                remove(engine, container.id)


def _image(engine: Engine, name: str) -> LocalImage | None:
    from modelassay.containers.engine import find_image

    try:
        return find_image(engine, name)
    except HostError:
        return None
