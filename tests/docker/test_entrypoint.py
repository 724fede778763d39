"""docker/entrypoint.sh: run by sh with a `modelassay` that says what it was given; once more inside the real image."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import open_to_all

ENTRYPOINT = Path(__file__).parents[2] / "docker/entrypoint.sh"

# Stands for modelassay: says as whom, with what arguments, environment and capabilities it runs.
TELLS = """#!/bin/sh
for argument; do echo "argument=$argument"; done
echo "uid=$(id -u)"; echo "gid=$(id -g)"; echo "groups=$(id -G)"
while read -r key value; do case $key in Cap*:|NoNewPrivs:) echo "$key$value";; esac; done </proc/self/status
env
"""
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")


class Entry:
    """The entry point in a folder that stands for the container's working directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        (programs / "modelassay").write_text(TELLS)
        (programs / "modelassay").chmod(0o755)
        open_to_all(folder)

    def run(self, *arguments: str, user: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        become = [] if user is None else ["setpriv", *self.options(user)]
        path = f"{self.folder / 'bin'}:{os.defpath}"
        return subprocess.run([*become, "sh", ENTRYPOINT, *arguments], cwd=self.folder, env={"PATH": path, **environ},
                              capture_output=True, text=True, check=False)  # fmt: skip

    @staticmethod
    def options(user: str) -> list[str]:
        uid, gid = user.split(":")
        return ["--reuid", uid, "--regid", gid, "--clear-groups"]

    def report(self, *arguments: str, user: str | None = None, **environ: str) -> dict[str, str]:
        done = self.run(*arguments, user=user, **environ)
        assert done.returncode == 0, done.stderr
        return parsed(done.stdout)


def parsed(output: str) -> dict[str, str]:
    return dict(line.replace(":", "=", 1).split("=", 1) if line.startswith(("Cap", "NoNew")) else line.split("=", 1)
                for line in output.splitlines() if "=" in line or line.startswith(("Cap", "NoNew")))  # fmt: skip


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    folder = tmp_path / "working-directory"
    folder.mkdir()
    return Entry(folder)


def test_arguments_arrive_as_they_were_given(entry: Entry) -> None:
    done = entry.run("run", "my suite.yaml", "-o", "a=$HOME *", "")
    assert [line for line in done.stdout.splitlines() if line.startswith("argument=")] == [
        "argument=run",
        "argument=my suite.yaml",
        "argument=-o",
        "argument=a=$HOME *",
        "argument=",
    ]


def test_exit_code_is_the_programs(entry: Entry) -> None:
    (entry.folder / "bin/modelassay").write_text("#!/bin/sh\nexit 5\n")
    assert entry.run().returncode == 5


def test_caches_are_under_a_home_that_can_be_written(entry: Entry) -> None:
    home = entry.folder / "home"
    home.mkdir()
    report = entry.report(HOME=str(home))
    assert report["HOME"] == str(home)
    assert {name: report[name] for name in ("XDG_CACHE_HOME", "HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR",
                                          "MODELASSAY_CACHE")} == {
        "XDG_CACHE_HOME": f"{home}/.cache",
        "HF_HOME": f"{home}/.cache/huggingface",
        "TRITON_CACHE_DIR": f"{home}/.cache/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{home}/.cache/torchinductor",
        "MODELASSAY_CACHE": f"{home}/.cache/modelassay",
    }  # fmt: skip


@pytest.mark.parametrize("home", ["", "/", "/nonexistent", "/proc"])
@AS_ROOT
def test_home_that_cannot_be_written_gives_way(entry: Entry, home: str) -> None:
    report = entry.report(user="54321:0", HOME=home)
    assert report["HOME"] == "/tmp"
    assert report["HF_HOME"] == "/tmp/.cache/huggingface"


def test_what_the_caller_gave_is_kept(entry: Entry) -> None:
    environ = {"HOME": str(entry.folder), "XDG_CACHE_HOME": "/a", "HF_HOME": "/b", "TRITON_CACHE_DIR": "/c",
             "TORCHINDUCTOR_CACHE_DIR": "/d", "MODELASSAY_CACHE": "/e", "USER": "f", "LOGNAME": "g"}  # fmt: skip
    report = entry.report(**environ)
    assert {name: report[name] for name in environ} == environ


def test_one_cache_is_under_another_that_the_caller_gave(entry: Entry) -> None:
    assert entry.report(HOME=str(entry.folder), XDG_CACHE_HOME="/a")["HF_HOME"] == "/a/huggingface"


@AS_ROOT
def test_user_without_a_name_gets_one(entry: Entry) -> None:
    """torch's compiler and others ask for the user's name, and fail where there is none."""
    report = entry.report(user="54321:0")
    assert (report["uid"], report["gid"]) == ("54321", "0")
    assert report["USER"] == report["LOGNAME"] == "user54321"


@AS_ROOT
def test_root_becomes_the_owner_of_the_runs_folder(entry: Entry) -> None:
    runs = entry.folder / "runs"
    runs.mkdir()
    os.chown(runs, 1234, 4321)
    report = entry.report("run", "fingerprinting", HOME="/root")
    assert (report["uid"], report["gid"], report["groups"]) == ("1234", "4321", "4321 0")
    assert int(report["CapEff"].strip(), 16) == 0
    assert report["NoNewPrivs"].strip() == "1"
    assert report["HOME"] == "/tmp"
    assert report["argument"] == "fingerprinting"


@AS_ROOT
def test_root_in_its_own_folder_keeps_no_capability(entry: Entry) -> None:
    (entry.folder / "runs").mkdir()
    report = entry.report(HOME="/root")
    assert report["uid"] == "0"
    assert int(report["CapEff"].strip(), 16) == int(report["CapBnd"].strip(), 16) == 0


@AS_ROOT
def test_without_a_runs_folder_the_working_directory_decides(entry: Entry) -> None:
    os.chown(entry.folder, 1234, 0)
    assert entry.report()["uid"] == "1234"


@AS_ROOT
def test_root_that_may_not_become_another_says_how_to_start_it(entry: Entry) -> None:
    (entry.folder / "runs").mkdir()
    os.chown(entry.folder / "runs", 1234, 0)
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "sh", ENTRYPOINT, "--version"],
        cwd=entry.folder, env={"PATH": os.defpath}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 6
    assert "start it with --user 1234:0" in done.stderr


