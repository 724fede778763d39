"""Loading a local checkpoint through transformers: offline, no remote code, the same bits each time, errors that say what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.errors import CheckpointError, printable
from modelassay.models.checkpoints.architectures import CONFIG_KEYS, MAX_LAYERS, language_config
from modelassay.models.checkpoints.factors import is_factor, quantization_of, refuse_stored
from modelassay.models.checkpoints.tensors import TensorTable
from modelassay.models.gate import one_line, read_json, shown
from modelassay.models.hub import LocalFiles
from modelassay.models.tokenizer import require_small

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_MODULES = 100_000
"""What is built one by one besides layers: experts, labels."""


ADAPTER = "adapter_config.json"
"""Names the base of a LoRA adapter, by a path or a name of the Hub."""


def preload() -> None:
    """Import what loading a model takes (4 s), so that processes forked from this one need not.

    Of architectures those of the zoo and of most checkpoints; others are imported when first met, in a fraction of a second.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401
    from transformers.models.qwen2 import modeling_qwen2  # noqa: F401


def default_device() -> str:
    """Return where models are put that no one has put elsewhere: the GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(path: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu",
               attn_implementation: str | None = None) -> PreTrainedModel:  # fmt: skip
    """Load a causal language model from a local folder, in evaluation mode.

    Weights come from safetensors; a folder that has only ``.bin`` files is read by transformers through
    ``torch.load(weights_only=True)``, which runs no code from the file. Code in the folder is never run.

    Args:
        path: a folder with ``config.json`` and weights.
        dtype: precision of the weights in memory; float32 if None, whatever the file holds.
        device: where the model is put.
        attn_implementation: transformers' name of an attention (``eager``, ``sdpa``, a registered one); its choice if
            None.

    Raises:
        CheckpointError: the folder is missing or damaged, it holds an adapter's configuration beside the model's, its
            architecture is unknown, or tensors are missing from it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder = _folder(path, needs="config.json")
    require_loadable(folder)
    if (folder / ADAPTER).exists():
        raise CheckpointError(
            f"{one_line(folder)}: holds {ADAPTER}, so that transformers would load the base which that names, from wherever it is run, and"
            f" not this model; merge the adapter into its base and save that, or take {ADAPTER} away"
        )
    options: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with quiet(), _worded(folder, "model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or torch.float32, local_files_only=True, trust_remote_code=False,
            output_loading_info=True, **options,
        )  # fmt: skip
    model, info = loaded
    if absent := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{one_line(folder)}: {len(absent)} tensors of {type(model).__name__} are missing, the first {shown(absent[0])}; "
            "transformers would fill them with random numbers. Fetch the checkpoint again, or correct its config.json"
        )
    if unused := sorted(name for name in info["unexpected_keys"] if is_factor(name)):
        raise CheckpointError(
            f"{one_line(folder)}: {shown(unused[0])} says what weights are multiplied by or changed with, and transformers does not "
            "apply it; open the model it was quantised from, or save a dequantised copy"
        )
    ready: PreTrainedModel = model.to(device).eval()
    return ready


