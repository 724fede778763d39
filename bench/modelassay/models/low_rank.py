"""Low-rank adapters (LoRA, Hu et al. 2106.09685): many of them on one frozen base, chosen group by group or row by row.

::

    bank = Bank.attach(model, LowRank(rank=32, alpha=64), names=["a", "b"], seeds=[0, 1])
    with bank.grouped():                 # the rows of a batch are those of a, then as many of b
        model(input_ids=ids_BS)
    with bank.of_rows(["b", None, "a"]): # the second row sees the base alone
        model(input_ids=ids_BS)

The base's products are computed once for all rows; each adapter's own are two narrow products beside them.
"""

# N = adapters, B = rows of a batch, S = tokens of a row, I and O = width of what goes into a matrix and comes out, R = rank

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modelassay.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """The shape of an adapter: W x + scaling * B A dropout(x)."""

    rank: int = 32
    alpha: float = 64
    dropout: float = 0.0
    """Share of the inputs of A that are zero in training; the others are scaled up."""
    rank_stabilised: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2312.03732)."""
    targets: tuple[str, ...] | None = None
    """Last parts of the names of the matrices that are adapted; all linear ones but the head if None."""

    @property
    def scaling(self) -> float:
        """What the product of B and A is multiplied by.

        >>> LowRank(rank=32, alpha=64).scaling, LowRank(rank=16, alpha=64, rank_stabilised=True).scaling
        (2.0, 16.0)
        """
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


class AdaptedLinear(nn.Module):
    """A frozen linear layer with the low-rank parts of all adapters of a bank."""

    def __init__(self, linear: nn.Linear, number: int, bank: Bank) -> None:
        """Stand in the place of ``linear``, the ``number``-th of the bank."""
        super().__init__()
        self.linear, self._number = linear, number
        self._bank = [bank]  # in a list, so that it is no part of the module's state

    def forward(self, x_BSI: Tensor) -> Tensor:
        """Return the layer's output, with what the adapters that are chosen add."""
        out_BSO: Tensor = self.linear(x_BSI)
        added = self._bank[0].added(self._number, x_BSI)
        return out_BSO if added is None else out_BSO + added.to(out_BSO.dtype)


