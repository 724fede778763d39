"""Tiny models of many architectures, and what their own projections compute, against which every matrix that is read is held."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from ruamel.yaml import YAML
from safetensors.torch import load_file
from torch import Tensor, nn

from modelassay.models.checkpoints import Checkpoint
from modelassay.models.checkpoints.tensors import Matrix

CASES: Mapping[str, dict[str, Any]] = YAML(typ="safe", pure=True).load(
    (Path(__file__).parents[1] / "cases" / "architectures.yaml").read_text(encoding="utf-8")
)
"""Settings by the name of a case."""

_AUTO = ("CausalLM", "ImageTextToText", "Seq2SeqLM", "MaskedLM", "SpeechSeq2Seq")
_NAMES = {
    "q": "q_proj|query|q_lin|Wq|q|query_proj", "k": "k_proj|key|k_lin|Wk|k|key_proj", "v": "v_proj|value|v_lin|Wv|v|value_proj",
    "o": r"o_proj|out_proj|out_lin|dense|c_proj|Wo|o", "q-a": "q_a_proj", "q-b": "q_b_proj", "kv-a": "kv_a_proj_with_mqa", "kv-b": "kv_b_proj",
    "gate": "gate_proj|w1|wi_0|fc12|gate_up_proj|Wi|input_linear", "down": "down_proj|w2|wo|Wo|c_proj|fc2|fc_out|dense_4h_to_h|lin2|dense|output_dense|ffn_output|layer_2|2|output_linear",
    "up": "up_proj|w3|wi_1|wi|c_fc|fc1|fc_in|fc11|dense_h_to_4h|lin1|dense|intermediate_dense|ffn|layer_1|0|gate_up_proj|Wi|input_linear",
}  # fmt: skip
"""What the models' own code calls the module of each role."""


def _in_turns(y: Tensor, heads: int, role: str, order: str) -> Tensor:
    """Take one role out of a projection's output [n, heads, sharers, head dimension]."""
    return y.reshape(len(y), heads, len(order), -1)[:, :, order.index(role)].reshape(len(y), -1)


