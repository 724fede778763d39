"""What a container is told, as the SDK would send it; no engine and no GPU needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from docker.types import HostConfig

from modelassay.containers import settings
from modelassay.containers.settings import Bind, ContainerRequest, Settings, host_settings
from modelassay.suite import Suite, load_suite
from support.toy_suite import SUITE, write_suite


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))


NO_GPU = ContainerRequest("none")


def told(ask: ContainerRequest = NO_GPU, **changed: Any) -> dict[str, Any]:
    """The host part of the engine's request, through JSON as it goes over the wire."""
    one = Settings(
        folder=Path("/w/runs/a"), binds=(Bind(path=Path("/w/runs/a"), source=Path("/disk/a"), writable=True),),
        environment={}, user="1000:1000", network="none", memory_bytes=None, shm_bytes=16 << 30, own_user_ids=False,
        client="c",
    )  # fmt: skip
    values = {name: changed.get(name, getattr(one, name)) for name in Settings.__dataclass_fields__}
    request: dict[str, Any] = json.loads(
        json.dumps(HostConfig(version="1.41", **host_settings(Settings(**values), ask)))
    )
    return request


def suite_of(folder: Path, more: str = "") -> Suite:
    return load_suite(str(write_suite(folder, SUITE.replace("steps: 24", f"steps: 24{more}"))))


def test_gpus_are_asked_for_by_the_engines_driver() -> None:
    assert told(ContainerRequest("request"))["DeviceRequests"] == [
        {"Driver": "", "Count": -1, "DeviceIDs": [], "Capabilities": [["gpu"]], "Options": {}}
    ]


def test_gpus_are_asked_for_by_cdi_as_fallback() -> None:
    assert told(ContainerRequest("cdi"))["DeviceRequests"] == [
        {"Driver": "cdi", "Count": 0, "DeviceIDs": ["nvidia.com/gpu=all"], "Capabilities": [], "Options": {}}
    ]


def test_without_a_gpu_none_is_asked_for() -> None:
    assert not told().get("DeviceRequests")


REFUSALS = [
    ('could not select device driver "" with capabilities: [[gpu]]', ContainerRequest("cdi")),
    ('could not select device driver "nvidia" with capabilities: [[gpu]]', ContainerRequest("cdi")),
    ("error running prestart hook: nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1", ContainerRequest("cdi")),
    ("error setting rlimits for ready process: error setting rlimit type 8: operation not permitted", ContainerRequest("request", ulimits=False)),
    ("invalid mount config for type \"bind\": bind source path does not exist: /w/runs/a", None),
    ("no space left on device", None),
]  # fmt: skip


@pytest.mark.parametrize(("refusal", "then"), REFUSALS, ids=[refusal[:40] for refusal, _ in REFUSALS])
def test_what_follows_a_refusal(refusal: str, then: ContainerRequest | None) -> None:
    assert ContainerRequest("request").after(refusal) == then


def test_there_is_an_end_to_asking_for_less() -> None:
    """Both fallbacks once each, in either order, and no third try."""
    gpu, limit = 'could not select device driver "cdi"', "error setting rlimit type 8"
    for first, second in ((gpu, limit), (limit, gpu)):
        then = ContainerRequest("request").after(first)
        assert then is not None
        last = then.after(second)
        assert last == ContainerRequest("cdi", ulimits=False)
        assert (last.after(gpu), last.after(limit)) == (None, None)
    assert ContainerRequest("none").after(gpu) is None


def test_a_container_may_do_as_little_as_possible() -> None:
    request = told()
    assert request["NetworkMode"] == "none"
    assert request["ReadonlyRootfs"] is True
    assert request["CapDrop"] == ["ALL"]
    assert request["SecurityOpt"] == ["no-new-privileges"]
    assert request["GroupAdd"] == ["0"]
    assert request["AutoRemove"] is True
    assert request["Init"] is True
    assert request["PidsLimit"] == 16_384
    assert not request.get("Privileged")
    assert request["Tmpfs"] == {"/tmp": "rw,exec,nosuid,nodev,mode=1777"}
    assert request["Mounts"] == [{"Target": "/w/runs/a", "Source": "/disk/a", "Type": "bind", "ReadOnly": False}]
    assert request["Ulimits"] == [
        {"Name": "memlock", "Soft": -1, "Hard": -1}, {"Name": "stack", "Soft": 67108864, "Hard": 67108864},
    ]  # fmt: skip
    assert not told(ContainerRequest("none", ulimits=False)).get("Ulimits")


