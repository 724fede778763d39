"""Which models have a curvature here, and which heads are nothing but a matrix: read off the modules, before any pass."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from modelassay.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLAIN_HEADS = frozenset({"gemma", "gpt2", "llama", "mistral", "qwen2", "qwen3"})
"""Model types whose logits, as transformers writes them, are hidden states times the head's weight: no scale, no soft cap."""

FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
DTYPES = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """Return the model of transformers inside what torch.compile and PEFT put around it.

    Raises:
        UsageError: another wrapper, or no model of transformers.
    """
    from transformers import PreTrainedModel

    inner: Any = model
    while not isinstance(inner, PreTrainedModel):
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif type(inner).__module__.startswith("peft."):
            _refuse_virtual_tokens(inner)
            inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner.model
        else:
            raise UsageError(
                f"curvature: needs a causal language model of transformers, got {type(inner).__name__}; "
                "if it wraps one, give the model inside"
            )
    return inner


def _refuse_virtual_tokens(wrapper: Any) -> None:
    config: Any = getattr(wrapper, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise UsageError(
            f"curvature: {type(wrapper).__name__} ({config.peft_type.value}) puts virtual tokens before the text, so that "
            "positions are no longer those of the labels; give an adapter that lies inside the layers, such as LoRA"
        )


def check_model(model: nn.Module) -> PreTrainedModel:
    """Return the model of transformers inside ``model`` if its loss is a function that has a curvature.

    Raises:
        UsageError: what `transformers_model` refuses, a module in training mode, a hook that changes gradients, parameters
            that are quantised or on several devices, or a model without a next token.
    """
    inner = transformers_model(model)
    for name, module in model.named_modules():
        where = f"{name or 'the model'} ({type(module).__name__})"
        if module.training and (module is model or not _is_steady(name, module)):
            raise UsageError(f"curvature: {where} is in training mode, where dropout makes each product another operator's; call model.eval() first")  # fmt: skip
        if any(vars(module).get(kind) for kind in BACKWARD_HOOKS):
            raise UsageError(f"curvature: {where} has a backward hook; a gradient that a hook can change has no Hessian. Remove the hook")  # fmt: skip
    if inner.config.is_encoder_decoder:
        raise UsageError(
            f"curvature: {type(inner).__name__} has an encoder and a decoder; needs a causal language model"
        )
    if "labels" not in inspect.signature(type(inner).forward).parameters:
        raise UsageError(f"curvature: {type(inner).__name__} takes no labels and has no loss; load it as AutoModelForCausalLM")  # fmt: skip
    first = next(model.parameters())
    for name, parameter in model.named_parameters():
        if parameter.dtype not in DTYPES:
            raise UsageError(f"curvature: {name} is {parameter.dtype}; a quantised weight has no derivative. Load the model unquantised")  # fmt: skip
        if parameter.device != first.device or parameter.is_meta:
            raise UsageError(f"curvature: {name} is on {parameter.device}, the first parameter on {first.device}; load the model onto one device")  # fmt: skip
    return inner


def _is_steady(name: str, module: nn.Module) -> bool:
    """Whether a module computes the same in training mode: a layer put in after ``eval()``, or a reparametrisation."""
    is_stochastic = isinstance(module, nn.modules.dropout._DropoutNd | nn.modules.batchnorm._NormBase | nn.RReLU)
    is_torchs = type(module).__module__.startswith("torch.nn.")
    return ".parametrizations." in f".{name}." or (is_torchs and not is_stochastic)


def vocabulary_size(inner: Any) -> int:
    """Return how many tokens a model knows: as its configuration says, or as rows of its embedding."""
    stated = getattr(inner.config.get_text_config(), "vocab_size", None)
    if isinstance(stated, int):
        return stated
    return int(inner.get_input_embeddings().weight.shape[0])


def parameter_dtype(model: nn.Module) -> torch.dtype:
    """Return the type that holds all parameters as they are; adapters are often wider than what they adapt."""
    dtype = next(model.parameters()).dtype
    for parameter in model.parameters():
        dtype = torch.promote_types(dtype, parameter.dtype)
    return dtype


def plain_head(model: nn.Module) -> nn.Linear | None:
    """Return the output head if logits are nothing but the last hidden states times its weight; None if anything could differ.

    The head must be PyTorch's own linear layer without a bias, and it and the model as transformers wrote them: no hook, no
    forward of their own, no mask or reparametrisation of the weight, no adapter around either.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or model.config.model_type not in PLAIN_HEADS:
        return None
    forward = inspect.unwrap(type(model).forward)
    if not type(model).__module__.startswith("transformers.models.") or forward.__module__ != type(model).__module__:
        return None
    if any(getattr(nn.modules.module, hooks) for hooks in GLOBAL_HOOKS):
        return None
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if type(head) is not nn.Linear or head.bias is not None or "weight" not in vars(head)["_parameters"]:
        return None
    return head if is_untouched(model) and is_untouched(head) else None


def is_untouched(module: nn.Module) -> bool:
    """Whether calling a module is calling its class's forward: it has no hooks and no forward of its own.

    >>> is_untouched(nn.Linear(1, 1))
    True
    """
    own = vars(module)
    return "forward" not in own and not any(own.get(hooks) for hooks in (*FORWARD_HOOKS, *BACKWARD_HOOKS))