class Bank:
    """Adapters of one shape on one model, each under a name; their weights are stacked, [N, R, I] and [N, O, R] for each layer."""

    def __init__(self, model: PreTrainedModel, shape: LowRank, layers: Mapping[str, nn.Linear]) -> None:
        """Belong to a model whose ``layers`` are adapted; `attach` makes one."""
        self.model, self.shape = model, shape
        self.layers = tuple(layers)
        self.sizes = [(layer.in_features, layer.out_features) for layer in layers.values()]
        self.names: tuple[str, ...] = ()
        self.a: list[Tensor] = []
        self.b: list[Tensor] = []
        self._rows: Tensor | None = None
        self._one: int | None = None
        self._gathered: dict[int, tuple[Tensor, Tensor]] = {}
        self._is_grouped = False
        self._masks: Sequence[tuple[int, int]] | None = None

    @classmethod
    def attach(
        cls, model: PreTrainedModel, shape: LowRank, *, names: Sequence[str] = (), seeds: Sequence[int] = ()
    ) -> Bank:
        """Freeze a model and put adapters beside its linear layers: A drawn by each one's seed, B zero, as peft does.

        Raises:
            UsageError: no layer is meant, or the model has a bank already.
        """
        any_model: Any = model  # transformers leaves the method untyped
        head = any_model.get_output_embeddings()
        linears = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
            and (shape.targets is None or name.rpartition(".")[2] in shape.targets)
        }  # fmt: skip
        if any(isinstance(module, AdaptedLinear) for module in model.modules()):
            raise UsageError("adapters: the model has adapters already; load it anew")
        if not linears:
            raise UsageError(f"adapters: the model has no linear layer named {', '.join(shape.targets or ('any',))}")
        model.requires_grad_(False)
        bank = cls(model, shape, linears)
        for number, (name, linear) in enumerate(linears.items()):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, AdaptedLinear(linear, number, bank))
        bank.fill(names, [bank.initial(seed) for seed in seeds])
        return bank

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Return an untrained adapter: A uniform within 1 / sqrt(I), B zero, in float32."""
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for name, (size_in, size_out) in zip(self.layers, self.sizes, strict=True):
            drawn = torch.rand(self.shape.rank, size_in, generator=generator)
            weights[f"{name}.lora_A"] = (2 * drawn - 1) / math.sqrt(size_in)
            weights[f"{name}.lora_B"] = torch.zeros(size_out, self.shape.rank)
        return weights

    def fill(self, names: Sequence[str], adapters: Sequence[Mapping[str, Tensor]]) -> None:
        """Hold these adapters and no others."""
        if len(names) != len(adapters) or len(set(names)) != len(names):
            raise UsageError(
                f"adapters: {len(adapters)} adapters have {len(set(names))} names; give each one of its own"
            )
        device = self.model.device
        self.names = tuple(names)
        self._release()
        if not names:
            self.a, self.b = [], []
            return
        self.a = [
            torch.stack([each[f"{name}.lora_A"] for each in adapters]).to(device).contiguous() for name in self.layers
        ]
        self.b = [
            torch.stack([each[f"{name}.lora_B"] for each in adapters]).to(device).contiguous() for name in self.layers
        ]

    def weights(self, name: str) -> dict[str, Tensor]:
        """Return an adapter's weights, sharing memory with the bank."""
        at = self.names.index(name)
        own: dict[str, Tensor] = {}
        for layer, a_NRI, b_NOR in zip(self.layers, self.a, self.b, strict=True):
            own[f"{layer}.lora_A"], own[f"{layer}.lora_B"] = a_NRI.detach()[at], b_NOR.detach()[at]
        return own

    @contextmanager
    def grouped(self, masks: Sequence[tuple[int, int]] | None = None) -> Iterator[None]:
        """Within it the rows of a batch are as many of each adapter, in the order of the names.

        Args:
            masks: for each adapter the seed of its dropout, and its tokens of a row: what is dropped of them depends on nothing else.
        """
        self._is_grouped, self._masks = True, masks
        try:
            yield
        finally:
            self._is_grouped, self._masks = False, None

    @contextmanager
    def of_rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Within it each row of a batch sees the adapter named for it, or none."""
        self._choose(names)
        try:
            yield
        finally:
            self._release()

    def _choose(self, names: Sequence[str | None]) -> None:
        """Let the rows of the batches to come see these adapters."""
        numbers = [-1 if name is None else self.names.index(name) for name in names]
        self._release()
        if len(set(numbers)) == 1:
            self._one = numbers[0] if numbers[0] >= 0 else None
        else:
            self._rows = torch.tensor(numbers, device=self.model.device)

    def _release(self) -> None:
        self._rows, self._one, self._gathered = None, None, {}

    def added(self, number: int, x_BSI: Tensor) -> Tensor | None:
        """Return what the chosen adapters add to a layer's output, [B, S, O]; None where none is chosen."""
        if self._is_grouped:
            return self._added_by_groups(number, x_BSI)
        if self._one is not None:
            a_RI, b_OR = self.a[number][self._one], self.b[number][self._one]
            return self.shape.scaling * ((x_BSI.to(a_RI.dtype) @ a_RI.mT) @ b_OR.mT)
        if self._rows is None:
            return None
        if number not in self._gathered:
            present_B11 = (self._rows >= 0).view(-1, 1, 1)
            rows = self._rows.clamp(min=0)
            self._gathered[number] = (self.a[number][rows] * present_B11, self.b[number][rows])
        a_BRI, b_BOR = self._gathered[number]
        return self.shape.scaling * torch.bmm(torch.bmm(x_BSI.to(a_BRI.dtype), a_BRI.mT), b_BOR.mT)

    def _added_by_groups(self, number: int, x_BSI: Tensor) -> Tensor:
        a_NRI, b_NOR = self.a[number], self.b[number]
        size_B, size_S, size_I = x_BSI.shape
        x = x_BSI.to(a_NRI.dtype).reshape(len(self.names), -1, size_S, size_I)
        if self._masks is not None and self.shape.dropout:
            x = x * self._kept(number, x)
        low = torch.bmm(x.flatten(1, 2), a_NRI.mT)
        return self.shape.scaling * torch.bmm(low, b_NOR.mT).view(size_B, size_S, -1)

    def _kept(self, number: int, x: Tensor) -> Tensor:
        """Return what the inputs are multiplied by: 0, or the inverse of the share that is kept; beyond an adapter's own tokens 1."""
        assert self._masks is not None
        kept = torch.ones_like(x)
        for at, (seed, length) in enumerate(self._masks):
            digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
            generator = torch.Generator(x.device).manual_seed(int.from_bytes(digest, "little") >> 1)
            drawn = torch.rand(x.shape[1], length, x.shape[3], generator=generator, device=x.device, dtype=x.dtype)
            kept[at, :, :length] = (drawn >= self.shape.dropout) / (1 - self.shape.dropout)
        return kept

    def save(self, name: str, folder: Path) -> None:
        """Write an adapter as peft does: `peft.PeftModel.from_pretrained` and vLLM load it."""
        save_adapter(self.weights(name), self.shape, folder)


def save_adapter(weights: Mapping[str, Tensor], shape: LowRank, folder: Path) -> None:
    """Write an adapter's weights and configuration in peft's form into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{_PREFIX}{name}.weight": tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()
    }
    targets = sorted({name.rpartition(".")[0].rpartition(".")[2] for name in weights})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True, "bias": "none",
        "r": shape.rank, "lora_alpha": shape.alpha, "lora_dropout": shape.dropout, "use_rslora": shape.rank_stabilised,
        "target_modules": targets,
    }  # fmt: skip
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load_adapter(folder: Path) -> dict[str, Tensor]:
    """Return the weights that `save_adapter` wrote, by layer.

    Raises:
        CheckpointError: they are not there, or of another form.
    """
    try:
        tensors = load_file(folder / WEIGHTS)
    except Exception as error:
        raise CheckpointError(f"{folder / WEIGHTS}: no adapter can be read from it ({error})") from error
    if wrong := [name for name in tensors if not (name.startswith(_PREFIX) and name.endswith(".weight"))]:
        raise CheckpointError(f"{folder / WEIGHTS}: {wrong[0]} is no tensor of a LoRA adapter; save it with peft")
    return {name.removeprefix(_PREFIX).removesuffix(".weight"): tensor for name, tensor in tensors.items()}


@torch.no_grad()
def merge(model: PreTrainedModel, weights: Mapping[str, Tensor], shape: LowRank) -> PreTrainedModel:
    """Add an adapter to the weights of a model without a bank, in place and in the model's type; return the model."""
    for name in {name.rpartition(".")[0] for name in weights}:
        layer: Any = model.get_submodule(name)
        product = weights[f"{name}.lora_B"].double() @ weights[f"{name}.lora_A"].double()
        layer.weight.add_((shape.scaling * product).to(layer.weight))
    return model
