"""Products with the Hessian and the Gauss-Newton matrix, beside one plain gradient, double backward, and two peers.

    PYTHONPATH=bench:kernels:tests python -m pytest -o python_files='bench_*.py' tests/benchmarks/bench_curvature.py

A Qwen2 of embedded size (8 layers of 128), 4 x 128 tokens, fp32, on the GPU if there is one. Every round is preceded by one
gradient through fused attention, untimed by the frame, and the ratio of the two medians is what counts, of CPU time where
there is no GPU: wall time of a machine that does other work as well says little. In units of a gradient's three, a Hessian
product costs 2.67 with the graph it makes, 2 with one that is kept. "hessian modelassay" makes its graph anew each time, as every
peer does; "kept" multiplies by the graph of an earlier product. A product that fails its check has no time. Peak memory: of the
allocator on a GPU, else of a process of its own, above the loaded model.

Peers: pip install --no-deps --target PEERS curvlinops-for-pytorch==3.0.1 hessian-eigenthings==1.0.0a5 einops einconv opt_einsum
tqdm linear_operator jaxtyping wadler_lindig typeguard, and PEERS behind the others on PYTHONPATH.
"""

# P = parameters of the model, K = vectors multiplied, S = tokens of a sequence

from __future__ import annotations

import functools
import importlib
import itertools
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from modelassay.curvature.gauss_newton import GaussNewton
from modelassay.curvature.loss import microbatches, second_order
from modelassay.curvature.operators import Hessian, Operator

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SEQUENCES, LENGTH, VOCABULARY = 4, 128, 2048
LENGTHS = (128, 256, 512, 1024, 2048)
ROUNDS = 7
Run = Callable[[Tensor], Tensor]
MADE: list[Operator] = []
"""Our operators, whose graphs are memory too."""


@functools.lru_cache(maxsize=1)
def scene() -> tuple[Any, Tensor]:
    """Return the model and its tokens, [B, S]."""
    return make_scene(SEQUENCES, LENGTH)


