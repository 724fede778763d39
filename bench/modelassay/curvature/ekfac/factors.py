"""Fitting factors: covariances, their eigenbases, and the corrected eigenvalues, in parts that survive a kill.

With a_p the input and g_p the gradient of the output at position p, G_s = sum_p g_p a_p^T the gradient of row s's summed loss, M positions
that are no padding and N counted tokens:

    A = (1/M) sum_p a_p a_p^T      S = (1/N) sum_p g_p g_p^T      A = Q_A diag(a) Q_A^T,  S = Q_S diag(s) Q_S^T      (Martens and Grosse 2015)
    lambda[o, j] = (1/N) sum_s (Q_S^T G_s Q_A)[o, j]^2                                                             (George et al. 2018)

so that S kron A and the matrix with eigenvalues lambda are both curvature per token. lambda's *entries* are eigenvalues, along pairs of
eigen-directions, and squares: none is negative.

::

    folder/fit.json                        what is fitted: another fit is refused
    folder/covariance-G-P.safetensors      sums of module group G over data part P; removed at the end
    folder/traces-G-P-N.safetensors        with ``cache``: inputs and output gradients of microbatch N; removed when they are rotated
    folder/basis-I.safetensors             layer I: covariances and eigenbases
    folder/rotated-G-P-N.safetensors       with ``cache`` and the data's labels: the same in the eigenbasis, to be scored against
    folder/lambda-G-P.safetensors          sums of squares; removed at the end
    folder/module-I.safetensors            all of layer I, normalised, counts in its header
"""