def _falcon(config: Any, y: Tensor, role: str) -> Tensor:
    groups = config.num_kv_heads if config.new_decoder_architecture else 1
    heads = y.reshape(len(y), groups, -1, config.hidden_size // config.num_attention_heads)
    part = {"q": heads[:, :, :-2], "k": heads[:, :, -2:-1], "v": heads[:, :, -1:]}[role]
    return part.reshape(len(y), -1)


def _codegen(config: Any, y: Tensor, role: str) -> Tensor:
    shards = y.reshape(len(y), 4, -1)
    return shards.split(shards.shape[-1] // 3, -1)["qvk".index(role)].reshape(len(y), -1)


def _blocks(config: Any, y: Tensor, role: str) -> Tensor:
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = y.shape[-1] // (heads + 2 * groups)
    return y.split([heads * size, groups * size, groups * size], -1)["qkv".index(role)]


def _bigcode(config: Any, y: Tensor, role: str) -> Tensor:
    if config.multi_query:
        size = config.n_embd // config.n_head
        return y.split([config.n_embd, size, size], -1)["qkv".index(role)]
    return _in_turns(y, config.n_head, role, "qkv")


def _dbrx(config: Any, y: Tensor, role: str) -> Tensor:
    size, groups = config.d_model // config.n_heads, config.attn_config.kv_n_heads
    return y.split([config.d_model, groups * size, groups * size], -1)["qkv".index(role)]


def _by_head(config: Any, y: Tensor, role: str) -> Tensor:
    return _in_turns(y, config.num_attention_heads, role, "qkv")


SPLITS: Mapping[str, Callable[[Any, Tensor, str], Tensor]] = {
    **dict.fromkeys(["phi3", "phi4_multimodal", "modernbert", "nomic_bert", "gpt2", "openai-gpt", "mpt"], _blocks),
    **dict.fromkeys(["gpt_neox", "gpt_neox_japanese", "bloom", "persimmon", "deberta"], _by_head),
    "falcon": _falcon, "codegen": _codegen, "gpt_bigcode": _bigcode, "dbrx": _dbrx,
}  # fmt: skip
"""How each model's forward takes q, k and v out of one projection's output, written anew from its code."""


def build(name: str) -> nn.Module:
    """A random model, with the head that transformers has for its kind."""
    settings = dict(CASES[name])
    config = transformers.CONFIG_MAPPING[settings.pop("_t", name)](**settings)
    torch.manual_seed(0)
    for auto in _AUTO:
        mapping = getattr(transformers, f"AutoModelFor{auto}")
        wraps = (
            auto == "CausalLM"
            and hasattr(config, "text_config")
            and type(config) in transformers.AutoModelForImageTextToText._model_mapping
        )
        if type(config) in mapping._model_mapping and not wraps:
            model = mapping.from_config(config)
            break
    else:
        model = transformers.AutoModel.from_config(config)
    model = model.float().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    return model  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the matrices of one checkpoint compare with what the model computes."""

    num_equal: int
    num_networks: int
    """Matrices of feed-forward networks among these."""
    wrong: list[str]
    unknown: list[str]
    """Matrices whose module the model does not have, as experts that it holds in one parameter."""


def compare(model: nn.Module, folder: Path, checkpoint: Checkpoint, networks: list[Matrix]) -> Outcome:
    """Compute each matrix's product with a random input by the model's own module, and by the matrix."""
    stored: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    modules: dict[tuple[int, ...], list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding):
            modules.setdefault(tuple(weight.shape), []).append((name, module))
    equal, of_networks, wrong, unknown = 0, 0, [], []
    for matrix in [*checkpoint.matrices, *networks]:
        where = f"layer {matrix.layer}: {matrix.role} ({matrix.tensor_name})"
        ours = checkpoint.read(matrix).double()
        if (computed := _computed(model, checkpoint, matrix, stored, modules)) is None:
            unknown.append(where)
        elif isinstance(computed, str):
            wrong.append(f"{where}: {computed}")
        else:
            x, y = computed
            product = x @ ours.T
            if product.shape == y.shape and torch.allclose(product, y, rtol=1e-9, atol=1e-12):
                equal += 1
                of_networks += matrix.role in {"gate", "up", "down"}
            else:
                wrong.append(where)
    return Outcome(num_equal=equal, num_networks=of_networks, wrong=wrong, unknown=unknown)


def _computed(
    model: nn.Module, checkpoint: Checkpoint, matrix: Matrix, stored: Mapping[str, Tensor], modules: Mapping[tuple[int, ...], list[tuple[str, nn.Module]]]
) -> tuple[Tensor, Tensor] | str | None:  # fmt: skip
    """Return a random input and what the model's module makes of it, less its bias; why it is another's; None where there is no module."""
    weight = stored[matrix.tensor_name]
    generator = torch.Generator().manual_seed(0)
    if checkpoint.architecture == "xlnet" and matrix.role in "qkvo":
        x = torch.randn(3, matrix.shape[1], generator=generator, dtype=torch.float64)
        if matrix.role == "o":
            return x, torch.einsum("bnd,hnd->bh", x.reshape(3, *weight.shape[1:]), weight.double())
        return x, torch.einsum("bh,hnd->bnd", x, weight.double()).reshape(3, -1)
    name, module = next(
        ((n, m) for n, m in modules.get(tuple(weight.shape), []) if torch.equal(m.weight, weight)), (None, None)  # type: ignore[arg-type]
    )  # fmt: skip
    if name is None or module is None:
        return None
    layer = checkpoint.layers[matrix.layer]
    if str(layer.number) not in name.split("."):
        return f"is {name}, of another layer"
    x = torch.randn(3, matrix.shape[1], generator=generator, dtype=torch.float64)
    with torch.no_grad():
        double = module.double()
        outputs = double(x), double(torch.zeros_like(x))
        first, zero = (output[0] if isinstance(output, tuple) else output for output in outputs)
        y = first - zero
        module.float()
    leaf = name.rpartition(".")[2]
    config: Any = getattr(model.config, "text_config", None) or model.config
    if matrix.shares and matrix.role in {"gate", "up"}:
        return x, y.chunk(2, -1)[("gate", "up").index(matrix.role)]
    if matrix.shares and matrix.shares[-1][0] == "gate":  # the query of each head, then its gate
        return x, y.reshape(3, config.num_attention_heads, 2, -1)[:, :, 0].reshape(3, -1)
    if matrix.shares:
        return x, SPLITS[checkpoint.architecture](config, y, matrix.role)
    if not re.fullmatch(_NAMES[matrix.role], leaf):
        return f"is {name}, which is not what that code calls it"
    return x, y
