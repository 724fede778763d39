"""The calls to vLLM, against stand-ins with the signatures of its release 0.29.0: no GPU is needed, nor vLLM."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from modelassay.errors import HostError, UsageError
from modelassay.generation.engine import Prompt, Sampling
from modelassay.generation.vllm import VllmEngine


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None
    load_inplace: bool = False


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int | None = 16
    stop_token_ids: list[int] | None = None


class LLM:
    """Answers with the adapter's number and the prompt's last token."""

    def __init__(self, model: str, *, dtype: str = "auto", seed: int = 0, gpu_memory_utilization: float = 0.92, max_model_len: int | None = None,
                 enable_lora: bool = False, max_loras: int = 1, max_lora_rank: int = 16) -> None:  # fmt: skip
        self.enabled, self.max_rank = enable_lora, max_lora_rank

    def generate(self, prompts: Sequence[Any], sampling_params: Any = None, *, use_tqdm: bool = True, lora_request: Any = None) -> list[Any]:  # fmt: skip
        assert len(prompts) == len(sampling_params) == len(lora_request)
        said = []
        for prompt, parameters, request in zip(prompts, sampling_params, lora_request, strict=True):
            assert request is None or (self.enabled and self.max_rank >= 32)
            token = prompt["prompt_token_ids"][-1]
            number = 0 if request is None else request.lora_int_id
            one = SimpleNamespace(token_ids=[number, token], text=f"{number}", finish_reason="length" if parameters.max_tokens == 2 else "stop")  # fmt: skip
            said.append(SimpleNamespace(outputs=[one]))
        return said


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> VllmEngine:
    package, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    request.LoRARequest = LoRARequest  # type: ignore[attr-defined]
    for name, module in (("vllm", package), ("vllm.lora", ModuleType("vllm.lora")), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    return VllmEngine(Path("/model"), {"a": Path("/a"), "b": Path("/b")})


def test_each_prompt_asks_its_adapter(engine: VllmEngine) -> None:
    prompts = [Prompt(ids=(1, 9), seed=2**63, adapter=name) for name in ("b", None, "a")]
    said = engine.complete(prompts, Sampling(max_new_tokens=2))
    assert [completion.ids for completion in said] == [(2, 9), (0, 9), (1, 9)]
    assert {completion.finish for completion in said} == {"length"}
    assert engine.complete(prompts[:1], Sampling(max_new_tokens=3, top_k=4, stop_ids=(7,)))[0].finish == "stop"
    with pytest.raises(UsageError, match="no adapter 'c'; there are a, b"):
        engine.complete([Prompt(ids=(1,), seed=0, adapter="c")], Sampling(max_new_tokens=1))


def test_without_vllm_it_says_where_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(HostError, match="--image vllm"):
        VllmEngine(Path("/model"))
