"""Completions by vLLM: one engine with all adapters, each prompt asking its own (``LoRARequest`` a prompt).

For scales at which transformers is too slow. vLLM draws tokens with its own random numbers, so a sampled completion is another
one than that of `TransformersEngine` for the same seed; greedy ones must be the same, which a caller checks before it trusts a rate.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelassay.errors import HostError, UsageError
from modelassay.generation.engine import Completion, Finish, Prompt, Sampling

MAX_LORAS = 8
"""Adapters of one batch; more wait for their turn."""


class VllmEngine:
    """Completes prompts with vLLM; needs its package and a GPU."""

    def __init__(self, model: Path, adapters: Mapping[str, Path] | None = None, *, max_rank: int = 32, memory_share: float = 0.6,
                 max_length: int | None = None, dtype: str = "bfloat16") -> None:  # fmt: skip
        """Start an engine.

        Args:
            model: a local folder.
            adapters: name to the folder that peft or `low_rank.save_adapter` wrote.
            max_rank: the greatest rank of an adapter; vLLM's own default of 16 refuses greater ones.
            memory_share: of the GPU.
            max_length: tokens of prompt and completion; the model's if None.
            dtype: of the weights in memory.

        Raises:
            HostError: vLLM is not installed.
        """
        try:
            vllm: Any = importlib.import_module("vllm")
            request: Any = importlib.import_module("vllm.lora.request")
        except ImportError as error:
            raise HostError(
                f"vLLM cannot be imported ({error}); run in its image (--in container --image vllm), or take engine: transformers"
            ) from error
        paths = dict(adapters or {})
        self._requests = {
            name: request.LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(path))
            for number, (name, path) in enumerate(paths.items(), start=1)
        }
        self._parameters = vllm.SamplingParams
        options: dict[str, Any] = {} if max_length is None else {"max_model_len": max_length}
        if paths:
            options |= {"enable_lora": True, "max_loras": min(MAX_LORAS, len(paths)), "max_lora_rank": max_rank}
        self._llm = vllm.LLM(model=str(model), dtype=dtype, gpu_memory_utilization=memory_share, seed=0, **options)

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Return one completion a prompt, in the order of the prompts.

        Raises:
            UsageError: a prompt asks an adapter that is not there.
        """
        if unknown := [prompt.adapter for prompt in prompts if prompt.adapter not in {None, *self._requests}]:
            raise UsageError(f"no adapter {unknown[0]!r}; there are {', '.join(self._requests) or 'none'}")
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt.ids)} for prompt in prompts],
            sampling_params=[self._one(prompt, sampling) for prompt in prompts],
            lora_request=[None if prompt.adapter is None else self._requests[prompt.adapter] for prompt in prompts],
            use_tqdm=False,
        )
        return [_completion(output.outputs[0]) for output in outputs]

    def _one(self, prompt: Prompt, sampling: Sampling) -> Any:
        return self._parameters(
            n=1, temperature=sampling.temperature, top_p=1.0 if sampling.top_p is None else sampling.top_p,
            top_k=-1 if sampling.top_k is None else sampling.top_k, seed=prompt.seed % 2**63, max_tokens=sampling.max_new_tokens,
            stop_token_ids=None if sampling.stop_ids is None else list(sampling.stop_ids),
        )  # fmt: skip


def _completion(output: Any) -> Completion:
    finish: Finish = "length" if output.finish_reason == "length" else "stop"
    return Completion(ids=tuple(output.token_ids), text=output.text, finish=finish)
