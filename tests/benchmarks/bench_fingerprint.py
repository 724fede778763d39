"""What `modelassay fingerprint` of two large checkpoints costs, beside its floor: reading the files, and what is computed of every byte.

::

    python tests/benchmarks/bench_fingerprint.py [--layers 21] [--into RESULT.json] [--folder FOLDER]

Makes a bf16 Llama of 1.08 billion parameters (`--layers 21`; 125 are 12 GB), a child with 5 % noise on it and a stranger, once, in FOLDER; each
measurement is a process of its own with one thread, and once more with `--threads` of them, as a user runs it. Processor seconds and memory are
those above the imports; `--cold` drops what the page cache holds before each (root alone may). Of more layers than
`DRAWN` the drawn ones are repeated, each a copy in the file of its own, so that writing does not take an hour; nothing that is measured
knows of it. The wall time beside the reading's is from one process after the other, and depends on what the page cache holds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[2]
for name in ("bench", "kernels"):
    sys.path.insert(0, str(REPOSITORY / name))

WIDTH, INNER, VOCAB, HEADS, KV_HEADS = 2048, 5632, 32_000, 32, 8
DRAWN = 21
"""Layers that are drawn at random; others repeat them."""
CHUNK = 1 << 24
Shape = tuple[int, ...]


def shapes(num_layers: int) -> dict[str, Shape]:
    """The tensors of a model, in the order of its file."""
    kv = WIDTH // HEADS * KV_HEADS
    layer: dict[str, Shape] = {
        "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (kv, WIDTH), "self_attn.v_proj": (kv, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER),
        "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,),
    }  # fmt: skip
    return {
        "model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,), "lm_head.weight": (VOCAB, WIDTH),
        **{f"model.layers.{at}.{name}.weight": shape for at in range(num_layers) for name, shape in layer.items()},
    }  # fmt: skip


def drawn(name: str, shape: Shape, seed: int) -> torch.Tensor:
    """A few strong directions on noise, columns of unlike size, as trained matrices have; norms around 1."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
    if len(shape) == 1:
        return torch.exp(0.2 * torch.randn(shape, generator=generator))
    rows, columns = shape
    strong = torch.randn(rows, 32, generator=generator) * torch.arange(1, 33).pow(-0.5)
    values = 0.02 * torch.randn(shape, generator=generator) + 0.03 * strong @ torch.randn(
        32, columns, generator=generator
    )
    return values * torch.exp(0.15 * torch.randn(columns, generator=generator))


def write(folder: Path, num_layers: int, seed: int, noise_seed: int | None) -> None:
    """Write a model tensor by tensor: of ``seed``, with 5 % noise of another one where there is one."""
    tensors, header, at = shapes(num_layers), {}, 0
    for name, shape in tensors.items():
        size = 2 * int(torch.tensor(shape).prod())
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / "model.safetensors.new"
    with draft.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            layer, _, below = name.removeprefix("model.layers.").partition(".")
            if layer.isdigit() and int(layer) >= DRAWN:
                file.flush()
                begin, end = header[f"model.layers.{int(layer) % DRAWN}.{below}"]["data_offsets"]
                with draft.open("rb") as written:
                    written.seek(8 + len(text) + begin)
                    file.write(written.read(end - begin))
                continue
            values = drawn(name, shape, seed)
            if noise_seed is not None:
                share = 0.05 if len(shape) == 2 else 0.005
                values += share * values.std() * drawn(name, shape, noise_seed) / drawn(name, shape, noise_seed).std()
            file.write(values.bfloat16().view(torch.uint8).numpy().data)
    draft.rename(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": num_layers,
        "intermediate_size": INNER, "vocab_size": VOCAB, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": WIDTH // HEADS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }))  # fmt: skip


def read_once(paths: list[str]) -> None:
    """Every byte of the files, once."""
    buffer = bytearray(CHUNK)
    for path in paths:
        with Path(path, "model.safetensors").open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def one_pass(paths: list[str]) -> None:
    """Standard deviations of all tensors, the one number that needs every byte, by the kernel alone."""
    from modelassay.fingerprints.measure import spans_of
    from modelassay.models.checkpoints import open_checkpoint
    from modelassay.models.checkpoints.layers import layer_spans
    from modelassay_kernels import layer_std_file

    for path in paths:
        checkpoint = open_checkpoint(path)
        for layer, extras in enumerate(layer_spans(checkpoint)):
            layer_std_file([
                *spans_of(checkpoint, layer).values(),
                *(span for group in extras.values() for span in group),
            ])


def compare(paths: list[str]) -> None:
    """The command, without printing."""
    from modelassay.commands.fingerprint import fingerprint

    view = fingerprint(paths, suspect=None, background=None, figure=None, alpha=1e-6, attention_only=False, behaviour=False,
                       evidence=None, report=lambda line: None)  # fmt: skip
    print("\n".join(line[:200] for line in view.summary), file=sys.stderr)


DEEDS: dict[str, Callable[[list[str]], None]] = {"read": read_once, "pass": one_pass, "fingerprint": compare}


def measured(deed: str, paths: list[str], *, threads: int = 1, cold: bool = False) -> dict[str, float]:
    """Run a deed in a process of its own; processor and wall seconds, and megabytes above its imports."""
    words = [sys.executable, __file__, "--deed", deed, *paths]
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True, env=environ).stdout)  # type: ignore[no-any-return]


