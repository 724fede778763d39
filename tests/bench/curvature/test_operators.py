"""The Hessian against double backward, dense Hessians, an independent forward pass, and central differences."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import eigsh
from torch import Tensor

from modelassay.curvature.gauss_newton import EmpiricalFisher, GaussNewton, SampledFisher
from modelassay.curvature.loss import IGNORED, Microbatch, microbatches
from modelassay.curvature.operators import DenseOperator, FiniteDifferenceHessian, Hessian
from modelassay.curvature.parameters import select_parameters
from modelassay.errors import Diverged, UsageError
from support import curvature_cases as cases

ARCHITECTURES = list(cases.CASES)


def vectors(count: int, size: int, seed: int = 3) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hessian_is_the_dense_one_and_symmetric(name: str) -> None:
    model, batch = cases.make_model(name, num_hidden_layers=1), cases.make_batch()
    dense_PP = cases.dense_hessian(model, batch)
    operator = Hessian(model, cases.split(batch, 2), vectors_per_pass=64)
    v_KP = vectors(5, operator.size)
    assert cases.off(operator.matmat(v_KP), v_KP @ dense_PP) < 1e-9
    assert cases.off(dense_PP, dense_PP.T) < 1e-9
    product_KP = operator.matmat(v_KP)
    assert cases.off(v_KP @ product_KP.T, (v_KP @ product_KP.T).T) < 1e-9
    assert operator.products == 10


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hessian_is_what_central_differences_approach(name: str) -> None:
    """Property: two independent roads to H v, over vectors of many lengths; the zero vector included."""
    model, batch = cases.make_model(name), cases.make_batch(seed=5)
    exact = Hessian(model, [batch])
    differences = FiniteDifferenceHessian(model, [batch])
    assert exact.exact
    assert not differences.exact
    v_KP = vectors(4, exact.size) * torch.tensor([1e-3, 1.0, 1e4, 0.0], dtype=torch.float64)[:, None]
    product_KP, approximate_KP = exact.matmat(v_KP), differences.matmat(v_KP)
    for product_P, approximate_P in zip(product_KP[:3], approximate_KP[:3], strict=True):
        assert 1e-13 < cases.off(approximate_P, product_P) < 1e-6
    assert not product_KP[3].any()
    assert not approximate_KP[3].any()


def test_qwen2_against_a_forward_pass_written_out() -> None:
    """The model, its float64 constants and its attention, from nothing but the weights."""
    model, batch = cases.make_model("qwen2"), cases.make_batch()
    operator = Hessian(model, [batch])
    named = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    loss = _qwen2_loss(named, batch)
    gradients = torch.autograd.grad(loss, list(named.values()), create_graph=True)
    v_P = vectors(1, operator.size)[0]
    inner = torch.cat([gradient.flatten() for gradient in gradients]) @ v_P
    product_P = torch.cat([part.flatten() for part in torch.autograd.grad(inner, list(named.values()))])
    assert abs(operator.loss() - float(loss.detach())) < 1e-12
    assert cases.off(operator.gradient(), torch.cat([gradient.detach().flatten() for gradient in gradients])) < 1e-12
    assert cases.off(operator.matvec(v_P), product_P) < 1e-9


def _qwen2_loss(w: dict[str, Tensor], batch: Microbatch) -> Tensor:
    num_heads, dim = 2, 4
    x = w["model.embed_tokens.weight"][batch.input_ids_BT]
    length = x.shape[1]
    angles = (
        torch.arange(length)[:, None].double() * (10_000.0 ** (-torch.arange(0, dim, 2) / dim)).double()
    )  # fp32, as loaded
    cos, sin = torch.cos(angles).repeat(1, 2), torch.sin(angles).repeat(1, 2)

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[name]

    def heads(x: Tensor, name: str, *, turned: bool) -> Tensor:
        y = F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"]).unflatten(-1, (-1, dim)).transpose(1, 2)
        half = torch.cat([-y[..., dim // 2 :], y[..., : dim // 2]], -1)
        return y * cos + half * sin if turned else y

    blocked = torch.ones(length, length, dtype=torch.bool).triu(1) | (batch.attention_mask_BT == 0)[:, None, None]
    for layer in range(2):
        at = f"model.layers.{layer}"
        h = norm(x, f"{at}.input_layernorm.weight")
        q = heads(h, f"{at}.self_attn.q_proj", turned=True)
        k = heads(h, f"{at}.self_attn.k_proj", turned=True).expand(-1, num_heads, -1, -1)
        v = heads(h, f"{at}.self_attn.v_proj", turned=False).expand(-1, num_heads, -1, -1)
        weights = torch.softmax((q @ k.transpose(-1, -2) / dim**0.5).masked_fill(blocked, -torch.inf), -1)
        x = x + F.linear((weights @ v).transpose(1, 2).flatten(2), w[f"{at}.self_attn.o_proj.weight"])
        h = norm(x, f"{at}.post_attention_layernorm.weight")
        gate = F.linear(h, w[f"{at}.mlp.gate_proj.weight"])
        gated = gate / (1 + torch.exp(-gate)) * F.linear(h, w[f"{at}.mlp.up_proj.weight"])
        x = x + F.linear(gated, w[f"{at}.mlp.down_proj.weight"])
    logits = F.linear(norm(x, "model.norm.weight"), w["model.embed_tokens.weight"])[:, :-1]
    counted = batch.labels_BT[:, 1:] != IGNORED
    return -torch.log_softmax(logits, -1)[counted].gather(1, batch.labels_BT[:, 1:][counted][:, None]).mean()


def test_a_padding_id_that_is_read_keeps_the_hessian_symmetric() -> None:
    """transformers' padding_idx zeroes a row of the gradient, and makes double backward wrong."""
    batch = cases.make_batch()
    assert (batch.input_ids_BT == 5).any()
    plain, padded = (cases.make_model("llama", pad_token_id=pad) for pad in (None, 5))
    assert padded.model.embed_tokens.padding_idx == 5
    v_KP = vectors(2, Hessian(plain, [batch]).size)
    products = [Hessian(model, [batch]).matmat(v_KP) for model in (plain, padded)]
    assert cases.off(products[1], products[0]) == 0
    assert padded.model.embed_tokens.padding_idx == 5


