"""Factors against their definitions, from hooks and gradients of single rows in float64."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modelassay.curvature.ekfac import factors as fitting
from modelassay.curvature.ekfac import files, stored
from modelassay.curvature.ekfac.capture import Capture
from modelassay.curvature.ekfac.factors import Factors, Fit, ModuleFactors, fit_factors, summary_of
from modelassay.curvature.ekfac.inverse import STRATEGIES, precondition
from modelassay.curvature.ekfac.modules import flattened, parameters_of, select_modules, unflattened
from modelassay.curvature.ekfac.plan import plan_of
from modelassay.curvature.ekfac.sums import gram
from modelassay.curvature.loss import second_order
from modelassay.errors import CheckpointError, Diverged, UsageError
from modelassay.training.rows import Row
from support.influence_cases import matrix_gradients, rows_of, tiny

NAMES = ("*.mlp.*_proj", "*.self_attn.*_proj")
FIT = Fit(fisher="empirical", diagonal=True, max_tokens=20)


def positions(model: Any, module: str, row: Row) -> tuple[Tensor, Tensor]:
    """Inputs [T, J] and output gradients [T, O] of a layer, by hooks of this test's own."""
    layer, seen = model.get_submodule(module), {}
    handle = layer.register_forward_hook(lambda _, given, out: seen.update(a=given[0][0].detach(), out=out))
    logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, :-1]
    handle.remove()
    targets = torch.tensor(row.labels[1:])
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)
    (g,) = torch.autograd.grad(loss, [seen["out"]])
    a = seen["a"]
    return (torch.cat([a, torch.ones(len(a), 1)], 1) if layer.bias is not None else a), g[0]


@pytest.fixture(params=["qwen2", "llama"])
def fitted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, list[Row], Factors]:
    model, rows = tiny(request.param), rows_of()
    return model, rows, fit_factors(model, rows, select_modules(model, NAMES), tmp_path, FIT)