# O = outputs of a layer, J = its inputs with a bias's 1, B = rows of a microbatch, T = positions

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from modelassay.curvature.ekfac.capture import Capture, Fisher, Traces
from modelassay.curvature.ekfac.examples import (
    MAX_TOKENS,
    Example,
    ExampleBatch,
    batches_of,
    digest_of_examples,
    num_targets,
)
from modelassay.curvature.ekfac.files import digest_of_weights, save_tensors
from modelassay.curvature.ekfac.modules import LinearModule
from modelassay.curvature.ekfac.stored import StoredTraces, save_traces
from modelassay.curvature.ekfac.sums import Bases, add_covariances, add_rotated_squares, add_squares, rotated_traces
from modelassay.curvature.language_model import vocabulary_size
from modelassay.errors import CheckpointError, Diverged, UsageError
from modelassay.storage.durable import publish

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int, int], None]
"""Told how many of how many are done."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How factors are fitted."""

    fisher: Fisher = "true"
    """``true``: labels drawn from the model; ``empirical``: the data's."""
    seed: int = 0
    """Of the drawn labels: they depend on it, the row and the token's place, not on parts or microbatches."""
    num_parts: int = 1
    """Parts of the rows, each kept when it is done."""
    num_groups: int = 1
    """Groups of layers, each with passes of its own over the rows: less memory, more passes."""
    diagonal: bool = False
    """Keep the Fisher matrix's diagonal in the weights' own coordinates too."""
    max_tokens: int = MAX_TOKENS
    """Positions of a microbatch."""
    cache: bool = False
    """Write inputs and output gradients of all positions to the disk in the first passes, so that the second need no model. With the data's
    labels they stay there, in the eigenbasis, and `influence.train.FittedRows` scores against them without a pass."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What the sums were over."""

    rows: int
    """With at least one counted token."""
    empty_rows: int
    """Without: they have no gradient and take no part."""
    positions: int
    tokens: int
    """Counted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleFactors:
    """Of one layer, normalised, in fp32 (fp64 of an fp64 model)."""

    module: LinearModule
    covariance_JJ: Tensor
    covariance_OO: Tensor
    basis_JJ: Tensor
    """Eigenvectors in its columns, ascending eigenvalues."""
    basis_OO: Tensor
    values_J: Tensor
    """Eigenvalues of the input covariance; rounding below 0 is cut off."""
    values_O: Tensor
    lambda_OJ: Tensor
    """Corrected eigenvalues, nats per squared weight and token."""
    diagonal_OJ: Tensor | None


class Factors:
    """Factors in a folder; a layer is read when it is asked for."""

    def __init__(self, folder: Path, modules: Sequence[LinearModule], counts: Counts, fit: Fit) -> None:
        """Belong to what `fit_factors` left in ``folder``."""
        self.folder, self.modules, self.counts, self.fit = folder, tuple(modules), counts, fit

    @classmethod
    def load(cls, folder: Path) -> Factors:
        """Return the factors that were fitted into a folder.

        Raises:
            CheckpointError: they are not whole.
        """
        try:
            document = json.loads((folder / "fit.json").read_text())
            modules = [LinearModule(**module) for module in document["modules"]]
            with safe_open(folder / _name("module", 0), framework="pt") as file:
                counts = Counts(**json.loads(file.metadata()["counts"]))
            return cls(folder, modules, counts, Fit(**document["fit"]))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: no whole factors ({error}); fit them again") from error

    def __getitem__(self, name: str) -> ModuleFactors:
        """Return the factors of a layer.

        Raises:
            UsageError: it has none.
        """
        names = [module.name for module in self.modules]
        if name not in names:
            raise UsageError(f"{self.folder}: no factors of {name}; there are {', '.join(names[:8])}")
        tensors = load_file(self.folder / _name("module", names.index(name)))
        return ModuleFactors(
            module=self.modules[names.index(name)], diagonal_OJ=tensors.pop("diagonal_OJ", None), **tensors
        )


def _name(kind: str, *numbers: int) -> str:
    return f"{kind}-{'-'.join(f'{number:03d}' for number in numbers)}.safetensors"


def fit_factors(model: PreTrainedModel, examples: Sequence[Example], modules: Sequence[LinearModule], folder: Path,
                fit: Fit = Fit(), *, progress: Progress | None = None) -> Factors:  # fmt: skip  # noqa: B008
    """Fit factors into ``folder`` and return them; what a killed call left there is gone on with.

    Costs two forward passes and two backward passes without weight gradients for each group of layers (one of each with ``fit.cache``), and
    O(J^3 + O^3) for each layer's eigenbases, in fp64 whatever the sums are in. ``progress`` is told of layer groups x data parts x 2 + layers.

    Raises:
        Diverged: a loss, a gradient or a covariance that is not finite, with the rows or the layer.
        UsageError: no layer, a layer that is never called, no row with a counted token.
        CheckpointError: the folder holds another fit.
        HostError: the disk is full.
    """
    if not modules:
        raise UsageError("influence: no linear layer is chosen; give patterns that match some")
    return _Fitting(model, examples, modules, folder, fit, progress).run()


class _Fitting:
    def __init__(self, model: PreTrainedModel, examples: Sequence[Example], modules: Sequence[LinearModule], folder: Path,
                 fit: Fit, progress: Progress | None) -> None:  # fmt: skip
        self.model, self.examples, self.modules, self.folder, self.fit = model, examples, tuple(modules), folder, fit
        targets = [num_targets(example) for example in examples]
        counted = [number for number, count in enumerate(targets) if count]
        if not counted:
            raise UsageError(
                f"influence: none of {len(examples)} rows has a token that carries loss; look at their labels"
            )
        self.counts = Counts(rows=len(counted), empty_rows=len(examples) - len(counted),
                             positions=sum(len(examples[number].ids) for number in counted),
                             tokens=sum(targets))  # fmt: skip
        size = -(-len(counted) // fit.num_parts)
        self.parts = [counted[start : start + size] for start in range(0, len(counted), size)]
        size = -(-len(modules) // fit.num_groups)
        self.groups = [self.modules[start : start + size] for start in range(0, len(modules), size)]
        self._progress, self._done = progress, 0

    def run(self) -> Factors:
        self._check_same()
        last = self.folder / _name("module", len(self.modules) - 1)
        if not last.exists():
            self._over_parts("covariance", self._covariance_sums)
            for number in range(len(self.modules)):
                self._basis(number)
            self._over_parts("lambda", self._square_sums)
            for number in range(len(self.modules)):
                self._whole(number)
        for kind in ("covariance", "lambda", "basis", "traces"):
            for path in self.folder.glob(f"{kind}-*.safetensors"):
                path.unlink()
        return Factors.load(self.folder)

    def _check_same(self) -> None:
        document = {"modules": [asdict(module) for module in self.modules], "fit": asdict(self.fit), "weights": digest_of_weights(self.model),
                    "examples": digest_of_examples(self.examples)}  # fmt: skip
        path = self.folder / "fit.json"
        if path.exists():
            before = json.loads(path.read_text())
            if others := [key for key in document if before.get(key) != document[key]]:
                raise CheckpointError(
                    f"{path}: factors of another fit ({', '.join(others)} differ); delete the folder to fit anew"
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / "fit.json.new"
        aside.write_text(json.dumps(document, indent=1))
        publish(aside, path)

    def _over_parts(self, kind: str, sums: Callable[[int, int], dict[str, Tensor]]) -> None:
        for group in range(len(self.groups)):
            for part in range(len(self.parts)):
                path = self.folder / _name(kind, group, part)
                if not path.exists():
                    save_tensors(sums(group, part), path)
                self._advance()

    def _advance(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, 2 * len(self.groups) * len(self.parts) + len(self.modules))

    def _batches(self, group: int, part: int, bases: Bases | None = None) -> Iterator[tuple[ExampleBatch, Traces]]:
        """Yield a part's microbatches with their traces, read where they are kept and else from a pass.

        With ``bases`` in the eigenbasis, where they take the place of those that were kept.
        """
        capture = Capture(self.model, self.groups[group])
        batches = batches_of(self.examples, vocabulary=vocabulary_size(self.model), device=capture.device,
                             max_tokens=self.fit.max_tokens, numbers=self.parts[part])  # fmt: skip
        seed = self.fit.seed if self.fit.fisher == "true" else None
        with capture.passes():
            for number, batch in enumerate(batches):
                path, rotated = (self.folder / _name(kind, group, part, number) for kind in ("traces", "rotated"))
                traces: Traces | None = None if bases is None else self._kept(rotated, capture, batch)
                if traces is None:
                    traces = kept = self._kept(path, capture, batch)
                    if traces is None:
                        traces = capture.traces(batch, sampled_seed=seed)
                    with torch.no_grad():
                        if bases is not None:
                            traces = rotated_traces(traces, bases)
                            save_traces(traces, batch.numbers, rotated)
                            path.unlink(missing_ok=True)
                        elif self.fit.cache and kept is None:
                            save_traces(traces, batch.numbers, path, durable=False)  # what is lost is made again
                with torch.no_grad():
                    yield batch, traces

    def _kept(self, path: Path, capture: Capture, batch: ExampleBatch) -> StoredTraces | None:
        """Return traces that were kept; None, so that they are made again, where they are not whole or not these."""
        if not self.fit.cache or not path.exists():
            return None
        try:
            kept = StoredTraces(path, dtype=capture.dtype, device=capture.device)
            kept.check()
        except CheckpointError:
            return None
        same = kept.numbers == batch.numbers and set(kept) == {module.name for module in capture.modules}
        return kept if same else None

    def _covariance_sums(self, group: int, part: int) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for batch, traces in self._batches(group, part):
            add_covariances(sums, traces, batch.real_BT, self.groups[group], diagonal=self.fit.diagonal)
        return sums

    def _basis(self, number: int) -> None:
        """Eigenbases of one layer; gate and up, whose inputs are the same, share one decomposition."""
        path = self.folder / _name("basis", number)
        self._advance()
        if path.exists():
            return
        module = self.modules[number]
        kept: dict[str, Tensor] = {}
        divisors = {"inputs": self.counts.positions, "outputs": self.counts.tokens}
        for side, letter in (("inputs", "J"), ("outputs", "O")):
            covariance = self._summed("covariance", number, side) / divisors[side]
            if not torch.isfinite(covariance).all():
                raise Diverged(
                    f"influence: {module.name}: the covariance of its {side} is not finite; it has no eigenbasis"
                )
            kept[f"covariance_{letter}{letter}"] = covariance
            before = self._previous(number, covariance) if side == "inputs" else None
            if before is None:
                values, basis = torch.linalg.eigh(covariance.double())
                before = values.clamp_(min=0).to(covariance.dtype), basis.to(covariance.dtype)
            kept[f"values_{letter}"], kept[f"basis_{letter}{letter}"] = before
        save_tensors(kept, path)

    def _previous(self, number: int, covariance_JJ: Tensor) -> tuple[Tensor, Tensor] | None:
        if number == 0:
            return None
        before = load_file(self.folder / _name("basis", number - 1))
        if before["covariance_JJ"].shape == covariance_JJ.shape and torch.equal(before["covariance_JJ"], covariance_JJ):
            return before["values_J"], before["basis_JJ"]
        return None

    def _square_sums(self, group: int, part: int) -> dict[str, Tensor]:
        bases, sums = self._bases(group), dict[str, Tensor]()
        stay = self.fit.cache and self.fit.fisher == "empirical"
        for _, traces in self._batches(group, part, bases if stay else None):
            for layer, basis in bases.items():
                if stay:
                    add_squares(sums, f"{layer}/lambda", traces[layer])
                else:
                    add_rotated_squares(sums, f"{layer}/lambda", traces[layer], *basis)
        return sums

    def _bases(self, group: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return Q_S and Q_A of each layer of a group, one tensor for those that share Q_A."""
        device = next(self.model.parameters()).device
        bases: dict[str, tuple[Tensor, Tensor]] = {}
        shared: Tensor | None = None
        for module in self.groups[group]:
            kept = load_file(self.folder / _name("basis", self.modules.index(module)), device=str(device))
            if shared is None or not torch.equal(shared, kept["basis_JJ"]):
                shared = kept["basis_JJ"]
            bases[module.name] = kept["basis_OO"], shared
        return bases

    def _whole(self, number: int) -> None:
        path = self.folder / _name("module", number)
        if path.exists():
            return
        tensors = load_file(self.folder / _name("basis", number))
        tensors["lambda_OJ"] = self._summed("lambda", number, "lambda") / self.counts.tokens
        if self.fit.diagonal:
            tensors["diagonal_OJ"] = self._summed("covariance", number, "diagonal") / self.counts.tokens
        if not torch.isfinite(tensors["lambda_OJ"]).all():
            raise Diverged(f"influence: {self.modules[number].name}: corrected eigenvalues are not finite")
        units = "covariances per position (inputs) and per counted token (outputs); lambda and diagonal: nats per squared weight and token"
        metadata = {"module": self.modules[number].name, "counts": json.dumps(asdict(self.counts)), "fisher": self.fit.fisher,
                    "seed": str(self.fit.seed), "units": units}  # fmt: skip
        save_tensors(tensors, path, metadata)

    def _summed(self, kind: str, number: int, side: str) -> Tensor:
        """Return the sum over data parts of one tensor of one layer."""
        group = number // len(self.groups[0])
        total: Tensor | None = None
        for part in range(len(self.parts)):
            with safe_open(self.folder / _name(kind, group, part), framework="pt") as file:
                tensor: Tensor = file.get_tensor(f"{self.modules[number].name}/{side}")
            total = tensor if total is None else total.add_(tensor)
        assert total is not None
        return total


def summary_of(factors: ModuleFactors) -> dict[str, Any]:
    """Return what one layer's corrected eigenvalues tell: extremes, mean, and the least number of them that make up 90 % and 99 %."""
    values = factors.lambda_OJ.double().flatten().sort(descending=True).values
    total = float(values.sum())
    shares = values.cumsum(0) / total if total else values
    return {
        "size": values.numel(), "max": float(values[0]), "min": float(values[-1]), "mean": float(values.mean()),
        "num_for_90": int((shares < 0.9).sum()) + 1, "num_for_99": int((shares < 0.99).sum()) + 1,
        "num_zero": int((values == 0).sum()),
    }  # fmt: skip
