"""What this machine needs for ``--on ray`` and ``--on slurm``, each fault with its fix."""

from __future__ import annotations

import re
import shutil
from collections import Counter

from modelassay.errors import AssayError, printable
from modelassay.machine.doctor import Check
from modelassay.runs.engines import ray_node
from modelassay.runs.engines.ray_cluster import GPU_LABELS, connect, import_ray, leave, living
from modelassay.runs.engines.ray_likeness import describe_nodes, why_unfit
from modelassay.runs.engines.slurm_commands import call, require_slurm
from modelassay.suite import Resources


def examine_engine(on: str) -> list[Check]:
    """Examine ``slurm``, ``ray`` or ``ray:ADDRESS``; never raises for what it finds."""
    name, _, address = on.partition(":")
    try:
        return _ray(address or None) if name == "ray" else _slurm()
    except AssayError as error:
        detail, _, fix = str(error).partition("; ")
        return [Check(name=name, status="missing", required=True, detail=detail, fix=fix or None)]


def _ray(address: str | None) -> list[Check]:
    ray = import_ray()
    checks = [Check(name="ray", status="ok", required=True, detail=f"{ray.__version__} in this Python")]
    connect(address, Resources())
    try:
        nodes = living(ray)
        has = Counter({name: sum(node["Resources"].get(name, 0) for node in nodes) for name in ("CPU", "GPU")})
        detail = f"{len(nodes)} nodes, {has['CPU']:g} CPU, {has['GPU']:g} GPU"
        checks.append(Check(name="ray cluster", status="ok", required=True, detail=detail))
        here = ray_node.describe("")
        for node, about in zip(nodes, describe_nodes(ray, ""), strict=True):
            why, _, fix = why_unfit(about, here).partition("; ")
            labels = (
                ", ".join(f"{key}={node['Labels'][key]}" for key in GPU_LABELS if key in node["Labels"])
                or "no label of GPUs"
            )
            detail = why or f"Python {about['python']}, Ray {about['ray']}, the same modelassay; {labels}"
            checks.append(Check(name=f"ray node {about['host']}", status="failed" if why else "ok", required=True,
                                detail=printable(detail), fix=fix or None))  # fmt: skip
    finally:
        leave(ray)
    return checks


def _slurm() -> list[Check]:
    require_slurm()
    version = call("sbatch", "--version").strip()
    states = Counter(call("sinfo", "-h", "-N", "-o", "%T").split())
    nodes = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "no nodes"
    checks = [Check(name="slurm", status="ok", required=True, detail=printable(version)),
              Check(name="slurm nodes", status="ok" if states else "failed", required=True, detail=printable(nodes))]  # fmt: skip
    has_pyxis = re.search(r"--container-image\b", call("srun", "--help")) is not None
    has_apptainer = shutil.which("apptainer") is not None
    found = [name for name, there in (("pyxis", has_pyxis), ("Apptainer", has_apptainer)) if there]
    detail = f"{' and '.join(found)} here" if found else "neither pyxis nor Apptainer here; nodes may differ"
    checks.append(Check(name="slurm containers", status="ok" if found else "missing", required=False, detail=detail,
                        fix=None if found else "workers run in this Python; for --in container install one on the nodes"))  # fmt: skip
    return checks