def make_scene(sequences: int, length: int) -> tuple[Any, Tensor]:
    """Return a model for sequences of this length, and its tokens."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=352, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=length, tie_word_embeddings=True,
        **dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id"]),
    )  # fmt: skip
    model: Any = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval().to(DEVICE)
    return model, torch.randint(0, VOCABULARY, (sequences, length), device=DEVICE)


def shifted_loss(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """The mean loss of predicting each token from those before it."""
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())


def flat(parts: Any) -> Tensor:
    """Gradients as one vector."""
    return torch.cat([part.reshape(-1) for part in parts])


def gradient(_: Tensor) -> Tensor:
    """One plain gradient through fused attention, as training takes it."""
    model, ids_BT = scene()
    loss = shifted_loss(model(input_ids=ids_BT, use_cache=False).logits, ids_BT)
    return flat(torch.autograd.grad(loss, list(model.parameters())))[None]


def double_backward(vectors_KP: Tensor) -> Tensor:
    """H v one at a time, reverse over reverse, through eager attention."""
    model, ids_BT = scene()
    parameters = list(model.parameters())
    products = []
    with second_order(model, torch.float32, "eager"), torch.enable_grad():
        for vector_P in vectors_KP:
            loss = shifted_loss(model(input_ids=ids_BT, use_cache=False).logits, ids_BT)
            inner = flat(torch.autograd.grad(loss, parameters, create_graph=True)) @ vector_P
            products.append(flat(torch.autograd.grad(inner, parameters)))
    return torch.stack(products)


def ours(kind: type[Hessian] | type[GaussNewton], **options: int) -> Run:
    """Our operator; as many vectors per pass as are given."""
    model, ids_BT = scene()
    batches = microbatches(ids_BT, size=len(ids_BT))
    operators: dict[int, Operator] = {}

    def run(vectors_KP: Tensor) -> Tensor:
        count = len(vectors_KP)
        if count not in operators:
            operators[count] = kind(model, batches, vectors_per_pass=count, **options)
            MADE.append(operators[count])
        return operators[count].matmat(vectors_KP)

    return run


def eager(run: Run) -> Run:
    """Run what cannot differentiate twice through fused attention with eager attention."""

    def through_eager(vectors_KP: Tensor) -> Tensor:
        scene()[0].set_attn_implementation("eager")
        try:
            return run(vectors_KP)
        finally:
            scene()[0].set_attn_implementation("sdpa")

    return through_eager


class Logits(torch.nn.Module):
    """A model as curvlinops asks for it: from a batch to what its loss takes, [B * (T - 1), V]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the logits of all predicted tokens."""
        return self.model(input_ids=batch["ids"], use_cache=False).logits[:, :-1].flatten(0, 1)


def curvlinops(kind: str) -> Run:
    """curvlinops-for-pytorch 3, columns of one matrix."""
    library = importlib.import_module("curvlinops")
    model, ids_BT = scene()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = getattr(library, kind)(
            Logits(model), torch.nn.CrossEntropyLoss(), list(model.parameters()), [({"ids": ids_BT}, ids_BT[:, 1:].flatten())],
            check_deterministic=False, batch_size_fn=lambda batch: batch["ids"].shape[0],
        )  # fmt: skip
    return eager(lambda vectors_KP: (operator @ vectors_KP.T.contiguous()).T)


def eigenthings(kind: str) -> Run:
    """hessian-eigenthings 1.0, one vector at a time: it has no other way."""
    library = importlib.import_module("hessian_eigenthings")
    losses = importlib.import_module("hessian_eigenthings.loss_fns.huggingface")
    model, ids_BT = scene()
    batch = {"input_ids": ids_BT, "labels": ids_BT, "use_cache": False}
    functions = (
        [losses.hf_lm_loss()] if kind == "HessianOperator" else [losses.hf_lm_forward(), losses.hf_lm_loss_of_output()]
    )
    operator = getattr(library, kind)(model, [batch], *functions)
    return eager(lambda vectors_KP: torch.stack([operator.matvec(vector_P) for vector_P in vectors_KP]))


PROVIDERS: dict[str, Callable[[], Run]] = {
    "gradient": lambda: gradient,
    "hessian modelassay": lambda: ours(Hessian, graph_bytes=0),
    "hessian modelassay kept": lambda: ours(Hessian),
    "hessian double backward": lambda: double_backward,
    "hessian curvlinops": lambda: curvlinops("HessianLinearOperator"),
    "hessian hessian-eigenthings": lambda: eigenthings("HessianOperator"),
    "ggn modelassay": lambda: ours(GaussNewton),
    "ggn curvlinops": lambda: curvlinops("GGNLinearOperator"),
    "ggn hessian-eigenthings": lambda: eigenthings("GGNOperator"),
}


def vectors(count: int) -> Tensor:
    """Vectors of unit length, [K, P]."""
    size = sum(parameter.numel() for parameter in scene()[0].parameters())
    drawn_KP = torch.randn(count, size, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    return drawn_KP / drawn_KP.norm(dim=1, keepdim=True)


def expected(provider: str, vectors_KP: Tensor) -> Tensor:
    """What the product must be, in fp64: of the Hessian by double backward, of the others by our tested operators."""
    model, ids_BT = scene()
    kinds = {"hessian": Hessian, "ggn": GaussNewton}
    operator = kinds[provider.split()[0]](model, microbatches(ids_BT, size=SEQUENCES), precision="fp64")
    return operator.matmat(vectors_KP.double())


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:DeprecationWarning",  # PyTorch's own rules of forward differentiation, which peers use
    "ignore:Converting a tensor with requires_grad:UserWarning",  # a peer
    "ignore:Benchmark fixture was not used",  # skipped
)
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_product(benchmark: BenchmarkFixture, provider: str, count: int) -> None:
    """Time and memory of ``count`` products, as multiples of one gradient."""
    if provider == "gradient" and count > 1:
        pytest.skip("a gradient has no vectors")
    run, vectors_KP = prepared(provider), vectors(count)
    result_KP = attempt(provider, run, vectors_KP)
    if provider != "gradient":
        expected_KP = expected(provider, vectors_KP)
        error = float((result_KP - expected_KP).norm() / expected_KP.norm())
        assert error < 1e-4, f"{provider} is off by {error:.1e}"
        benchmark.extra_info["error"] = float(f"{error:.1e}")
    gradients_s: list[float] = []
    products_s: list[float] = []

    def one_gradient() -> None:
        gradients_s.append(seconds(lambda: gradient(vectors_KP)))

    benchmark.group = provider.split()[0]
    benchmark.pedantic(
        lambda: products_s.append(seconds(lambda: run(vectors_KP))), setup=one_gradient, rounds=ROUNDS, warmup_rounds=1
    )
    ratio = statistics.median(products_s) / statistics.median(gradients_s) / count
    peak, base = (peak_bytes(name, number) for name, number in ((provider, count), ("gradient", 1)))
    benchmark.extra_info |= {"provider": provider, "vectors": count, "gradients_per_vector": round(ratio, 2),
                             "peak_mib": round(peak / 2**20, 1), "gradient_peak_mib": round(base / 2**20, 1)}  # fmt: skip
    print(
        f"{provider}, {count}: {ratio:.2f} gradients per vector, {peak / 2**20:.0f} MiB (gradient {base / 2**20:.0f})"
    )


EXACT = ["hessian modelassay", "hessian modelassay kept", "hessian double backward", "hessian hessian-eigenthings"]


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
def test_exact_products_side_by_side() -> None:
    """One product of each after the other, round by round, so that all meet the same moments of a shared machine."""
    vector_1P = vectors(1)
    runs = {"gradient": gradient}
    for provider in EXACT:
        try:
            runs[provider] = PROVIDERS[provider]()
        except ModuleNotFoundError as error:
            print(f"{provider}: {error.name} is not installed")
    taken: dict[str, list[float]] = {provider: [] for provider in runs}
    for number in range(3 * ROUNDS + 2):
        for provider, run in runs.items():
            spent = seconds(lambda run=run: run(vector_1P))  # type: ignore[misc]
            if number >= 2:
                taken[provider].append(spent)
    for provider, mine in taken.items():
        ratios = [a / b for a, b in zip(mine, taken["gradient"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{provider}: {middle:.2f} gradients (quartiles {low:.2f} and {high:.2f})")


def prepared(provider: str) -> Run:
    """Return a provider's function; skip a peer that is not installed."""
    try:
        return PROVIDERS[provider]()
    except ModuleNotFoundError as error:
        pytest.skip(
            f"{provider}: {error.name} is not installed (pip install curvlinops-for-pytorch hessian-eigenthings)"
        )


