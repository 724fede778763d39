"""Job files are what their engines publish as valid, and start the workers that a run needs."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from modelassay.runs.directory import open_run
from support.toy_suite import REPOSITORY, SUITE, modelassay, write_suite

IMAGE = f"ghcr.io/lab/core@sha256:{'0' * 64}"
RESOURCES = "resources: {gpus: 2, gpu_type: h200, cpus: 8, memory: 64g, time: 12h}\n"


def printed(target: str | Path, kind: str, *more: str) -> str:
    volume = "lab/runs" if kind == "hf-jobs" else "lab-runs"
    code, out, err = modelassay("run", target, "--plan", "--as", kind, "--image", IMAGE, "--volume", volume, *more)
    assert code == 0, err
    return out


def parsed(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(io.StringIO(text))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    text = SUITE.replace("matrix:", f"{RESOURCES}matrix:", 1).replace("seed: [0, 1]", "seed: [0, 1, 2]")
    folder = tmp_path / "walk-1"
    assert modelassay("run", write_suite(tmp_path, text), "--make", "--into", folder)[0] == 0
    return folder


def test_an_indexed_job_holds_the_workers_their_image_and_what_they_ask_for(run: Path) -> None:
    job = parsed(printed(run, "k8s", "--workers", "4", "--queue", "gpu"))
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert container["image"] == IMAGE
    assert container["args"][:3] == ["run", "/runs/walk-1", "--worker"]
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "65536Mi", "nvidia.com/gpu": "2"}
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "h200"}
    assert pod["activeDeadlineSeconds"] == 12 * 3600
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "lab-runs"}


def test_kubernetes_own_model_of_a_job_holds_all_of_it(run: Path) -> None:
    """What its client does not know it drops, and what must be there it misses."""
    folder = os.environ.get("MODELASSAY_TEST_KUBERNETES", "")
    script = (
        "import json, sys; from kubernetes import client; api = client.ApiClient(); job = json.load(sys.stdin)\n"
        "print(api.sanitize_for_serialization(api.deserialize(json.dumps(job), 'V1Job', 'application/json')) == job)"
    )
    job = parsed(printed(run, "k8s", "--queue", "gpu"))
    results = []
    for each in (job, job | {"spec": job["spec"] | {"unknown": 1}}):
        done = subprocess.run([sys.executable, "-c", script], input=json.dumps(each), capture_output=True, text=True, check=False,
                              env={**os.environ, "PYTHONPATH": folder})  # fmt: skip
        if "No module named 'kubernetes'" in done.stderr:
            pytest.skip(
                "Kubernetes' client is not here: pip install --target a folder that MODELASSAY_TEST_KUBERNETES names"
            )
        results.append(done.stdout.strip() or done.stderr)
    assert results == ["True", "False"]


def test_lines_of_hf_jobs_share_the_cells_and_the_client_takes_them(run: Path) -> None:
    lines = [line for line in printed(run, "hf-jobs", "--workers", "4").splitlines() if line.startswith("hf jobs run")]
    assert len(lines) == 4
    shares = []
    for line in lines:
        words = shlex.split(line)
        shares.append([words[at + 1] for at, word in enumerate(words) if word == "--cells"])
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", *words[1:3], "--dry-run", *words[3:]]
    done = subprocess.run(
        command, env={**os.environ, "HF_TOKEN": "hf_none"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for part in (IMAGE, "h200x2", "12h", "hf://buckets/lab/runs:/runs", "modelassay run /runs/walk-1 --worker"):
        assert part in done.stdout
    assert sorted(sum(shares, [])) == sorted(cell.id for cell in open_run(run).suite.cells)
    assert {len(share) for share in shares} == {1, 2}


def test_a_task_of_skypilot_is_valid_by_its_schema(run: Path) -> None:
    task = parsed(printed(run, "skypilot"))
    assert task["resources"]["accelerators"] == "h200:2"
    assert task["resources"]["image_id"] == f"docker:{IMAGE}"
    assert task["run"].startswith("modelassay run /runs/walk-1 --worker ")
    folder = os.environ.get("MODELASSAY_TEST_SKYPILOT", "")
    if not Path(folder, "sky").is_dir():
        pytest.skip("SkyPilot is not here: pip install --no-deps --target a folder that MODELASSAY_TEST_SKYPILOT names")
    validator = [sys.executable, str(REPOSITORY / "tests/support/skypilot_schema.py"), folder]
    for document, code in ((task, 0), (task | {"unknown": 1}, 1)):
        done = subprocess.run(validator, input=json.dumps(document), capture_output=True, text=True, check=False)
        if "No module named 'jsonschema'" in done.stderr:
            pytest.skip("jsonschema is not installed")
        assert done.returncode == code, done.stderr


def test_of_a_shipped_suite_the_first_worker_makes_the_run() -> None:
    job = parsed(printed("spectral", "k8s", "--profile", "smoke", "-o", "seed=3"))
    words = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words[:6] == ["run", "spectral", "--profile", "smoke", "-o", "seed=3"]
    assert words[6] == "--into"
    assert words[7].startswith("/runs/spectral-")
    assert words[8] == "--worker"


@pytest.mark.parametrize(("arguments", "said"), [
    (("--as", "k8s", "--volume", "runs"), "--image core: other machines fetch the image from a registry"),
    (("--as", "k8s", "--volume", "runs", "--image", "modelassay/core:0.1.0"), "--image modelassay/core:0.1.0: other machines"),
    (("--as", "k8s", "--image", IMAGE), "--as needs --volume NAME"),
    (("--as", "hf-jobs", "--image", IMAGE, "--volume", "lab/runs"), "--as hf-jobs takes a run"),
    (("--as", "skypilot", "--image", IMAGE, "--volume", "runs", "--queue", "a"), "--queue is the name of Kueue's queue"),
    (("--as", "k8s", "--image", IMAGE, "--volume", "runs", "--on", "slurm"), "--as applies only with --plan"),
])  # fmt: skip
def test_what_a_job_file_lacks_is_said(arguments: tuple[str, ...], said: str) -> None:
    code, _, err = modelassay("run", "spectral", "--profile", "smoke", "--plan", *arguments)
    assert code == 2
    assert said in err


def test_a_suite_of_ones_own_is_made_into_a_run_first(tmp_path: Path) -> None:
    arguments = ("--plan", "--as", "k8s", "--image", IMAGE, "--volume", "runs")
    code, _, err = modelassay("run", write_suite(tmp_path), *arguments)
    assert code == 2
    assert "make the run (--make)" in err


def test_hardware_that_the_hub_lacks_is_named(tmp_path: Path) -> None:
    text = SUITE.replace("matrix:", "resources: {gpus: 3, gpu_type: h200}\nmatrix:", 1)
    assert modelassay("run", write_suite(tmp_path, text), "--make", "--into", tmp_path / "run")[0] == 0
    arguments = ("--plan", "--as", "hf-jobs", "--image", IMAGE, "--volume", "lab/runs")
    code, _, err = modelassay("run", tmp_path / "run", *arguments)
    assert code == 2
    assert "the Hub has no hardware of 3 GPUs of type h200; did you mean 'h200x" in err
