"""What is recorded of the machine and the code, and what never is."""

import json
import os
import random
import string
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from modelassay.machine.environment import capture, in_container, kept_variables

COMMIT_ENVIRONMENT = {
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
}  # fmt: skip


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | COMMIT_ENVIRONMENT,
    )
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout to be, whose package counts as the one that runs."""
    folder = tmp_path / "bench/modelassay"
    folder.mkdir(parents=True)
    for name in ("__init__.py", "cli.py", "meter.py"):
        (folder / name).write_text("")
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/bottom_k.py").write_text("")
    monkeypatch.setattr("modelassay.machine.environment._PACKAGE", folder)
    return tmp_path


def test_capture_is_json_and_describes_this_process() -> None:
    captured = capture()
    assert json.loads(json.dumps(captured, allow_nan=False)) == captured
    assert captured["python"] == {
        "version": ".".join(map(str, sys.version_info[:3])),
        "implementation": sys.implementation.name.replace("cpython", "CPython"),
    }
    assert isinstance(captured["memory_bytes"], int)
    assert captured["memory_bytes"] > 2**26
    assert isinstance(captured["cpu"], dict)
    assert captured["cpu"]["logical_cores"] == os.cpu_count()


def test_capture_leaves_torch_alone() -> None:
    program = "import sys, json; from modelassay.machine.environment import capture; print(json.dumps([capture(), 'torch' in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=_with_path())
    captured, imported = json.loads(done.stdout)
    assert not imported
    assert captured["torch"] is None
    assert captured["libraries"]["torch"] is not None


def test_deep_capture_asks_torch() -> None:
    import torch

    deep = capture(deep=True)["torch"]
    assert isinstance(deep, dict)
    assert deep["num_threads"] == torch.get_num_threads()


@pytest.mark.parametrize("seed", range(5))
def test_no_secret_is_recorded(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Secrets planted in variables, kept and not, under telling and innocent names, and all over the command line."""
    rng = random.Random(seed)
    letters = string.ascii_letters + string.digits

    def fresh(prefix: str = "", length: int = 36, alphabet: str = letters) -> str:
        return prefix + "".join(rng.choices(alphabet, k=length))

    hexadecimal = "0123456789abcdef"
    variables = {
        "HF_TOKEN": fresh("hf_"), "WANDB_API_KEY": fresh(length=40, alphabet=hexadecimal), "TORCH_HUB_TOKEN": fresh(length=12),
        "PYTORCH_SECRET": fresh(length=12), "TRITON_AUTH_COOKIE": fresh(length=12), "NVIDIA_API_KEY": fresh("nvapi-"),
        "AWS_SECRET_ACCESS_KEY": fresh(length=40, alphabet=letters + "+/"), "OPENAI_API_KEY": fresh("sk-proj-"),
        "SOMEBODYS_PASSWORD": fresh(length=10), "TORCH_LOGS": fresh("ghp_"), "PYTORCH_CUDA_ALLOC_CONF": fresh("github_pat_"),
        "LANG": fresh("xoxb-"), "MODELASSAY_IMAGE_DIGEST": fresh("AKIA", 16, string.ascii_uppercase + string.digits),
        "TRITON_CACHE_DIR": f"/cache/{fresh('hf_')}", "CREDENTIALS": fresh(length=20), "HOME_SWEET": fresh(),
    }  # fmt: skip
    password, jwt, plain = (
        fresh(length=14),
        f"eyJ{fresh()}.eyJ{fresh()}.{fresh()}",
        fresh(length=30, alphabet=hexadecimal),
    )
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_ENDPOINT", f"https://someone:{password}@hub.example/api?token={plain}")
    monkeypatch.setenv("TORCH_STORE", f"--token {plain}")
    words = [
        variables["HF_TOKEN"],
        f"--x={variables['HF_TOKEN']}",
        "--token",
        plain,
        f"--token={plain}",
        "-o",
        f"a.token={plain}",
    ]
    words += ["-p", variables["SOMEBODYS_PASSWORD"], "--cookie", jwt, jwt, f"--url=https://u:{password}@h/x", "-H"]
    words += [
        f"Authorization: Bearer {plain}",
        "Bearer",
        plain,
        f"AUTH={plain}",
        f'{{"api_key": "{plain}"}}',
        f"note {jwt} x",
    ]
    monkeypatch.setattr(sys, "argv", ["/somewhere/run.py", *words])

    text = json.dumps(capture())
    for secret in (*variables.values(), password, jwt, plain):
        assert secret not in text
        assert json.dumps(secret)[1:-1] not in text
    assert "/somewhere" not in text
    assert "https://***@hub.example/api?token=***" in text
    assert '"command": ["run.py", "***"' in text


