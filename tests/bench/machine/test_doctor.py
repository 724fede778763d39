"""The examination of a machine, whole and broken."""

import http.server
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelassay.machine import doctor
from modelassay.machine.doctor import Check, Probe

Usage = namedtuple("Usage", "total used free")  # what shutil.disk_usage returns


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules the probes' interpreters import first."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_this_machine_can_run_the_bench(tmp_path: Path) -> None:
    checks = {check.name: check for check in doctor.examine(runs=tmp_path / "runs")}
    assert list(checks) == [
        "Python", "torch", "transformers", "native extension", "triton", "GPU", "C++ compiler", "C compiler",
        "cache folder", "cache disk", "runs folder", "shared memory", "git", "Hub",
    ]  # fmt: skip
    assert [check.name for check in checks.values() if check.required] == [
        "Python", "torch", "transformers", "cache folder", "runs folder",
    ]  # fmt: skip
    assert [check for check in checks.values() if check.required and check.status != "ok"] == []
    assert [check for check in checks.values() if (check.fix is None) != (check.status == "ok")] == []


def test_nothing_at_all_is_examined_without_an_error(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No library imports, no compiler, no git, no driver, folders that are files."""
    for name in ("torch", "transformers", "triton"):
        (stand_ins / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\")")
    monkeypatch.setenv("PATH", str(stand_ins))
    monkeypatch.setenv("MODELASSAY_CACHE", str(stand_ins / "torch.py"))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    for compiler in ("CC", "CXX"):
        monkeypatch.delenv(compiler, raising=False)
    checks = {check.name: check for check in doctor.examine(runs=stand_ins / "torch.py/runs")}
    depends = ("native extension", "shared memory", "cache disk")  # on whether it was built, and on this machine
    assert {name: check.status for name, check in checks.items() if check.status != "ok" and name not in depends} == {
        "torch": "missing", "transformers": "missing", "triton": "missing", "GPU": "missing", "C++ compiler": "missing",
        "C compiler": "missing", "cache folder": "failed", "runs folder": "failed", "git": "missing",
    }  # fmt: skip
    assert checks["torch"].detail == "ModuleNotFoundError: No module named 'torch'"
    assert checks["runs folder"].detail.endswith("torch.py: not a directory")


@pytest.mark.parametrize(
    ("source", "failure"),
    [
        ("raise ImportError('libcudart.so.13: cannot open')", "ImportError: libcudart.so.13: cannot open"),
        ("import os; os.abort()", "importing triton ended the interpreter by SIGABRT"),
        ("import sys; sys.exit(5)", "the interpreter ended with status 5"),
        ("raise RuntimeError('bad token hf_abcdefghijklmnop')", "RuntimeError: bad token ***"),
    ],
)
def test_an_import_fails_alone_and_says_how(stand_ins: Path, source: str, failure: str) -> None:
    (stand_ins / "triton.py").write_text(source)
    check = doctor.check_library("triton", doctor.probe("triton"), None, required=False)
    assert (check.status, check.detail, check.fix) == ("failed", failure, "pip install 'triton'")


def test_an_import_that_hangs_ends(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (stand_ins / "triton.py").write_text("import time; time.sleep(600)")
    monkeypatch.setattr(doctor, "_IMPORT_TIMEOUT_S", 0.2)
    assert doctor.probe("triton").failure == "importing triton took more than 0.2 s"


def test_import_noise_does_not_hide_the_facts(stand_ins: Path) -> None:
    (stand_ins / "triton.py").write_text("print('hello', end=''); __version__ = '9.9'")
    assert doctor.probe("triton").facts == {"version": "9.9"}


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 10), "failed"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "failed"), ((2, 7), "failed")],
)
def test_python_versions(version: tuple[int, int], status: str) -> None:
    assert doctor.check_python(version).status == status


@pytest.mark.parametrize(
    ("version", "status"), [("2.10.1", "failed"), ("2.11.0", "ok"), ("2.13.0+cpu", "ok"), ("3.0", "ok")]
)
def test_torch_versions(version: str, status: str) -> None:
    check = doctor.check_torch(Probe(facts={"version": version, "threads": 2, "cuda": None, "gpus": 0}))
    assert check.status == status
    assert check.detail == (f"{version}, CPU build, 2 threads" if status == "ok" else f"{version} is too old")
    assert check.fix == (None if status == "ok" else "pip install 'torch>=2.11'")


@pytest.mark.parametrize(
    ("cuda", "num_gpus", "status", "trouble"),
    [
        ("13.0", 1, "ok", ""),
        (None, 0, "failed", "torch is a CPU build"),
        ("13.0", 0, "failed", "built for CUDA 13.0, sees none"),
    ],
)
def test_gpu_is_compared_with_what_torch_sees(cuda: str | None, num_gpus: int, status: str, trouble: str) -> None:
    torch_found = Probe(facts={"version": "2.13.0", "threads": 2, "cuda": cuda, "gpus": num_gpus})
    check = doctor.check_gpu(["NVIDIA Fake"], "580.10", torch_found)
    assert check.status == status
    assert check.detail.startswith("NVIDIA Fake; driver 580.10")
    assert check.detail.endswith(trouble)


def test_native_extension_names_its_file_or_its_stand_in() -> None:
    assert doctor.check_native(Probe(facts={"file": "/x/_native.abi3.so"})).detail == "_native.abi3.so"
    missing = doctor.check_native(Probe(facts=None, failure="no module", absent=True))
    assert (missing.status, missing.required) == ("missing", False)
    assert "the PyTorch reference serves" in missing.detail


def test_the_named_compiler_counts_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "mycc"
    compiler.write_text("#!/bin/sh\necho mycc 9.9\necho more\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("CXX", "mycc -O2")
    found = doctor.check_compiler("C++ compiler", "CXX", ("c++",))
    assert (found.status, found.detail) == ("ok", "mycc 9.9")
    monkeypatch.setenv("CXX", "absent-cc")
    gone = doctor.check_compiler("C++ compiler", "CXX", ("mycc",))
    assert (gone.status, gone.detail) == ("missing", "none of absent-cc (from CXX)")


def test_folders_need_not_exist_but_must_be_writable(tmp_path: Path) -> None:
    assert doctor.check_writable("runs folder", tmp_path / "a/b/c").status == "ok"
    assert list(tmp_path.iterdir()) == [], "the check leaves nothing behind"
    check = doctor.check_writable("cache folder", Path("/proc/modelassay"))
    assert (check.status, check.required) == ("failed", True)
    assert check.detail.startswith("/proc: ")
    assert "MODELASSAY_CACHE" in str(check.fix)


@pytest.mark.parametrize(("free_gb", "status"), [(4.9, "failed"), (5.0, "ok")])
def test_free_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_gb: float, status: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(10**12, 0, round(free_gb * 10**9)))
    check = doctor.check_free_disk(tmp_path / "not/yet")
    assert (check.status, check.required) == (status, False)
    assert check.detail.startswith(f"{free_gb} GB free")


def test_shared_memory_of_a_default_container_is_too_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.check_shared_memory(tmp_path / "shm").status == "missing"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(64 * 2**20, 0, 64 * 2**20))
    check = doctor.check_shared_memory(tmp_path)
    assert (check.status, check.fix) == ("failed", "in a container start it with --shm-size=16g or --ipc=host")


class _Hub(http.server.BaseHTTPRequestHandler):
    """A hub on this machine that notes what it is asked and sends every visitor elsewhere."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        self.send_response(302)
        self.send_header("Location", "http://elsewhere.invalid/")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.HTTPServer]:
    _Hub.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", f"http://someone:hunter22@127.0.0.1:{server.server_port}/mirror")
    yield server
    server.shutdown()
    server.server_close()


def test_hub_is_asked_once_and_followed_nowhere(hub: http.server.HTTPServer) -> None:
    check = doctor.check_hub()
    assert check == Check(
        name="Hub", status="ok", required=False, detail=f"http://***@127.0.0.1:{hub.server_port}/mirror answers"
    )
    assert _Hub.asked == ["HEAD /mirror"]


def test_hub_is_not_asked_when_offline(hub: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert doctor.check_hub().status == "ok"
    assert _Hub.asked == []


def test_hub_that_does_not_answer_is_optional_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    waiting = threading.Event()
    monkeypatch.setattr(doctor, "_head", lambda endpoint: str(waiting.wait(timeout=60)))
    monkeypatch.setattr(doctor, "HUB_TIMEOUT_S", 0.05)
    check = doctor.check_hub()
    waiting.set()
    assert (check.status, check.required) == ("failed", False)
    assert check.detail == "https://huggingface.co: no answer within 0.05 s"


@pytest.mark.parametrize("endpoint", ["ftp://hub.example", "hub.example", "http://127.0.0.1:1", "http://h:port"])
def test_bad_endpoints_are_reported(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    check = doctor.check_hub()
    assert check.status == "failed"
    assert check.detail.startswith(f"{endpoint}: ")
