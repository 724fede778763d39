"""Tiny language models of five architectures, their data, and dense float64 references that share no code with the operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from modelassay.curvature.loss import IGNORED, Microbatch, microbatches, second_order

VOCABULARY = 11
_ROPE = {"hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": 16}  # fmt: skip

CASES: dict[str, dict[str, Any]] = {
    "qwen2": {**_ROPE, "tie_word_embeddings": True},
    "llama": {**_ROPE, "tie_word_embeddings": False},
    "mistral": {**_ROPE, "sliding_window": 3},
    "gemma": {**_ROPE, "head_dim": 4},
    "gpt2": {"n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 8, "n_inner": 6},
    "gpt_neox": {key: _ROPE[key] for key in _ROPE if key != "num_key_value_heads"},
}  # fmt: skip
"""GQA, tied (qwen2, gemma, gpt2) and untied heads, SiLU, GELU, GeGLU, a window; gpt_neox goes the way of unlisted heads."""


def make_model(model_type: str, *, scale: float = 0.3, **changes: Any) -> Any:
    """A random float64 model without a padding id; weights large enough that no derivative is negligible."""
    torch.manual_seed(0)
    special = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id"])
    config = transformers.CONFIG_MAPPING[model_type](
        vocab_size=VOCABULARY, **{**special, **CASES[model_type], **changes}
    )
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return model


def make_batch(num_sequences: int = 3, length: int = 6, seed: int = 1) -> Microbatch:
    """Sequences of which some tokens carry no loss and the last is padded on the right."""
    ids = torch.randint(0, VOCABULARY, (num_sequences, length), generator=torch.Generator().manual_seed(seed))
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[0, :3] = IGNORED
    mask[-1, -2:] = 0
    labels[mask == 0] = IGNORED
    return Microbatch(input_ids_BT=ids, labels_BT=labels, attention_mask_BT=mask)


def split(batch: Microbatch, size: int) -> list[Microbatch]:
    return microbatches(
        batch.input_ids_BT, size=size, labels_BT=batch.labels_BT, attention_mask_BT=batch.attention_mask_BT
    )


def flat_logits(model: Any, batch: Microbatch) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor]:
    """Logits [N, V] of the predicted tokens as a function of the flat parameters; those, the targets, their sequences."""
    named = dict(model.named_parameters())
    start_P = torch.cat([parameter.detach().flatten() for parameter in named.values()])
    counted = batch.labels_BT[:, 1:] != IGNORED
    buffers = {
        name: buffer.double() if buffer.is_floating_point() else buffer for name, buffer in model.named_buffers()
    }

    def logits(flat_P: Tensor) -> Tensor:
        parts = flat_P.split([parameter.numel() for parameter in named.values()])
        tensors = {name: part.view_as(named[name]) for name, part in zip(named, parts, strict=True)}
        given = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT, "use_cache": False}
        return torch.func.functional_call(model, buffers | tensors, (), given).logits[:, :-1][counted]

    sequences = torch.arange(len(counted))[:, None].expand_as(counted)[counted]
    return logits, start_P, batch.labels_BT[:, 1:][counted], sequences


def dense_hessian(model: Any, batch: Microbatch) -> Tensor:
    """[P, P] by double backward."""
    logits, start_P, targets_N, _ = flat_logits(model, batch)
    with second_order(model, torch.float64, "eager"), torch.enable_grad():
        flat_P = start_P.clone().requires_grad_()
        (gradient_P,) = torch.autograd.grad(F.cross_entropy(logits(flat_P), targets_N), flat_P, create_graph=True)
        every_row = torch.eye(len(flat_P), dtype=torch.float64)
        (rows_PP,) = torch.autograd.grad(gradient_P, flat_P, every_row, is_grads_batched=True)
    return rows_PP


def dense_jacobian(model: Any, batch: Microbatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """J [N, V, P] of the logits, their softmax, the targets, the sequences."""
    logits, start_P, targets_N, sequences_N = flat_logits(model, batch)
    with second_order(model, torch.float64, "eager"):
        jacobian_NVP = torch.func.jacrev(logits)(start_P)
        p_NV = torch.softmax(logits(start_P), -1)
    return jacobian_NVP, p_NV, targets_N, sequences_N


def token_gradients(jacobian_NVP: Tensor, p_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Gradient of -log p(label) per token, [N, P]: (p - onehot) J."""
    residual_NV = p_NV - F.one_hot(labels_N, p_NV.shape[1])
    return torch.einsum("nv,nvp->np", residual_NV, jacobian_NVP)


def off(actual: Tensor, expected: Tensor) -> float:
    """Relative error in the Frobenius norm."""
    return float((actual - expected).norm() / expected.norm())


def trained_model(*, hidden: int = 8, vocabulary: int = 12, steps: int = 150, seed: int = 0) -> tuple[Any, Tensor]:
    """A Qwen2 of one layer trained on a Markov chain, in float64, and sequences [24, 8] it has not seen."""
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=1, tie_word_embeddings=True,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
        **dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id"]),
    )  # fmt: skip
    model: Any = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    transitions = torch.softmax(2.5 * torch.randn(vocabulary, vocabulary), -1)

    def draw(count: int) -> Tensor:
        tokens = [torch.randint(0, vocabulary, (count,))]
        for _ in range(7):
            tokens.append(torch.multinomial(transitions[tokens[-1]], 1)[:, 0])
        return torch.stack(tokens, 1)

    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        batch = draw(32)
        optimiser.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
    return model.double().eval(), draw(24)


def own_product(model: Any, batch: Microbatch, v_P: Tensor) -> tuple[float, Tensor]:
    """The loss that the model's own call with labels returns, and its Hessian times a vector, by double backward through eager attention."""
    leaves = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    inputs = {"input_ids": batch.input_ids_BT, "labels": batch.labels_BT, "attention_mask": batch.attention_mask_BT}
    with second_order(model, torch.float64, "eager"), torch.enable_grad():
        loss = torch.func.functional_call(model, leaves, (), inputs).loss
        gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, materialize_grads=True)
        inner = torch.cat([gradient.flatten() for gradient in gradients]) @ v_P
        products = torch.autograd.grad(inner, list(leaves.values()), materialize_grads=True)
    return float(loss.detach()), torch.cat([product.flatten() for product in products])