def test_only_listed_variables_are_kept() -> None:
    given = {
        "CUDA_VISIBLE_DEVICES": "0,1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "TRITON_INTERPRET": "1",
        "TORCH_HUB_TOKEN": "x", "HF_TOKEN": "x", "USER": "someone", "HOSTNAME": "host", "PATH": "/bin", "PYTHONHASHSEED": "0",
    }  # fmt: skip
    assert list(kept_variables(given)) == [
        "CUDA_VISIBLE_DEVICES", "PYTHONHASHSEED", "PYTORCH_CUDA_ALLOC_CONF", "TRITON_INTERPRET",
    ]  # fmt: skip


def test_image_digest_and_threads_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = "sha256:" + "24c8e358" * 8
    monkeypatch.setenv("MODELASSAY_IMAGE_DIGEST", digest)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    captured = capture()
    assert isinstance(captured["container"], dict)
    assert captured["container"]["image_digest"] == digest
    assert isinstance(captured["threads"], dict)
    assert captured["threads"]["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("mark", "text", "inside"),
    [
        (".dockerenv", "", True), ("run/.containerenv", "", True), ("proc/1/cgroup", "0::/kubepods/pod1\n", True),
        ("proc/1/cgroup", "1:cpu:/docker/24c8\n", True), ("proc/1/cgroup", "0::/init.scope\n", False), ("etc/x", "", False),
    ],
)  # fmt: skip
def test_container_marks(tmp_path: Path, mark: str, text: str, inside: bool) -> None:
    (tmp_path / mark).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / mark).write_text(text)
    assert in_container(tmp_path) is inside


def test_git_state_of_a_checkout(package: Path) -> None:
    _git(package, "init", "-q")
    _git(package, "add", "bench")
    _git(package, "commit", "-qm", "First")
    commit = _git(package, "rev-parse", "HEAD")
    (package / "kernels").rename(package.parent / "kernels-elsewhere")
    assert capture()["git"] == {"commit": commit, "dirty": False, "changed_files": 0}
    (package / "bench/modelassay/meter.py").write_text("changed")
    (package / "new.txt").write_text("new")
    assert capture()["git"] == {"commit": commit, "dirty": True, "changed_files": 2}


def test_an_installed_copy_below_somebodys_repository_is_no_checkout(package: Path) -> None:
    _git(package, "init", "-q")
    _git(package, "add", "kernels")
    _git(package, "commit", "-qm", "Something else")
    assert capture()["git"] is None


def test_git_may_be_absent(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _git(package, "init", "-q")
    _git(package, "add", ".")
    _git(package, "commit", "-qm", "First")
    monkeypatch.setenv("PATH", str(package))
    assert capture()["git"] is None


def test_gpus_come_from_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    fake_nvml = SimpleNamespace(
        NVMLError=RuntimeError, NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2,
        nvmlInit=lambda: None, nvmlShutdown=lambda: closed.append(True),
        nvmlSystemGetDriverVersion=lambda: b"580.10", nvmlSystemGetCudaDriverVersion_v2=lambda: 13020,
        nvmlDeviceGetCount=lambda: 1, nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: "NVIDIA Fake", nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=2**37),
        nvmlDeviceGetMaxClockInfo=lambda handle, kind: {1: 1980, 2: 3201}[kind],
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 700_000,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml)
    card = {
        "name": "NVIDIA Fake", "memory_bytes": 2**37, "max_sm_clock_mhz": 1980, "max_memory_clock_mhz": 3201,
        "power_limit_w": 700.0,
    }  # fmt: skip
    assert capture()["gpu"] == {"devices": [card], "driver": "580.10", "cuda": "13.2", "reason": None}
    assert closed == [True]


def test_without_nvml_the_reason_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpu = capture()["gpu"]
    assert isinstance(gpu, dict)
    assert gpu["devices"] == []
    assert str(gpu["reason"]).startswith("nvidia-ml-py is not installed")


def _with_path() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