@pytest.mark.parametrize("kind", [Hessian, GaussNewton, EmpiricalFisher, SampledFisher, FiniteDifferenceHessian])
def test_the_split_and_the_pass_change_nothing(kind: Any) -> None:
    model, batch = cases.make_model("qwen2"), cases.make_batch(num_sequences=5)
    v_KP = vectors(5, select_parameters(model).size)
    whole = kind(model, [batch]).matmat(v_KP)
    tolerance = 1e-8 if kind is FiniteDifferenceHessian else 1e-13
    for size, vectors_per_pass in [(1, 1), (2, 2), (3, 5), (4, 8)]:
        parts = kind(model, cases.split(batch, size), vectors_per_pass=vectors_per_pass)
        assert parts.num_tokens == int((batch.labels_BT[:, 1:] != IGNORED).sum())
        assert cases.off(parts.matmat(v_KP), whole) < tolerance


def test_a_subset_is_a_block_of_the_whole() -> None:
    model, batch = cases.make_model("llama"), cases.make_batch()
    whole = Hessian(model, [batch], vectors_per_pass=64)
    everything = select_parameters(model)
    places = dict(zip(everything.names, torch.arange(everything.size).split(list(everything.sizes)), strict=True))
    for subset in (
        select_parameters(model, ["*.mlp.*", "model.norm.weight"]),
        select_parameters(model, embeddings=False),
    ):
        at = torch.cat([places[name] for name in subset.names])
        v_KP = vectors(3, subset.size)
        spread_KP = torch.zeros(3, whole.size, dtype=torch.float64)
        spread_KP[:, at] = v_KP
        part = Hessian(model, [batch], parameters=subset)
        assert part.size == subset.size < whole.size
        assert cases.off(part.matmat(v_KP), whole.matmat(spread_KP)[:, at]) < 1e-13


