"""What the built cpu image holds: everything a run needs, and nothing that only a GPU or a developer of a package uses."""

from __future__ import annotations

from typing import Any

# Prints what is there and should not be: packages, folders of tests, headers, static libraries, wheels.
ASKS = """
import importlib.util, pathlib
site = pathlib.Path("/opt/modelassay/lib/python3.11/site-packages")
for name in ("triton", "nvidia", "pytest", "matplotlib"):
    if importlib.util.find_spec(name):
        print(name)
for path in site.rglob("*"):
    if path.suffix in {".a", ".h", ".hpp", ".whl"} or path.name in {"tests", "nvidia"} and path.is_dir():
        print(path)
for folder in ("/wheels", "/locks", "/dist", "/own", "/source", "/opt/tools"):
    if pathlib.Path(folder).exists():
        print(folder)
"""

# Without Triton and a compiler, on the compiled kernels.
WORKS = """
import torch, transformers, modelassay_kernels._native
from modelassay_kernels.bottom_k import bottom_k
values, indices = bottom_k(torch.tensor([[3.0, 1.0, 2.0]]), 2)
print(values.tolist(), indices.tolist())
"""


def output_of(engine: Any, image: str, code: str) -> str:
    options = {"entrypoint": "/opt/modelassay/bin/python", "remove": True, "network_mode": "none"}
    output: bytes = engine.containers.run(image, ["-c", code], **options)
    return output.decode()


def test_nothing_is_in_it_that_a_run_has_no_use_for(engine: Any, cpu_image: str) -> None:
    assert output_of(engine, cpu_image, ASKS) == ""


def test_kernels_work_in_it(engine: Any, cpu_image: str) -> None:
    assert output_of(engine, cpu_image, WORKS) == "[[1.0, 2.0]] [[1, 2]]\n"


def test_what_stands_on_its_base_is_below_one_and_a_half_gigabytes(engine: Any, cpu_image: str) -> None:
    history = engine.images.get(cpu_image).history()
    own = [
        entry["Size"] for entry in history if "/opt/modelassay" in entry["CreatedBy"] and "COPY" in entry["CreatedBy"]
    ]
    assert len(own) == 2, history
    assert 0.5e9 < sum(own) < 1.5e9