def child(deed: str, paths: list[str]) -> None:
    """Do it here, in a process set up as the command line's."""
    from modelassay.machine.libraries import set_up

    set_up(os.environ)
    for module in (
        "modelassay.cli",
        "modelassay.commands.fingerprint",
        "modelassay_kernels",
        "scipy.linalg",
        "scipy.optimize",
    ):
        importlib.import_module(module)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is held now
    before, began, cpu = _peak_mb(), time.perf_counter(), time.process_time()
    DEEDS[deed](paths)
    print(
        json.dumps({
            "cpu_s": time.process_time() - cpu,
            "wall_s": time.perf_counter() - began,
            "above_mb": _peak_mb() - before,
        })
    )


def _peak_mb() -> float:
    """Return the most memory of this process alone; `getrusage` goes on from what the parent held when it forked."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=DRAWN)
    parser.add_argument("--folder", type=Path, default=Path("big-models"))
    parser.add_argument("--into", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cold", action="store_true", help="drop the page cache before each measurement")
    parser.add_argument("--deed", choices=DEEDS)
    parser.add_argument("--kin-only", action="store_true", help="no stranger, where the disk is small")
    parser.add_argument("paths", nargs="*")
    options = parser.parse_args()
    if options.deed is not None:
        child(options.deed, options.paths)
        return
    made = {"parent": (1, None), "child": (1, 2), **({} if options.kin_only else {"stranger": (3, None)})}
    places = {name: options.folder / f"{name}-{options.layers}" for name in made}
    for name, (seed, noise_seed) in made.items():
        if not (places[name] / "config.json").exists():
            write(places[name], options.layers, seed, noise_seed)
    rows = []
    for other in list(places)[1:]:
        paths = [str(places["parent"]), str(places[other])]
        size = sum(Path(path, "model.safetensors").stat().st_size for path in paths)
        result = {deed: measured(deed, paths, cold=options.cold) for deed in DEEDS}
        result[f"{options.threads} threads"] = measured(
            "fingerprint", paths, threads=options.threads, cold=options.cold
        )
        rows.append({"pair": f"parent, {other}", "size_bytes": size, **result})
        print(f"parent and {other}, {size / 1e9:.2f} GB together, load {os.getloadavg()[0]:.1f}")
        for deed, one in result.items():
            ratio = {clock: one[f"{clock}_s"] / max(result["read"][f"{clock}_s"], 1e-9) for clock in ("cpu", "wall")}
            print(f"  {deed:12} {one['cpu_s']:8.2f} CPU-s ({ratio['cpu']:5.2f} of reading) {one['wall_s']:8.2f} s ({ratio['wall']:5.2f}) "
                  f"{one['above_mb']:6.0f} MB above imports")  # fmt: skip
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "modelassay.cli", "fingerprint", "no/such/model", "nor/this"],
        capture_output=True,
        check=False,
    )
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    mistyped = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    print(f"a mistyped path: {mistyped:.2f} CPU-s, with the interpreter's start")
    if options.into is not None:
        options.into.write_text(
            json.dumps({"load": os.getloadavg()[0], "pairs": rows, "mistyped_cpu_s": mistyped}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
