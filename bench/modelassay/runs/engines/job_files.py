"""Job files for engines that are only told what to start: a Kubernetes Indexed Job, lines of ``hf jobs run``, a SkyPilot task.

Each starts the worker that ``--on`` starts, in an image named by digest, with the runs on a volume at ``/runs``. A volume of
Kubernetes or SkyPilot is a file system, where workers take cells by lease. A bucket of the Hub is an object store, in which a
file cannot be made only once: there each job is given its own cells.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from huggingface_hub import JobHardware
from ruamel.yaml import YAML

from modelassay.errors import UsageError, did_you_mean, printable
from modelassay.suite import Resources

KINDS: Final = ("k8s", "hf-jobs", "skypilot")

RUNS: Final = "/runs"
"""Where the volume is, inside."""

LONGEST: Final = "1d"
"""How long a job of the Hub may take where the suite says nothing; without a word of it the Hub stops it after half an hour."""

GRACE_S: Final = 120
"""Between the wish that a worker stops and its end."""


@dataclass(frozen=True, kw_only=True)
class JobFile:
    """What a job file starts."""

    name: str
    """Of the run."""
    suite: str
    words: Sequence[str]
    """The worker's command line, after the program's name."""
    cells: Sequence[str]
    """The ids of what is to run."""
    count: int
    """The most workers."""
    image: str
    """``REGISTRY/NAME@sha256:...``."""
    volume: str
    """What holds the runs: a persistent volume claim, ``ORG/BUCKET`` of the Hub, or a volume of SkyPilot."""
    queue: str | None
    """Kueue's local queue; None: Kubernetes starts the job itself."""
    resources: Resources
    needs_hub: bool
    """Whether a model of the Hub is named, so that a token may be needed."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a worker."""
        digest = self.image.partition("@")[2]
        return {"MODELASSAY_IMAGE": self.image, "MODELASSAY_IMAGE_DIGEST": digest, "MODELASSAY_CACHE": f"{RUNS}/cache"}

    def text(self, kind: str) -> str:
        """Return the file for ``kind``, one of ``KINDS``.

        Raises:
            UsageError: the Hub has no such hardware.
        """
        return {"k8s": self._kubernetes, "hf-jobs": self._hub, "skypilot": self._skypilot}[kind]()

    def _kubernetes(self) -> str:
        asks = self.resources
        requests = {"cpu": str(asks.cpus or 1)} | (
            {"memory": f"{asks.memory_bytes >> 20}Mi"} if asks.memory_bytes else {}
        )
        limits = requests | ({"nvidia.com/gpu": str(asks.gpus)} if asks.gpus else {})
        container = {
            "name": "worker", "image": self.image, "command": ["modelassay"], "args": list(self.words), "workingDir": RUNS,
            "env": [{"name": name, "value": value} for name, value in self.environment.items()]
            + [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf-token", "key": "token", "optional": True}}}]
            * self.needs_hub,
            "resources": {"requests": limits, "limits": limits},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "runs", "mountPath": RUNS}, {"name": "shm", "mountPath": "/dev/shm"}],
        }  # fmt: skip
        pod: dict[str, Any] = {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": GRACE_S, "containers": [container],
            "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": self.volume}},
                        {"name": "shm", "emptyDir": {"medium": "Memory"}}],
        }  # fmt: skip
        if asks.gpu_type:
            pod["nodeSelector"] = {"nvidia.com/gpu.product": asks.gpu_type}
        if asks.minutes:
            pod["activeDeadlineSeconds"] = 60 * asks.minutes
        labels = {"app.kubernetes.io/name": "modelassay"} | (
            {"kueue.x-k8s.io/queue-name": self.queue} if self.queue else {}
        )
        # A lost node is no failure; a command that cannot be understood, and cells that failed, are not tried again.
        policy = [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                  {"action": "FailIndex", "onExitCodes": {"containerName": "worker", "operator": "In", "values": [2, 3]}}]  # fmt: skip
        spec = {"completionMode": "Indexed", "completions": self.count, "parallelism": self.count, "backoffLimitPerIndex": 6,
                "podFailurePolicy": {"rules": policy}, "template": {"metadata": {"labels": labels}, "spec": pod}}  # fmt: skip
        meta = {"name": _label(self.name), "labels": labels}
        return _yaml({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec})

    def _hub(self) -> str:
        flavour = _flavour(self.resources)
        shares = [self.cells[index :: self.count] for index in range(min(self.count, len(self.cells)))]
        bucket = f"hf://buckets/{self.volume}"
        lines = [
            "# The run directory goes into the bucket, each job runs its own cells of it, and what they left comes back.",
            f"hf buckets sync {shlex.quote(self.name)} {bucket}/{self.name}",
        ]
        for index, share in enumerate(shares):
            options = ["--detach", "--name", f"{_label(self.name)}-{index}", "--flavor", flavour,
                       "--timeout", self.resources.time or LONGEST, "--volume", f"{bucket}:{RUNS}"]  # fmt: skip
            options += [word for pair in self.environment.items() for word in ("--env", "=".join(pair))]
            options += ["--secrets", "HF_TOKEN"] * self.needs_hub
            own = [word for cell in share for word in ("--cells", cell)]
            lines.append(shlex.join(["hf", "jobs", "run", *options, self.image, "modelassay", *self.words, *own]))
        lines.append(f"# when they have ended: hf buckets sync {bucket}/{self.name} {shlex.quote(self.name)}")
        return "\n".join(lines) + "\n"

    def _skypilot(self) -> str:
        asks = self.resources
        resources: dict[str, Any] = {"image_id": f"docker:{self.image}", "cpus": f"{asks.cpus or 1}+"}
        if asks.memory_bytes:
            resources["memory"] = f"{max(1, asks.memory_bytes >> 30)}+"
        if asks.gpus:
            resources["accelerators"] = (
                f"{asks.gpu_type}:{asks.gpus}" if asks.gpu_type else {"H100": asks.gpus, "A100": asks.gpus}
            )
        task = {"name": _label(self.name), "resources": resources, "envs": self.environment, "volumes": {RUNS: self.volume},
                "run": f"modelassay {shlex.join(self.words)}\n"}  # fmt: skip
        if self.needs_hub:
            task["secrets"] = {"HF_TOKEN": None}
        again = f"for i in $(seq {self.count}); do sky jobs launch --yes --detach-run --name {_label(self.name)}-$i FILE; done"
        return f"# One worker; as many as are wanted: {again}\n{_yaml(task)}"