def attempt(provider: str, run: Run, vectors_KP: Tensor) -> Tensor:
    """Run once; skip a peer that cannot do it, with its reason."""
    try:
        return run(vectors_KP)
    except (NotImplementedError, RuntimeError) as error:
        if "modelassay" in provider:
            raise
        pytest.skip(f"{provider} cannot: {type(error).__name__}: {str(error).splitlines()[0][:150]}")


@pytest.mark.parametrize("attention", ["modelassay", "eager"])
def test_memory_by_length(attention: str) -> None:
    """Memory of one product at lengths that double: with ours it doubles, with eager attention it comes to four times."""
    if DEVICE.type == "cuda":
        pytest.skip("measured by processes of their own, on the CPU")
    peaks = [child_bytes("length", attention, str(length)) for length in LENGTHS]
    growth = [later / earlier for earlier, later in itertools.pairwise(peaks)]
    print(
        f"{attention}: "
        + ", ".join(f"S={length} {peak / 2**20:.0f} MiB" for length, peak in zip(LENGTHS, peaks, strict=True))
    )
    print("growth: " + ", ".join(f"{factor:.2f}" for factor in growth))
    if attention == "modelassay":
        assert max(growth) < 2.5
    else:
        assert growth[-1] > 3


def of_length(attention: str, length: int) -> Run:
    """One product over a single sequence, through an attention."""
    model, ids_BT = make_scene(1, length)
    operator = Hessian(model, microbatches(ids_BT, size=1), graph_bytes=0)
    operator.attention = attention  # type: ignore[assignment]
    return operator.matmat


def finished(result: Tensor) -> Tensor:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return result


def seconds(run: Callable[[], Tensor]) -> float:
    """Time of one run: of the processor, or of the clock where a GPU does the work."""
    clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time
    start = clock()
    finished(run())
    return clock() - start


@functools.cache
def peak_bytes(provider: str, count: int) -> int:
    """Return the highest memory of one run above what was there before it."""
    if DEVICE.type == "cuda":
        run, vectors_KP = PROVIDERS[provider](), vectors(count)
        run(vectors_KP)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        finished(run(vectors_KP))
        return torch.cuda.max_memory_allocated() - before
    return child_bytes("provider", provider, str(count))


def child_bytes(*arguments: str) -> int:
    """Return what `main` prints in a process of its own."""
    # Every tensor of some size is given back when it dies, so that a second run shows what one run needs at once.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | malloc).stdout)


def main() -> None:
    """Print what a second run of what is named adds to this process's peak; the first loads what PyTorch loads late."""

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

    what, name, number = sys.argv[1:]
    if what == "length":
        run, vectors_KP = of_length(name, int(number)), vectors(1)
    else:
        run, vectors_KP = PROVIDERS[name](), vectors(int(number))
    run(vectors_KP)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident now
    before = status("VmRSS")
    run(vectors_KP)
    print(status("VmHWM") - before + sum(operator.bytes_kept for operator in MADE if isinstance(operator, Hessian)))


if __name__ == "__main__":
    main()