@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"), [("fp32", torch.float32, 1e-5), ("bf16", torch.float32, 0.1)]
)
def test_precision(precision: Any, dtype: torch.dtype, tolerance: float) -> None:
    model, batch = cases.make_model("qwen2"), cases.make_batch()
    exact = Hessian(model, [batch])
    v_KP = vectors(2, exact.size)
    for kind in (Hessian, GaussNewton):
        expected = kind(model, [batch]).matmat(v_KP)
        operator = kind(model, [batch], precision=precision)
        product = operator.matmat(v_KP)
        assert operator.dtype == product.dtype == dtype
        assert 1e-9 < cases.off(product.double(), expected) < tolerance
        own = kind(model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[precision]), [batch])
        assert own.precision == precision
        assert cases.off(own.matmat(v_KP).double(), expected) < tolerance
        model.double()
        model = cases.make_model("qwen2")


def test_fp64_of_narrower_weights_is_fp64() -> None:
    model, batch = cases.make_model("qwen2").float(), cases.make_batch()
    narrow = Hessian(model, [batch], precision="fp64")
    v_KP = vectors(2, narrow.size)
    product_KP = narrow.matmat(v_KP)
    assert len(narrow._stand_ins or {}) == 15 + 5 + 2 + 1 + 1
    assert cases.off(product_KP, Hessian(model.double(), [batch]).matmat(v_KP)) < 1e-12


def test_scipy_takes_it() -> None:
    model, batch = cases.make_model("llama", num_hidden_layers=1), cases.make_batch()
    operator = Hessian(model, [batch], parameters=select_parameters(model, ["*.mlp.*"]), vectors_per_pass=8)
    linear = operator.to_scipy()
    dense = operator.matmat(torch.eye(operator.size, dtype=torch.float64)).numpy()
    columns = vectors(3, operator.size).T.numpy()
    np.testing.assert_allclose(linear @ columns, dense @ columns, atol=1e-12)
    np.testing.assert_allclose(linear.T @ columns[:, 0], dense @ columns[:, 0], atol=1e-12)
    top = eigsh(linear, k=1, which="LA", return_eigenvectors=False, v0=columns[:, 0])
    np.testing.assert_allclose(top[0], np.linalg.eigvalsh(dense)[-1], rtol=1e-10)


def test_units_are_timed_and_the_model_stays_as_it_was() -> None:
    model, batch = cases.make_model("llama"), cases.make_batch()
    model.set_attn_implementation("sdpa")
    seen: list[tuple[str, int, int]] = []

    @contextmanager
    def unit(stage: str, *, tokens: int, vectors: int) -> Iterator[None]:
        yield
        seen.append((stage, tokens, vectors))

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    operator = Hessian(model, cases.split(batch, 2), vectors_per_pass=2, unit=unit)
    operator.matmat(vectors(3, operator.size))
    counts = [batch.num_tokens for batch in operator._batches]
    assert seen == [("Hessian", count, k) for k in (2, 1) for count in counts]
    assert model.config._attn_implementation == "sdpa"
    assert all(
        torch.equal(parameter, before[name]) and parameter.grad is None for name, parameter in model.named_parameters()
    )


