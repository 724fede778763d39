"""Random models whose lineage is asked, what training leaves of one, and the answer in both orders of the arguments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from modelassay.fingerprints.lineage import Lineage, lineage
from modelassay.models.checkpoints import open_checkpoint
from support.tiny_models import save

Change = Callable[[Any], Any]
SIZES = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 300, "bos_token_id": None, "eos_token_id": 1}  # fmt: skip
VARIANTS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
}
SIDES = {"a": "b", "b": "a", None: None}


def base(kind: str = "qwen2", dtype: torch.dtype = torch.float32, **changes: int) -> Any:
    """A random model whose matrices have tails heavier than a Gaussian's, as trained ones have."""
    torch.manual_seed(0)
    model = VARIANTS[kind]()
    if changes:
        model = Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **{**SIZES, **changes}))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.2 * torch.distributions.Laplace(0.0, 1.0).sample(weight.shape) + (weight.ndim == 1))
    return model.to(dtype)


def trained(size: float, *, decay: float = 0.02, tails: bool = False) -> Change:
    """What AdamW leaves: every matrix shrunk, then moved along a few common directions; rare tokens' rows only shrunk.

    With ``tails`` large weights grow instead, which raises the kurtosis that training lowers.
    """

    def change(model: Any) -> Any:
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 1:
                    weight.add_(0.01 * torch.randn(weight.shape, generator=generator))
                    continue
                few = torch.randn(weight.shape[0], 3, generator=generator) @ torch.randn(
                    3, weight.shape[1], generator=generator
                )
                update = few + torch.randn(weight.shape, generator=generator)
                update *= size * float(weight.std()) / float(update.std())
                if tails:
                    update = 0.5 * size * weight * weight.abs() / float(weight.std())
                if len(weight) == SIZES["vocab_size"]:
                    update[:60] = 0.001 * torch.randn(60, weight.shape[1], generator=generator)
                weight.mul_(1 - decay).add_(update)
        return model

    return change


def both_orders(parent: Path, child: Path) -> Lineage:
    """The answer for (parent, child), after checking that (child, parent) has the same with sides exchanged."""
    forward, backward = (lineage(open_checkpoint(x), open_checkpoint(y)) for x, y in ((parent, child), (child, parent)))
    assert backward.kind == forward.kind
    assert set(backward.steps) == set(forward.steps)
    assert backward.parent == SIDES[forward.parent]
    assert forward.evidence
    return forward


def outcome(tmp_path: Path, parent: Any, child: Any) -> Lineage:
    return both_orders(save(parent, tmp_path / "parent"), save(child, tmp_path / "child"))