# --- inside the image


@pytest.fixture
def inside(engine: Any, cpu_image: str, tmp_path: Path) -> Any:
    """Run the image with the stand-in before modelassay on its PATH; returns what the stand-in reported."""
    stand_in = tmp_path / "stand-in"
    stand_in.mkdir()
    (stand_in / "modelassay").write_text(TELLS)
    (stand_in / "modelassay").chmod(0o755)

    def run(runs: Path, **options: Any) -> dict[str, str]:
        volumes = {str(runs): {"bind": "/runs"}, str(stand_in): {"bind": "/stand-in", "mode": "ro"}}
        path = "/stand-in:/opt/modelassay/bin:/usr/local/bin:/usr/bin:/bin"
        output = engine.containers.run(cpu_image, remove=True, volumes=volumes, environment={"PATH": path}, **options)
        return parsed(output.decode())

    return run


HARDENED = {"network_mode": "none", "read_only": True, "tmpfs": {"/tmp": "mode=1777"}, "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"]}  # fmt: skip


@AS_ROOT
@pytest.mark.parametrize(
    ("options", "uid", "home"),
    [
        ({}, "1234", "/home/modelassay"),
        ({"user": "1234:0"}, "1234", "/home/modelassay"),
        ({"user": "1234:0", **HARDENED}, "1234", "/tmp"),
        ({"user": "77:77", **HARDENED}, "77", "/tmp"),
    ],
)
def test_image_runs_as_the_caller_with_a_home(inside: Any, owner: tuple[int, int], tmp_path: Path,
                                              options: dict[str, Any], uid: str, home: str) -> None:  # fmt: skip
    report = inside(tmp_path / "runs", **options)
    assert (report["uid"], report["HOME"], report["PWD"]) == (uid, home, "/")
    assert int(report["CapEff"].strip(), 16) == 0
    assert report["USER"] == f"user{uid}"


@AS_ROOT
def test_image_in_a_folder_of_roots_is_root_without_capabilities(inside: Any, tmp_path: Path) -> None:
    folder = tmp_path / "roots"
    folder.mkdir()
    report = inside(folder)
    assert (report["uid"], int(report["CapEff"].strip(), 16)) == ("0", 0)
