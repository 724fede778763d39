"""The scripts that people and CI share, run with stand-ins for pip, pytest and modelassay."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
SCRIPTS = ["ci/benchmark-kernels", "ci/check", "ci/demo", "ci/image", "ci/lock", "ci/nightly", "ci/peers", "ci/test",
           "ci/test-bare", "ci/test-docker", "ci/test-gpu", "ci/venv", ".ci/run"]  # fmt: skip

# Stands for every program the scripts call: notes its name and arguments, and fails when FAIL names what is called.
RECORDER = """#!/bin/bash
case "$*" in *--version*) echo 3.11; exit;; -c*|-) cat >/dev/null; exit "${NO_GPU:-1}";; esac
echo "$(basename "$0") $*" >>"$CALLS"
case "$(basename "$0") $*" in *"${FAIL:-nothing fails}"*) exit 7;; esac
"""


class Checkout:
    """A copy of the scripts with an active virtual environment that holds only recorders."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder / "checkout", folder / "calls"
        for name in (*SCRIPTS, "pyproject.toml", "ci/constraints.txt"):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.folder / name)
        for name in (
            "kernels/csrc/op.cpp",
            "suites/one.yaml",
            "suites/two.yaml",
            "kernels/modelassay_kernels/__init__.py",
            "runs/fingerprinting-20260101T000000Z-a/x",
        ):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text("")
        (self.folder / "runs/fingerprinting-20260102T000000Z-b").mkdir()
        programs = folder / "venv/bin"
        programs.mkdir(parents=True)
        for name in ("python", "python3", "modelassay", "ruff", "mypy", "lint-imports", "hf"):
            (programs / name).write_text(RECORDER)
            (programs / name).chmod(0o755)

    def run(self, script: str, *arguments: str, **environ: str) -> tuple[int, str, list[str]]:
        """Return exit code, both outputs together, and the calls made."""
        self.calls.write_text("")
        settings = {"VIRTUAL_ENV": str(self.calls.with_name("venv")), "CALLS": str(self.calls), **environ}
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "CXX")}
        done = subprocess.run(
            [self.folder / script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=kept | settings,
            check=False,
            cwd="/",
        )
        return done.returncode, done.stdout, self.calls.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_strict_and_well_formed(script: str) -> None:
    path = ROOT / script
    text = path.read_text()
    assert os.access(path, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text or '\nsource "$(dirname "$0")/venv"\n' in text
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


def test_venv_installs_torch_by_its_pin_before_all_else(checkout: Checkout) -> None:
    code, _, calls = checkout.run("ci/venv")
    pins = (ROOT / "ci/constraints.txt").read_text().splitlines()
    assert code == 0
    assert [call.split("--constraint ci/constraints.txt ")[1] for call in calls] == [
        next(pin for pin in pins if pin.startswith("torch==")),
        "scikit-build-core nanobind cmake ninja",
        "--no-build-isolation --editable .[dev]",
    ]


def test_venv_installs_once_for_the_same_sources(checkout: Checkout) -> None:
    assert len(checkout.run("ci/venv")[2]) == 3
    assert checkout.run("ci/venv")[2] == []


@pytest.mark.parametrize(
    "changed",
    ["pyproject.toml", "ci/constraints.txt", "kernels/csrc/op.cpp", "kernels/csrc/new.hpp", "kernels/moved.py"],
)
def test_venv_installs_again_after_a_change(checkout: Checkout, changed: str) -> None:
    checkout.run("ci/venv")
    with (checkout.folder / changed).open("a") as file:
        file.write("# changed\n")
    assert len(checkout.run("ci/venv")[2]) == 3


def test_venv_forgets_an_install_that_failed(checkout: Checkout) -> None:
    code, _, calls = checkout.run("ci/venv", FAIL="--editable")
    assert (code, len(calls)) == (7, 3)
    assert len(checkout.run("ci/venv")[2]) == 3


def test_venv_says_which_python_it_wants(checkout: Checkout) -> None:
    code, output, _ = checkout.run("ci/venv", VIRTUAL_ENV="", PYTHON="absent-python")
    assert code == 6
    assert "no Python 3.11 to 3.13 among absent-python" in output


def test_demo_runs_the_first_experiment_and_says_where_the_run_is(checkout: Checkout) -> None:
    checkout.run("ci/venv")
    code, output, calls = checkout.run("ci/demo", "--profile", "smoke")
    assert (code, calls) == (0, ["modelassay run fingerprinting --profile quick --profile smoke"])
    assert "The run is runs/fingerprinting-20260102T000000Z-b;" in output


def test_demo_keeps_the_exit_code(checkout: Checkout) -> None:
    checkout.run("ci/venv")
    code, output, _ = checkout.run("ci/demo", FAIL="fingerprinting")
    assert code == 7
    assert "The run is" in output


def test_tests_pass_their_arguments_on(checkout: Checkout) -> None:
    checkout.run("ci/venv")
    assert checkout.run("ci/test", "tests/bench", "-k", "scrub")[2] == [
        "python -m pytest -m not gpu and not nightly tests/bench -k scrub"
    ]


def test_check_runs_everything_even_after_a_failure(checkout: Checkout) -> None:
    checkout.run("ci/venv")
    code, _, calls = checkout.run("ci/check", FAIL="ruff format")
    assert code == 1
    assert calls[:4] == ["ruff format --check .", "ruff check .", "mypy ", "lint-imports --no-cache"]
    assert set(calls[4].split()) == {"modelassay", "check", "suites/one.yaml", "suites/two.yaml"}
    assert checkout.run("ci/check")[0] == 0


def test_the_whole_is_tested_by_a_process_more_than_cores(checkout: Checkout) -> None:
    checkout.run("ci/venv")
    (call,) = checkout.run("ci/test")[2]
    options = call.removeprefix("python -m pytest -m not gpu and not nightly ").split()
    assert options[0] == "--numprocesses"
    assert 2 <= int(options[1]) <= 4
    assert options[2:] == ["--dist", "loadfile", "--no-loadscope-reorder", "--cpu", "30"]
    assert checkout.run("ci/test", FAIL="--dist")[0] == 7


def test_nightly_gates_runs_every_suite_and_ends_with_the_first_failure(checkout: Checkout, tmp_path: Path) -> None:
    checkout.run("ci/venv")
    code, _, calls = checkout.run("ci/nightly", FAIL="run one", NIGHTLY=str(tmp_path / "nights"))
    assert code == 7
    base, candidate = calls[0].removeprefix("modelassay compare --rerun ").split()[:2]
    assert base == candidate
    assert candidate.endswith("/build")
    suites = [call for call in calls if call.startswith("modelassay run ") and "peers" not in call]
    assert [call.split(" --into ")[0] for call in suites] == [
        "modelassay run one --profile embedded",
        "modelassay run two --profile embedded",
    ]
    assert (tmp_path / "nights/good").is_dir()
    assert any(
        call == "modelassay run fingerprinting --profile embedded -o peers=[modeldna, cisco-ai-provenance-kit]"
        for call in calls
    )
    assert [call for call in calls if call.endswith(("-m nightly", "--ignore tests/docker"))] == [
        "python -m pytest -m not gpu and not nightly -m nightly --ignore tests/docker",
        "python -m pytest -rs -m not nightly tests/docker -m nightly",
    ]
    assert any(call.endswith("tests/benchmarks") for call in calls)
    assert any("modelassay_kernels.benchmarking" in call for call in calls)


def test_a_quick_night_gates_against_the_last_good_and_keeps_it_where_the_gate_fails(
    checkout: Checkout, tmp_path: Path
) -> None:
    checkout.run("ci/venv")
    nights = str(tmp_path / "nights")
    assert checkout.run("ci/nightly", "--quick", NIGHTLY=nights)[0] == 0
    mark = tmp_path / "nights/good/mark"
    mark.write_text("of the first night")
    code, _, calls = checkout.run("ci/nightly", "--quick", FAIL="--rerun", NIGHTLY=nights)
    assert code == 7
    assert calls[0].startswith(f"modelassay compare --rerun {nights}/good {nights}/")
    assert not list((tmp_path / "nights").glob("*/build"))
    assert mark.exists()
    assert not any("-m pytest" in call for call in calls)
    assert checkout.run("ci/nightly", "--quick", NIGHTLY=nights, NIGHTLY_DATASET="org/nights")[0] == 0
    assert not mark.exists()
    assert checkout.run("ci/nightly", "--slow")[0] == 2


def test_a_night_takes_up_the_good_build_that_a_killed_one_had_set_aside(checkout: Checkout, tmp_path: Path) -> None:
    checkout.run("ci/venv")
    nights = tmp_path / "nights"
    (nights / "good.old").mkdir(parents=True)
    _, _, calls = checkout.run("ci/nightly", "--quick", NIGHTLY=str(nights))
    assert calls[0].startswith(f"modelassay compare --rerun {nights}/good {nights}/")
    assert sorted(path.name for path in nights.glob("good*")) == ["good"]


def test_a_night_in_containers_takes_the_image_for_the_machine(checkout: Checkout, tmp_path: Path) -> None:
    checkout.run("ci/venv")
    place = {"NIGHTLY": str(tmp_path / "nights"), "NIGHTLY_IN": "container"}

    def options(**environ: str) -> set[str]:
        calls = checkout.run("ci/nightly", "--quick", **place, **environ)[2]
        return {call.rpartition("--in ")[2] for call in calls if call.startswith("modelassay run")}

    assert options(NIGHTLY_IMAGE="core", NIGHTLY_UNLOCKED="1") == {"container --image core --allow-unlocked"}
    if shutil.which("nvidia-smi") is None:
        assert options() == {"container --image cpu"}
    code, output, calls = checkout.run("ci/nightly", "--quick", NIGHTLY=place["NIGHTLY"], NIGHTLY_IN="a box")
    assert (code, calls) == (2, [])
    assert "NIGHTLY_IN is a box; it may be container, or empty" in output


def test_the_workflow_calls_the_script_and_nothing_else() -> None:
    jobs = YAML(typ="safe").load(ROOT / ".github/workflows/nightly.yml")["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands == ["ci/nightly", "ci/nightly --quick"]


def test_gpu_tests_need_a_gpu(checkout: Checkout) -> None:
    code, _, calls = checkout.run("ci/test-gpu")
    assert (code, calls) == (6, [])


def test_gpu_tests_are_followed_by_benchmarks_even_when_they_fail(checkout: Checkout) -> None:
    path = f"{checkout.calls.with_name('venv')}/bin:{os.environ['PATH']}"
    code, _, calls = checkout.run("ci/test-gpu", NO_GPU="0", FAIL="tests/kernels", PATH=path)
    assert code == 7
    assert [call.split()[-1] for call in calls] == ["tests/kernels", "kernels/benchmarks/results"]
    assert " -m gpu " in calls[0]


def test_gpu_tests_are_collected_without_a_gpu(checkout: Checkout) -> None:
    path = f"{checkout.calls.with_name('venv')}/bin:{os.environ['PATH']}"
    code, _, calls = checkout.run("ci/test-gpu", "--collect-only", PATH=path)
    assert code == 0
    assert [call.endswith(("tests/kernels --collect-only", "--device cuda --collect-only -q")) for call in calls] == [
        True
    ] * 2


def test_image_is_built_from_the_wheels_of_its_lock(checkout: Checkout) -> None:
    checkout.run("ci/venv")
    code, _, calls = checkout.run("ci/image", "core", "--base", "other:1")
    fetched = "python docker/locks/resolve.py fetch core docker/wheels"
    assert (code, calls) == (0, [fetched, "modelassay images build core --base other:1"])
    assert checkout.run("ci/image", FAIL="fetch")[2] == ["python docker/locks/resolve.py fetch cpu docker/wheels"]


def test_locks_are_resolved_and_then_pinned(checkout: Checkout) -> None:
    checkout.run("ci/venv")
    assert checkout.run("ci/lock", "cpu")[2] == ["python docker/locks/resolve.py lock cpu", "modelassay images lock"]


def test_peers_are_installed_by_exact_version_and_bring_nothing_along(checkout: Checkout) -> None:
    checkout.run("ci/venv")
    code, _, calls = checkout.run("ci/peers")
    assert (code, len(calls)) == (0, 1)
    options, _, wanted = calls[0].partition(" --no-deps ")
    assert options.startswith("python -m pip install ")
    assert wanted
    assert all("==" in package for package in wanted.split())
    assert checkout.run("ci/peers", FAIL="--no-deps")[0] == 7


def test_docker_tests_build_the_image_first_where_there_is_an_engine(checkout: Checkout) -> None:
    checkout.run("ci/venv")
    code, _, calls = checkout.run("ci/test-docker", "-k", "entry", NO_GPU="0", MODELASSAY_TEST_BASE="other:1")
    assert code == 0
    pytest = "python -m pytest -rs -m not nightly tests/docker"
    assert calls[1:] == ["modelassay images build cpu --base other:1", f"{pytest} -k entry"]
    assert checkout.run("ci/test-docker")[2] == [f"{pytest} --numprocesses 3 --dist worksteal"]
    assert checkout.run("ci/test-docker", NO_GPU="0", MODELASSAY_TEST_IMAGE="cpu:1")[2] == [
        f"{pytest} --numprocesses 3 --dist worksteal"
    ]


def test_ci_runs_every_step_and_names_those_that_failed(checkout: Checkout) -> None:
    code, output, calls = checkout.run(".ci/run", FAIL="pytest")
    assert code == 1
    assert "== ci/check: exit 0 after" in output
    assert "== ci/test: exit 7 after" in output
    assert "== ci/demo: exit 0 after" in output
    assert output.splitlines()[-1].endswith(": ci/test ci/test-bare ci/test-docker")
    (tests,) = [place for place, call in enumerate(calls) if "--dist loadfile" in call]
    assert {
        "modelassay run fingerprinting --profile quick",
        "python -m pytest -rs -m not nightly tests/docker --numprocesses 3 --dist worksteal",
    } <= set(calls[tests + 1 :])  # beside each other, in no order
    code, output, _ = checkout.run(".ci/run")
    assert code == 0
    assert "all passed in" in output


def test_ci_builds_the_image_beside_the_checks_where_the_machine_brings_an_engine(checkout: Checkout) -> None:
    engine = checkout.folder.parent / "shared/docker-engine"
    engine.parent.mkdir()
    engine.write_text("#!/bin/sh\necho export DOCKER_HOST=unix:///engine.sock\n")
    engine.chmod(0o755)
    build = "modelassay images build cpu --base local/python:bookworm"
    code, output, calls = checkout.run(".ci/run", NO_GPU="0")
    assert code == 0, output
    (tests,) = [place for place, call in enumerate(calls) if "--dist loadfile" in call]
    assert calls.index(build) < tests
    assert calls.count(build) == 1
    code, output, calls = checkout.run(".ci/run", NO_GPU="0", FAIL="images build")
    assert code == 1
    assert output.splitlines()[-1].endswith(": ci/image")
    engine.write_text("#!/bin/sh\necho no engine today >&2\nexit 1\n")
    code, output, calls = checkout.run(".ci/run")
    assert code == 1
    assert "no engine today" in output
    assert output.splitlines()[-1].endswith(": ../shared/docker-engine")


def test_ci_stops_where_nothing_can_be_installed(checkout: Checkout) -> None:
    code, _, calls = checkout.run(".ci/run", FAIL="torch==")
    assert code == 1
    assert len(calls) == 1