def _label(text: str) -> str:
    """Return ``text`` as the name of a job, of which Kubernetes takes 63 characters.

    >>> _label("sft-drift-20261129T111909Z-b78082")
    'sft-drift-20261129t111909z-b78082'
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return name[-52:].strip("-") or "modelassay"


def _flavour(resources: Resources) -> str:
    """Return the Hub's hardware for a worker: it names GPUs by type and number.

    >>> _flavour(Resources(gpus=4, gpu_type="h200")), _flavour(Resources(gpus=1, gpu_type="a10g-small"))
    ('h200x4', 'a10g-small')
    """
    if not resources.gpus:
        return "cpu-basic" if (resources.cpus or 1) <= 2 else "cpu-upgrade"
    known = [each.value for each in JobHardware]
    kind = (resources.gpu_type or "").lower()
    wanted = [f"{kind}x{resources.gpus}", *([kind] if resources.gpus == 1 or "x" in kind else [])]
    for name in wanted:
        if name in known:
            return name
    hint = did_you_mean(wanted[0], known) or f"; it has {', '.join(known)}"
    raise UsageError(
        f"resources: the Hub has no hardware of {resources.gpus} GPUs of type {printable(kind) or 'not given'}{hint}"
    )


def _yaml(data: Any) -> str:
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.representer.ignore_aliases = lambda *_: True  # what stands twice is written twice
    stream = io.StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()