def ids(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize(("batches", "said"), [
    ([], "no microbatch"),
    (microbatches(ids([1], [2]), size=1), "at least 2 tokens"),
    ([Microbatch(input_ids_BT=torch.zeros(0, 4, dtype=torch.int64), labels_BT=torch.zeros(0, 4, dtype=torch.int64))], "carries loss"),
    ([Microbatch(input_ids_BT=torch.zeros(2, 0, dtype=torch.int64), labels_BT=torch.zeros(2, 0, dtype=torch.int64))], "carries loss"),
    (microbatches(ids([1, 2, 3]), size=1, labels_BT=ids([IGNORED] * 3)), "carries loss"),
    (microbatches(ids([1, 2, 3]), size=1, labels_BT=ids([5, IGNORED, IGNORED])), "carries loss"),
    (microbatches(ids([1, 11]), size=1), "0 .. 10, got 1 .. 11"),
    (microbatches(ids([1, 2]), size=1, labels_BT=ids([1, -3])), "labels_BT must lie"),
    ([Microbatch(input_ids_BT=ids([1, 2]), labels_BT=ids([1]))], "one shape"),
])  # fmt: skip
def test_batches_without_a_mean_are_refused(batches: list[Microbatch], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Hessian(cases.make_model("gpt2", n_layer=1), batches)


def test_a_microbatch_without_counted_tokens_weighs_nothing() -> None:
    model, batch = cases.make_model("gpt2"), cases.make_batch()
    silent = Microbatch(input_ids_BT=batch.input_ids_BT, labels_BT=torch.full_like(batch.labels_BT, IGNORED))
    single = microbatches(ids([3]), size=1)
    v_KP = vectors(1, Hessian(model, [batch]).size)
    with_them = Hessian(model, [silent, batch, *single])
    assert torch.equal(with_them.matmat(v_KP), Hessian(model, [batch]).matmat(v_KP))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [Hessian, GaussNewton, EmpiricalFisher, FiniteDifferenceHessian])
def test_a_model_that_has_blown_up_is_a_finding(kind: Any, value: float) -> None:
    model = cases.make_model("llama", num_hidden_layers=1)
    operator = kind(model, [cases.make_batch()])
    v_P = vectors(1, operator.size)[0]
    with torch.no_grad():
        model.lm_head.weight[3, 2] = value
    with pytest.raises(Diverged, match="loss of microbatch 0"):
        operator.matvec(v_P)
    with pytest.raises(Diverged, match="loss of microbatch 0"):
        SampledFisher(model, [cases.make_batch()])


def test_a_product_that_overflows_is_a_finding_and_a_bad_vector_an_error() -> None:
    operator = DenseOperator(torch.full((2, 2), 1e300, dtype=torch.float64))
    with pytest.raises(Diverged, match="not finite"):
        operator.matvec(torch.full((2,), 1e300, dtype=torch.float64))
    with pytest.raises(UsageError, match="NaN or infinity"):
        operator.matvec(torch.tensor([1.0, torch.nan]))
    with pytest.raises(UsageError, match=r"rows of 2 entries, got shape \(1, 3\)"):
        operator.matvec(torch.ones(3))


def test_what_cannot_be_asked_for() -> None:
    model, batch = cases.make_model("gpt2", n_layer=1), cases.make_batch()
    with pytest.raises(UsageError, match="eval"):
        Hessian(model.train(), [batch])
    model.eval()
    with pytest.raises(UsageError, match="vectors_per_pass"):
        Hessian(model, [batch], vectors_per_pass=0)
    with pytest.raises(UsageError, match="bf16 rounds"):
        FiniteDifferenceHessian(model, [batch], precision="bf16")
    with pytest.raises(UsageError, match="positive"):
        FiniteDifferenceHessian(model, [batch], step=-1.0)
    with pytest.raises(UsageError, match="no precision policy"):
        Hessian(model.half(), [batch])


def test_a_product_that_is_broken_off_leaves_nothing_to_the_next() -> None:
    """In the middle of the second pass: some attentions have left their share, and none has been taken up."""
    model, batch = cases.make_model("qwen2"), cases.make_batch()
    operator = Hessian(model, [batch])
    v_KP = vectors(1, operator.size)
    expected_KP = operator.matmat(v_KP)
    (graph,) = operator._graphs.values()
    second = next(name for name in graph._gradient if "layers.1.self_attn.q_proj.weight" in name)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = graph._gradient[second].grad_fn.register_prehook(stop)  # type: ignore[union-attr]
    with pytest.raises(KeyboardInterrupt):
        operator.matmat(v_KP)
    handle.remove()
    assert torch.equal(operator.matmat(v_KP), expected_KP)


def test_graphs_that_are_kept_change_no_bit_and_respect_their_room() -> None:
    model, batch = cases.make_model("qwen2"), cases.make_batch(num_sequences=4)
    parts = cases.split(batch, 2)
    keeping, making = Hessian(model, parts), Hessian(model, parts, graph_bytes=0)
    v_KP = vectors(3, keeping.size)
    first = keeping.matmat(v_KP)
    assert torch.equal(keeping.matmat(v_KP), first)
    assert torch.equal(making.matmat(v_KP), first)
    one_by_one = torch.stack([making.matvec(v_P) for v_P in v_KP])
    assert torch.equal(one_by_one, first)
    assert making.bytes_kept == 0 < keeping.bytes_kept
    tight = Hessian(model, parts, graph_bytes=keeping.bytes_kept - 1)
    assert torch.equal(tight.matmat(v_KP), first)
    assert 0 < tight.bytes_kept < keeping.bytes_kept


def test_memory_grows_with_the_length_and_not_with_its_square() -> None:
    """What the graph of one sequence saves, at lengths that double: differences double too, but for eager attention."""
    model = cases.make_model("llama", max_position_embeddings=512)
    kept = {}
    for attention in ("modelassay", "eager"):
        sizes = []
        for length in (64, 128, 256, 512):
            operator = Hessian(model, microbatches(torch.zeros(1, length, dtype=torch.int64), size=1))
            operator.attention = attention  # type: ignore[assignment]
            operator.matvec(torch.ones(operator.size))
            sizes.append(operator.bytes_kept)
        kept[attention] = np.diff(sizes)
    linear, quadratic = (kept[name][1:] / kept[name][:-1] for name in ("modelassay", "eager"))
    assert abs(linear - 2).max() < 0.1
    assert quadratic.min() > 3


@pytest.mark.parametrize("why", ["a hole in a mask", "a model without the interface"])
def test_attention_that_ours_cannot_do_is_eager(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = cases.make_model("qwen2", num_hidden_layers=1), cases.make_batch()
    if why == "a hole in a mask":
        mask = torch.ones_like(batch.input_ids_BT)
        mask[1, 2] = 0
        batch = Microbatch(input_ids_BT=batch.input_ids_BT, labels_BT=batch.labels_BT, attention_mask_BT=mask)
    else:
        monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    operator = Hessian(model, [batch])
    v_KP = vectors(2, operator.size)
    assert cases.off(operator.matmat(v_KP), v_KP @ cases.dense_hessian(model, batch)) < 1e-9
    assert operator.attention == "eager"
    monkeypatch.undo()
    whole = Hessian(model, [cases.make_batch()])
    whole.loss()
    assert whole.attention == "modelassay"


def test_strides_do_not_matter() -> None:
    model, batch = cases.make_model("llama", num_hidden_layers=1), cases.make_batch()
    ids, labels, mask = (
        part.T.contiguous().T for part in (batch.input_ids_BT, batch.labels_BT, batch.attention_mask_BT)
    )  # type: ignore[union-attr]
    assert not ids.is_contiguous()
    strided = Microbatch(input_ids_BT=ids, labels_BT=labels, attention_mask_BT=mask)
    for kind in (Hessian, GaussNewton, EmpiricalFisher):
        whole = kind(model, [batch])
        v_PK = vectors(whole.size, 2)
        assert not v_PK.T.is_contiguous()
        expected = whole.matmat(v_PK.T.contiguous())
        assert cases.off(kind(model, [strided]).matmat(v_PK.T), expected) < 1e-14


def test_a_zero_gradient_has_a_hessian_all_the_same() -> None:
    """A head of zeros: the layers below have no gradient, the head has, and their coupling is not zero."""
    model, batch = cases.make_model("llama", num_hidden_layers=1), cases.make_batch()
    torch.nn.init.zeros_(model.lm_head.weight)
    operator = Hessian(model, [batch])
    v_KP = vectors(2, operator.size)
    expected = v_KP @ cases.dense_hessian(model, batch)
    assert cases.off(operator.matmat(v_KP), expected) < 1e-9
    below = Hessian(model, [batch], parameters=select_parameters(model, ["model.*"]))
    assert not below.gradient().any()
    assert float(below.matvec(vectors(1, below.size)[0]).norm()) < 1e-12 * float(expected.norm())
