"""Loading a local checkpoint through transformers: offline, no remote code, the same bits each time, errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


ADAPTER = "adapter_config.json"
"""Names the base of a LoRA adapter, by a path or a name of the Hub."""


def preload() -> None:
    """Import what loading a model takes (4 s), so that processes forked from this one need not.

    Of architectures those of the zoo and of most checkpoints; others are imported when first met, in a fraction of a second.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401
    from transformers.models.qwen2 import modeling_qwen2  # noqa: F401


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
    if (folder / ADAPTER).exists():
        raise CheckpointError(
            f"{folder}: holds {ADAPTER}, so that transformers would load the base which that names, from wherever it is run, and"
            f" not this model; merge the adapter into its base and save that, or take {ADAPTER} away"
        )
    options: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype or torch.float32, local_files_only=True, trust_remote_code=False,
                output_loading_info=True, **options,
            )  # fmt: skip
    except Exception as error:
        raise _unreadable(folder, "model", error) from error
    model, info = loaded
    if absent := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{folder}: {len(absent)} tensors of {type(model).__name__} are missing, the first {absent[0]!r}; "
            "transformers would fill them with random numbers. Fetch the checkpoint again, or correct its config.json"
        )
    ready: PreTrainedModel = model.to(device).eval()
    return ready


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local folder.

    Raises:
        CheckpointError: the folder or its tokenizer files are missing or damaged.
    """
    from transformers import AutoTokenizer

    folder = _folder(path, needs="tokenizer_config.json")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise _unreadable(folder, "tokenizer", error) from error
    return tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars: standard error is ours, and a cell's log is no terminal."""
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]


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
        raise CheckpointError(f"{folder}: not a folder; give the local folder of a Hugging Face checkpoint")
    if not (folder / needs).is_file():
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise CheckpointError(
            f"{folder}: no {needs}, found {names}; give the folder that holds a whole Hugging Face checkpoint"
        )
    return folder


def _unreadable(folder: Path, what: str, error: Exception) -> CheckpointError:
    first = next(iter(str(error).strip().splitlines()), "")
    return CheckpointError(
        f"{folder}: transformers cannot load its {what}: {type(error).__name__}: {first}; "
        "fetch the checkpoint again, or check that config.json names an architecture of this transformers version"
    )