def require_loadable(folder: Path) -> None:
    """Refuse a folder whose configuration would build more than its weights hold, or whose weights nothing gives a meaning.

    Reads the headers. A folder that has only ``.bin`` files is judged by its configuration.

    Raises:
        CheckpointError: with the file, and what is wrong with it.
    """
    path = folder / "config.json"
    config = read_json(path)
    if (folder / "generation_config.json").is_file():
        read_json(folder / "generation_config.json")
    files = LocalFiles(str(folder))
    has_weights = any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))
    tensors = TensorTable(files, as_stored=True) if has_weights else None
    _require_few_modules(config, str(path), MAX_LAYERS if tensors is None else min(MAX_LAYERS, len(tensors.names())))
    if tensors is None:
        return
    _, own, _ = language_config(config)
    quantization = quantization_of(config, own, str(path))
    for name in tensors.names():
        file, info = tensors.find(name)
        is_weight = name.endswith(".weight") or info.dtype.startswith("F8_")
        if is_weight and info.dtype not in {"BF16", "F16", "F32", "F64"} and not quantization.get("quant_method"):
            raise refuse_stored(f"{one_line(file)}: {shown(name)[1:-1]}", info, quantization)


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the precision that a checkpoint's config.json states, at its top or for its language model; fp32 where it states none.

    Raises:
        CheckpointError: the file is missing or damaged, or states what is no floating-point type of PyTorch.
    """
    import torch

    path = _folder(folder, needs="config.json") / "config.json"
    config = read_json(path)
    _, own, _ = language_config(config)
    stated = next(
        (part[key] for part in (config, own) for key in ("dtype", "torch_dtype") if part.get(key) is not None),
        "float32",
    )
    dtype = getattr(torch, stated.removeprefix("torch."), None) if isinstance(stated, str) else None
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise CheckpointError(
            f"{one_line(path)}: dtype: expected a floating-point type such as 'bfloat16', got {shown(stated)}; take config.json from the "
            "model's author"
        )
    return dtype


_MODULES = re.compile(r"(layers?|layer|experts|depth|blocks|labels)$")


def _require_few_modules(config: Mapping[str, Any], where: str, most: int) -> None:
    """Refuse a configuration that counts more layers than ``most``, or more of anything that is built one by one than a model has.

    Raises:
        CheckpointError: with the key.
    """
    pending: list[Any] = [config]
    while pending:
        part = pending.pop()
        for key, value in part.items():
            if isinstance(value, dict):
                pending.append(value)
            limit = most if key in CONFIG_KEYS["num_layers"] and part is config else MAX_MODULES
            if _MODULES.search(key) and isinstance(value, int) and value > limit:
                raise CheckpointError(
                    f"{one_line(where)}: {shown(key)[1:-1]}: {shown(value)} is more than {limit:,}; take config.json from the model's author"
                )


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local folder.

    Raises:
        CheckpointError: the folder or its tokenizer files are missing or damaged.
    """
    from transformers import AutoTokenizer

    folder = _folder(path, needs="tokenizer_config.json")
    require_small(folder)
    with quiet(), _worded(folder, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    return tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and warnings.

    Standard error is ours, a cell's log is no terminal, and the names that they quote come as they are in a user's files.
    """
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _worded(folder: Path, what: str) -> Iterator[None]:
    """Say in our words, in one line, what transformers could not load.

    Raises:
        CheckpointError: whatever was raised in here, the panics of the libraries in Rust too.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        first = next(iter(str(error).strip().splitlines()), "")
        raise CheckpointError(
            f"{one_line(folder)}: transformers cannot load its {what}: {type(error).__name__}: {printable(first[:300])}; "
            "fetch the checkpoint again, or check that config.json names an architecture of this transformers version"
        ) from error


WIDE = 1024
"""Hidden size from which matrices are large enough that several threads share the work of one faster than one alone."""


def threads_for(hidden_size: int) -> int:
    """Return how many threads work on a model: one on a narrow one, whose bits then do not depend on the machine's cores."""
    import torch

    return 1 if hidden_size < WIDE else torch.get_num_threads()


@contextmanager
def reproducible(num_threads: int = 1) -> Iterator[None]:
    """Hold the number of threads, which the last bits depend on, and put back what making or running a model changes in the process."""
    import torch

    threads, switch = torch.get_num_threads(), os.environ.get("TOKENIZERS_PARALLELISM")
    torch.set_num_threads(num_threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        with torch.random.fork_rng(devices=[]), quiet():
            yield
    finally:
        torch.set_num_threads(threads)
        if switch is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = switch


def _folder(path: str | Path, *, needs: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{one_line(folder)}: not a folder; give the local folder of a Hugging Face checkpoint")
    if not (folder / needs).is_file():
        names = (
            ", ".join(shown(name)[1:-1] for name in sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        )
        raise CheckpointError(
            f"{one_line(folder)}: no {needs}, it holds {names}; give the folder that holds a whole Hugging Face checkpoint"
        )
    return folder
