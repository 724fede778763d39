"""Workers on a real Ray cluster of three nodes: nodes, workers and drivers are lost, and the tables are those of one machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelassay.errors import HostError
from modelassay.runs.engines import ray_node
from modelassay.runs.engines.ray_cluster import request
from modelassay.runs.engines.ray_likeness import why_unfit
from modelassay.runs.workers import read_signs
from modelassay.suite import Resources
from support.joined_runs import completed, ended
from support.ray_nodes import Nodes, nodes, ray_environ
from support.slurm_cluster import until
from support.small_disk import needs_root, small_disk
from support.toy_suite import SUITE, environ, metrics_of, modelassay, start, write_suite


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes() as there:
        yield there


def suite_of(num_cells: int, **parameters: object) -> str:
    own = "".join(f", {name}: {value}" for name, value in {"timed": "false", **parameters}.items())
    seeds = ", ".join(map(str, range(num_cells // 2)))
    text = SUITE.replace("pause_ms: 3.0", f"pause_ms: 10{own}").replace("seed: [0, 1]", f"seed: [{seeds}]")
    return text.replace("steps: 24", "steps: 150").replace("matrix:", "resources: {cpus: 1}\nmatrix:", 1)


def run_alone(tmp_path: Path, text: str) -> dict[tuple[str, str, str], float]:
    """The metrics of one machine's run."""
    single = tmp_path / "single"
    assert modelassay("run", write_suite(tmp_path, text), "--into", single, timeout_s=1200)[0] == 0
    return metrics_of(single)


def worker_pids(run: Path) -> list[int]:
    """The processes of the workers that are at a run; of those that were killed the files remain."""
    return [int(sign.about["pid"]) for sign in read_signs(run) if sign.seems_there()]


def test_a_failure_is_a_result_and_a_killed_worker_is_replaced(tmp_path: Path, cluster: Nodes) -> None:
    text = suite_of(4).replace("seed: [0, 1]", "seed: [0, 1]\n  include: [{model: zoo:base, seed: 1, fail_at: 3}]")
    run = tmp_path / "a run % of 'ours'"
    on = ("--on", f"ray:{cluster.address}", "--workers", "2")
    with ended([driver := start("run", write_suite(tmp_path, text), *on, "--into", run, env=ray_environ())]):
        until(lambda: list(run.glob("cells/*/*.lease")))
        os.kill(worker_pids(run)[0], signal.SIGKILL)
        _, err = driver.communicate(timeout=120)
    assert driver.returncode == 3, err
    assert "all see the run directory" in err
    assert "1 of 4 cells failed" in err
    assert "asked to fail at step 3" in err
    assert "a worker ended with code -9" in err
    assert sorted(completed(run).values()) == [1] * 4
    assert len([path for path in run.glob("cells/*/attempt-*.jsonl") if "asked to fail" in path.read_text()]) == 1
    assert modelassay("run", write_suite(tmp_path, text), "--into", tmp_path / "single")[0] == 3
    assert metrics_of(run) == metrics_of(tmp_path / "single")


def test_nodes_that_do_not_see_the_run_directory_send_results_back(tmp_path: Path, cluster: Nodes) -> None:
    text, run = suite_of(2), tmp_path / "run"
    on = ("--on", f"ray:{cluster.address}", "--workers", "2", "--no-shared")
    code, _, err = modelassay("run", write_suite(tmp_path, text), *on, "--into", run, env=ray_environ())
    assert code == 0, err
    assert "brought back as bytes" in err
    assert sorted(completed(run).values()) == [1] * 2
    assert metrics_of(run) == run_alone(tmp_path, text)
    assert not [*run.rglob("*.lease"), *run.rglob("*.part"), *run.glob("workers")]


def test_what_no_node_has_is_refused_before_there_is_a_run(tmp_path: Path, cluster: Nodes) -> None:
    for resources, said in (
        ("{cpus: 64}", "no node of the Ray cluster has 64 CPU"),
        ("{gpus: 1, gpu_type: b200}", "type b200 (labels: gpu=a100, gpu=h100)"),
    ):
        suite = write_suite(tmp_path, suite_of(2).replace("{cpus: 1}", resources))
        code, _, err = modelassay(
            "run", suite, "--on", f"ray:{cluster.address}", "--into", tmp_path / "run", env=ray_environ()
        )
        assert code == 6, err
        assert said in err
        assert not (tmp_path / "run").exists()


def test_doctor_examines_the_nodes(cluster: Nodes) -> None:
    code, out, err = modelassay("doctor", "--engine", f"ray:{cluster.address}", "--json", env=ray_environ())
    assert code == 0, err
    checks = json.loads(out)
    assert {check["status"] for check in checks} == {"ok"}
    assert [check["detail"] for check in checks if check["name"] == "ray cluster"] == ["3 nodes, 5 CPU, 2 GPU"]
    assert {"gpu=h100", "gpu=a100"} <= {check["detail"].rpartition("; ")[2] for check in checks}