def test_memory_limit_bounds_everything_that_takes_memory() -> None:
    limit = 4 << 30
    request = told(memory_bytes=limit, shm_bytes=settings.shm_bytes(limit, 256 << 30))
    assert (request["Memory"], request["MemorySwap"], request["ShmSize"]) == (limit, limit, limit)
    assert request["Tmpfs"]["/tmp"].endswith(f",size={limit // 2}")
    assert settings.shm_bytes(None, 256 << 30) == 16 << 30
    assert settings.shm_bytes(None, 8 << 30) == 8 << 30


def test_user_ids_are_the_callers_also_where_the_engine_remaps_them() -> None:
    assert told(own_user_ids=True)["UsernsMode"] == "host"
    assert not told().get("UsernsMode")


def test_folders_below_roots_home_can_be_reached_by_others() -> None:
    below = (Bind(path=Path("/root/runs/a"), source=Path("/root/runs/a"), writable=True),)
    assert told(binds=below)["Tmpfs"]["/root"] == "rw,nosuid,nodev,mode=0755"
    assert "/root" not in told(binds=below, user="0:0")["Tmpfs"]


@pytest.mark.parametrize(
    ("params", "environ", "offline"),
    [
        ("", {}, True),
        (", tags: [zoo:x]", {}, True),
        (", note: hf:a/b", {}, True),
        (", tags: [x, hf:a/b]", {}, False),
        (", tags: [hf:a/b]", {"HF_HUB_OFFLINE": "1"}, True),
        (", tags: [hf:a/b]", {"HF_HUB_OFFLINE": "0"}, False),
    ],
)
def test_network_only_where_a_parameter_names_a_model_of_the_hub(
    tmp_path: Path, params: str, environ: dict[str, str], offline: bool
) -> None:
    assert settings.is_offline(suite_of(tmp_path, params), environ) is offline


def test_token_is_handed_on_only_with_a_network(tmp_path: Path) -> None:
    environ = {
        "HF_TOKEN": "secret",
        "HTTPS_PROXY": "http://proxy",
        "OMP_NUM_THREADS": "3",
        "AWS_SECRET": "x",
        "HOME": "/h",
    }
    online, offline = (settings.environment(environ, offline=value) for value in (False, True))
    assert (online["HF_TOKEN"], online["HTTPS_PROXY"]) == ("secret", "http://proxy")
    assert not {"HF_TOKEN", "HTTPS_PROXY"} & set(offline)
    assert (offline["HF_HUB_OFFLINE"], online.get("HF_HUB_OFFLINE")) == ("1", None)
    for passed in (online, offline):
        assert (passed["OMP_NUM_THREADS"], passed["HOME"]) == ("3", "/tmp")
        assert passed["MODELASSAY_CACHE"] == str(tmp_path / "cache")
        assert passed["MODELASSAY_LIFELINE"] == "stdin"
        assert "AWS_SECRET" not in passed


def shown(suite: Suite, folder: Path, environ: dict[str, str], **more: Any) -> dict[str, bool]:
    found = settings.binds(suite, folder, environ, **{"offline": True, "suite_file": False, **more})
    return {str(bind.path): bind.writable for bind in found}


def test_caches_and_the_run_are_writable_and_all_else_is_not(tmp_path: Path) -> None:
    run, cache, hub = Path("runs/a"), str(tmp_path / "cache"), str(tmp_path / "hf/hub")
    (tmp_path / "models/one").mkdir(parents=True)
    (tmp_path / "models/one/config.json").write_text("{}")
    environ = {"HF_HOME": str(tmp_path / "hf")}
    local = suite_of(tmp_path, ", tags: [models/one]")
    writable = {str(tmp_path / "runs/a"): True, cache: True}
    suite_file = {str(tmp_path / "walk.yaml"): False}
    assert shown(local, run, environ, suite_file=True) == writable | suite_file | {str(tmp_path / "models/one"): False}
    online = suite_of(tmp_path, ", tags: [hf:a/b]")
    assert shown(online, run, environ, offline=False) == writable | {hub: True}
    assert shown(online, run, environ) == writable  # nothing was ever fetched
    Path(hub).mkdir(parents=True)
    assert shown(online, run, environ) == writable | {hub: False}