def test_covariances_and_corrected_eigenvalues_are_their_definitions(fitted: Any) -> None:
    model, rows, factors = fitted
    tokens = sum(sum(label != -100 for label in row.labels[1:]) for row in rows)
    assert (factors.counts.tokens, factors.counts.positions) == (tokens, sum(len(row.ids) for row in rows))
    assert len(factors.modules) == 14
    with second_order(model, torch.float64, "eager"), torch.enable_grad():
        for module in factors.modules:
            own = factors[module.name]
            pairs = [positions(model, module.name, row) for row in rows]
            a, g = torch.cat([a for a, _ in pairs]), torch.cat([g for _, g in pairs])
            torch.testing.assert_close(own.covariance_JJ, a.T @ a / len(a), rtol=1e-9, atol=1e-14)
            torch.testing.assert_close(own.covariance_OO, g.T @ g / tokens, rtol=1e-9, atol=1e-14)
            torch.testing.assert_close(own.basis_JJ @ torch.diag(own.values_J) @ own.basis_JJ.T, own.covariance_JJ)
            grads = torch.stack([matrix_gradients(model, module.name, row)[0] for row in rows])
            rotated = own.basis_OO.T @ grads @ own.basis_JJ
            torch.testing.assert_close(own.lambda_OJ, rotated.square().sum(0) / tokens, rtol=1e-8, atol=1e-14)
            torch.testing.assert_close(own.diagonal_OJ, grads.square().sum(0) / tokens, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_inverse_is_a_dense_solve(strategy: Any, fitted: Any) -> None:
    _, _, factors = fitted
    for module in factors.modules[:5]:
        own = factors[module.name]
        assert own.diagonal_OJ is not None
        size = own.lambda_OJ.numel()
        q = torch.kron(own.basis_OO, own.basis_JJ)
        dense = {
            "identity": torch.zeros(size, size, dtype=torch.float64), "diagonal": torch.diag(own.diagonal_OJ.flatten()),
            "kfac": torch.kron(own.covariance_OO, own.covariance_JJ), "ekfac": q @ torch.diag(own.lambda_OJ.flatten()) @ q.T,
        }[strategy]  # fmt: skip
        damping = 1.0 if strategy == "identity" else 0.03 * float(dense.diagonal().mean())
        gradient = torch.randn(2, *module.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        expected = torch.linalg.solve(dense + damping * torch.eye(size, dtype=torch.float64), gradient.flatten(1).T).T
        actual = precondition(gradient, own, strategy=strategy, damping=0.03)
        torch.testing.assert_close(actual.flatten(1), expected, rtol=1e-7, atol=1e-9)


def test_drawn_labels_depend_on_row_and_seed_and_not_on_parts_or_groups(tmp_path: Path) -> None:
    model, rows = tiny("qwen2"), rows_of()
    modules = select_modules(model)
    true = Fit(fisher="true", seed=5, max_tokens=20)
    whole = fit_factors(model, rows, modules, tmp_path / "a", true)
    split = fit_factors(model, rows, modules, tmp_path / "b", replace(true, num_parts=3, num_groups=2, max_tokens=7))
    other = fit_factors(model, rows, modules, tmp_path / "c", replace(true, seed=6))
    for module in modules:
        torch.testing.assert_close(whole[module.name].covariance_OO, split[module.name].covariance_OO)
        torch.testing.assert_close(whole[module.name].lambda_OJ.sum(), split[module.name].lambda_OJ.sum())
        assert not torch.allclose(whole[module.name].covariance_OO, other[module.name].covariance_OO)


def test_drawn_labels_give_the_fisher_matrix_of_those_labels(tmp_path: Path) -> None:
    """Labels are drawn again here, from the same uniform numbers through this test's own distribution function."""
    model, rows = tiny("llama"), rows_of(4)
    factors = fit_factors(model, rows, select_modules(model), tmp_path, Fit(fisher="true", seed=2))
    total = {module.name: torch.zeros(module.shape, dtype=torch.float64) for module in factors.modules}
    with second_order(model, torch.float64, "eager"), torch.enable_grad():
        for number, row in enumerate(rows):
            _, logits = matrix_gradients(model, factors.modules[0].name, row)
            draws = np.random.Generator(np.random.Philox(key=np.array([2, number], dtype=np.uint64))).random(
                len(logits)
            )
            labels = [int((p.cumsum(0) <= u).sum()) for p, u in zip(torch.softmax(logits, -1), draws, strict=True)]
            for module in factors.modules:
                own = factors[module.name]
                gradient, _ = matrix_gradients(model, module.name, row, labels)
                total[module.name] += (own.basis_OO.T @ gradient @ own.basis_JJ).square()
    for module in factors.modules:
        torch.testing.assert_close(factors[module.name].lambda_OJ, total[module.name] / factors.counts.tokens)


class Stop(BaseException):
    """The process is gone."""


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="passes"),
        pytest.param({"cache": True}, id="cache", marks=pytest.mark.nightly),
        pytest.param({"cache": True, "fisher": "empirical"}, id="kept"),
    ],
)
def test_a_killed_fit_goes_on_to_the_same_bits(options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny("qwen2"), rows_of()
    modules, fit = select_modules(model), Fit(num_parts=3, num_groups=2, seed=1, diagonal=True, max_tokens=9, **options)
    whole = fit_factors(model, rows, modules, tmp_path / "whole", fit)
    save, left = files.save_tensors, [0]

    def dying(*args: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        save(*args, **options)

    for module in (fitting, stored):
        monkeypatch.setattr(module, "save_tensors", dying)
    kills = 0
    while True:
        left[0] = 4
        try:
            again = fit_factors(model, rows, modules, tmp_path / "cut", fit)
            break
        except Stop:
            kills += 1
    assert kills >= 4
    for module in modules:
        for name in ("covariance_JJ", "basis_OO", "lambda_OJ", "diagonal_OJ"):
            assert torch.equal(getattr(whole[module.name], name), getattr(again[module.name], name))
    names = sorted(path.name for path in (tmp_path / "cut").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole").iterdir())
    kept = [name for name in names if name.startswith("rotated-")]
    assert names == ["fit.json", *(f"module-{number:03d}.safetensors" for number in range(6)), *kept]
    assert bool(kept) == (fit.cache and fit.fisher == "empirical")


@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_a_fit_from_kept_traces_makes_one_pass_and_the_same_factors(
    fisher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = tiny("llama"), rows_of()
    modules, passes = select_modules(model, NAMES), [0]
    traces = Capture.traces

    def counted(self: Capture, *args: Any, **options: Any) -> Any:
        passes[0] += 1
        return traces(self, *args, **options)

    monkeypatch.setattr(Capture, "traces", counted)
    fit = replace(FIT, fisher=fisher)
    fresh = fit_factors(model, rows, modules, tmp_path / "a", fit)
    first = passes[0]
    kept = fit_factors(model, rows, modules, tmp_path / "b", replace(fit, cache=True))
    assert passes[0] == first + first // 2
    for module in modules:
        for name in ("covariance_OO", "lambda_OJ", "diagonal_OJ"):
            torch.testing.assert_close(
                getattr(kept[module.name], name), getattr(fresh[module.name], name), rtol=1e-9, atol=1e-14
            )


def test_damaged_traces_of_a_killed_fit_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny("qwen2"), rows_of()
    modules, fit = select_modules(model), replace(FIT, cache=True)
    whole = fit_factors(model, rows, modules, tmp_path / "whole", fit)
    folder = tmp_path / "cut"
    monkeypatch.setattr(fitting._Fitting, "_basis", lambda *_: (_ for _ in ()).throw(Stop()))
    with pytest.raises(Stop):
        fit_factors(model, rows, modules, folder, fit)
    monkeypatch.undo()
    with torch.no_grad():
        model.model.norm.weight[0] *= 2  # of no chosen layer, and yet no trace is the same
    with pytest.raises(CheckpointError, match=r"another fit \(weights differ\)"):
        fit_factors(model, rows, modules, folder, fit)
    with torch.no_grad():
        model.model.norm.weight[0] /= 2
    first, second, *_ = sorted(folder.glob("traces-*"))
    content = first.read_bytes()
    first.write_bytes(content[:-16] + bytes(8) + content[-8:])
    second.write_bytes(content[:-1])
    again = fit_factors(model, rows, modules, folder, fit)
    for module in modules:
        assert torch.equal(again[module.name].lambda_OJ, whole[module.name].lambda_OJ)


@pytest.mark.parametrize("columns", [1, 95, 97, 250])
def test_a_gram_matrix_by_halves_is_the_product(columns: int) -> None:
    x = torch.randn(40, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(gram(x), x.T @ x, rtol=1e-12, atol=1e-12)
    assert torch.equal(gram(x), gram(x).T)


def test_another_fit_in_the_folder_is_refused(fitted: Any, tmp_path: Path) -> None:
    model, rows, factors = fitted
    with pytest.raises(CheckpointError, match=r"another fit \(examples differ\); delete the folder"):
        fit_factors(model, rows[1:], factors.modules, tmp_path, FIT)
    with pytest.raises(CheckpointError, match=r"another fit \(fit differ\)"):
        fit_factors(model, rows, factors.modules, tmp_path, replace(FIT, seed=9))


def test_what_is_not_finite_names_the_row_or_the_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny("qwen2"), rows_of()
    modules = select_modules(model)
    monkeypatch.setattr(fitting._Fitting, "_summed", lambda self, kind, number, side: torch.full((2, 2), torch.nan))
    with pytest.raises(
        Diverged,
        match=r"model.layers.0.mlp.gate_proj: the covariance of its inputs is not finite; it has no eigenbasis",
    ):
        fit_factors(model, rows, modules, tmp_path / "a")
    monkeypatch.undo()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(Diverged, match=r"the loss of row \d is not finite"):
        fit_factors(model, rows, modules, tmp_path / "b")


def test_empty_rows_take_no_part_and_are_counted(tmp_path: Path) -> None:
    model, rows = tiny("qwen2"), rows_of()
    empty = Row(ids=(1, 2, 3), loss=(True, False, False))
    modules = select_modules(model)
    with_empty = fit_factors(model, [*rows, empty], modules, tmp_path / "a", FIT)
    without = fit_factors(model, rows, modules, tmp_path / "b", FIT)
    assert (with_empty.counts.rows, with_empty.counts.empty_rows) == (len(rows), 1)
    assert torch.equal(with_empty[modules[0].name].lambda_OJ, without[modules[0].name].lambda_OJ)
    with pytest.raises(UsageError, match="none of 1 rows has a token that carries loss"):
        fit_factors(model, [empty], modules, tmp_path / "c", FIT)


def test_patterns_and_layers_that_cannot_be(tmp_path: Path) -> None:
    model, rows = tiny("qwen2"), rows_of()
    with pytest.raises(UsageError, match=r"'\*.mlp.gate' matches none of \d+ modules"):
        select_modules(model, ["*.mlp.gate"])
    with pytest.raises(UsageError, match="matches no linear layer, only Qwen2MLP"):
        select_modules(model, ["*.mlp"])
    model.unused = torch.nn.Linear(3, 2).double()
    with pytest.raises(UsageError, match="unused is never called in a forward pass"):
        fit_factors(model, rows, select_modules(model, ["unused", "*.mlp.up_proj"]), tmp_path)
    assert all(weight.requires_grad for weight in model.parameters())


def test_flat_vectors_and_matrices_are_each_others_inverse() -> None:
    modules = select_modules(tiny("llama"), NAMES)
    vectors = torch.randn(2, parameters_of(modules).size, dtype=torch.float64)
    assert torch.equal(flattened(modules, unflattened(modules, vectors)), vectors)


def test_files_say_what_they_hold_and_the_plan_how_much(fitted: Any, tmp_path: Path) -> None:
    _, _, factors = fitted
    stored = sum(path.stat().st_size for path in tmp_path.glob("module-*"))
    plan = plan_of(factors.modules, diagonal=True, itemsize=8)
    assert plan.factors_disk <= stored <= plan.factors_disk + 2048 * len(factors.modules)
    assert json.loads((tmp_path / "fit.json").read_text())["fit"]["fisher"] == "empirical"
    own: ModuleFactors = factors[factors.modules[0].name]
    told = summary_of(own)
    values = own.lambda_OJ.flatten().sort(descending=True).values
    assert told["min"] >= 0
    assert (
        float(values[: told["num_for_90"]].sum())
        >= 0.9 * float(values.sum())
        > float(values[: told["num_for_90"] - 1].sum())
    )