def test_an_address_that_does_not_answer_and_one_that_is_none(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    env = ray_environ()
    for address, said in (
        (f"127.0.0.1:{port}", "nothing answers there"),
        ("ray://head:10001", "no address of a cluster"),
    ):
        with_ray = modelassay(
            "run", write_suite(tmp_path), "--on", f"ray:{address}", "--into", tmp_path / "run", env=env
        )
        assert with_ray[0] == 6
        assert said in with_ray[2] or "needs Ray: pip install" in with_ray[2]
    assert not (tmp_path / "run").exists()


def test_without_ray_a_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "none" / "ray").mkdir(parents=True)
    (tmp_path / "none" / "ray" / "__init__.py").write_text("raise ImportError(\"No module named 'ray'\")")
    env = environ()
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "none"), env["PYTHONPATH"]])
    code, _, err = modelassay("run", write_suite(tmp_path), "--on", "ray", "--runs", tmp_path / "runs", env=env)
    assert (code, err) == (6, "error: --on ray needs Ray: pip install 'modelassay[ray]' (No module named 'ray')\n")
    assert not (tmp_path / "runs").exists()


def test_nodes_that_are_not_like_this_machine() -> None:
    here = {"python": "3.11", "ray": "2.60.0", "code": "a"}
    assert why_unfit(here, here) == ""
    assert why_unfit(here | {"ray": "2.60.1"}, here) == ""
    assert "Python 3.12, and this is 3.11" in why_unfit(here | {"python": "3.12"}, here)
    assert "install ray==2.60.0 there" in why_unfit(here | {"ray": "2.9.0"}, here)
    assert "no modelassay" in why_unfit(here | {"code": ""}, here)
    assert "another than this" in why_unfit(here | {"code": "b"}, here)


def test_a_worker_asks_for_what_its_suite_says() -> None:
    has = [
        {"Resources": {"CPU": 8.0, "GPU": 4.0, "memory": 2.0**40}, "Labels": {"ray.io/accelerator-type": "H100"}, "NodeManagerHostname": "a"},
        {"Resources": {"CPU": 64.0, "memory": 2.0**30}, "Labels": {}, "NodeManagerHostname": "b"},
    ]  # fmt: skip
    assert request(Resources(), has) == {"num_cpus": 1, "num_gpus": 0}
    asked = request(Resources(cpus=8, gpus=4, gpu_type="h100", memory="512g"), has)
    assert asked == {
        "num_cpus": 8,
        "num_gpus": 4,
        "memory": 512 << 30,
        "label_selector": {"ray.io/accelerator-type": "in(H100)"},
    }
    for wrong in (
        Resources(cpus=16, gpus=1),
        Resources(gpus=5),
        Resources(memory="2t"),
        Resources(gpus=1, gpu_type="a100"),
    ):
        with pytest.raises(HostError, match="no node of the Ray cluster"):
            request(wrong, has)


def test_files_of_a_cell_travel_whole_and_nowhere_else(tmp_path: Path) -> None:
    parts = {"attempt-1.jsonl": b"x" * 100_000, "artifacts/a b/c.bin": bytes(range(256)), "checkpoint/state": b""}
    ray_node.unpack(tmp_path / "cell", parts)
    (tmp_path / "cell" / "half.part").write_bytes(b"no")
    assert ray_node.pack(tmp_path / "cell") == parts
    with pytest.raises(OSError, match="no path within a cell"):
        ray_node.unpack(tmp_path / "cell", {"../other": b"x"})
    assert not (tmp_path / "other").exists()


@needs_root
def test_a_full_disk_of_a_node_is_told_and_nothing_is_brought_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path, "1m") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        code, words, parts = ray_node.carry([], b"{}", "0123456789ab", {"checkpoint/state": bytes(2 << 20)})
    assert (code, parts) == (6, {})
    assert words.endswith("No space left on device")


@pytest.mark.nightly
@pytest.mark.parametrize("how", [(), ("--no-shared",)])
def test_60_cells_lose_a_node_a_worker_and_their_driver(tmp_path: Path, how: tuple[str, ...]) -> None:
    text, run = suite_of(60), tmp_path / "run"
    with nodes() as cluster:
        on = ("--on", f"ray:{cluster.address}", "--workers", "4", "--silence", "10", *how)
        with ended([first := start("run", write_suite(tmp_path, text), *on, "--into", run, env=ray_environ())]):
            until(lambda: len(list(run.glob("cells/*/attempt-*.jsonl"))) > 8, seconds=300)
            cluster.say("remove h100")
            time.sleep(3)
            first.kill()
        with ended([driver := start("run", run, *on, env=ray_environ())]):
            num = len(list(run.glob("cells/*/attempt-*.jsonl")))
            until(
                lambda: len(list(run.glob("cells/*/attempt-*.jsonl"))) > num + 4 or driver.poll() is not None,
                seconds=300,
            )
            assert driver.poll() is None, driver.communicate()
            if not how:
                os.kill(worker_pids(run)[0], signal.SIGKILL)
            cluster.say("add h100")
            _, err = driver.communicate(timeout=900)
    assert driver.returncode == 0, err
    assert sorted(completed(run).values()) == [1] * 60
    assert metrics_of(run) == run_alone(tmp_path, text)


@pytest.mark.nightly
def test_a_real_suite_on_three_nodes(tmp_path: Path) -> None:
    with nodes() as cluster:
        on = ("--on", f"ray:{cluster.address}", "--workers", "3")
        arguments = ("run", "fingerprinting", "--profile", "smoke", *on, "--into", tmp_path / "run")
        code, _, err = modelassay(*arguments, env=ray_environ(), timeout_s=1200)
        assert code == 0, err
    single = tmp_path / "single"
    assert modelassay("run", "fingerprinting", "--profile", "smoke", "--into", single, timeout_s=1200)[0] == 0
    assert metrics_of(tmp_path / "run") == metrics_of(single)
