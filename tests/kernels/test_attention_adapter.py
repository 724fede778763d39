"""The adapter to transformers: every mask it can be handed, every argument, and what it says of those it does not know."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.func import functional_call, vmap
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    blockwise_overlay,
    causal_mask_function,
    chunked_causal_mask_function,
    create_bidirectional_mask,
    create_causal_mask,
    create_masks_for_generate,
    or_masks,
    packed_sequence_mask_function,
    sdpa_mask,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from modelassay_kernels import register_attention
from modelassay_kernels.attention.reference import attention_reference
from modelassay_kernels.attention.span_mask import MaskUseError, SpanMask
from modelassay_kernels.attention.spans import make_spans, visible
from modelassay_kernels.attention.transformers import HARMLESS, attention_forward, spans_mask
from support.tiny_models import make_config, make_model

TOKENS = 11
PACKED = torch.tensor([[0] * 4 + [1] * 7, [0] * 11])
IMAGES = torch.tensor([[-1] * 2 + [0] * 3 + [-1] * 6, [-1] * 8 + [1] * 3])
"""Blocks whose tokens see each other in both directions."""
MASKS = {
    "causal": causal_mask_function,
    "bidirectional": bidirectional_mask_function,
    "sliding": sliding_window_causal_mask_function(4),
    "sliding both ways": sliding_window_bidirectional_mask_function(2),
    "chunked": chunked_causal_mask_function(3, torch.tensor([1, 0], dtype=torch.int)),
    "packed": and_masks(causal_mask_function, packed_sequence_mask_function(PACKED)),
    "images": or_masks(causal_mask_function, blockwise_overlay(IMAGES)),
    "a model's own, and": and_masks(causal_mask_function, lambda b, h, q, k: k >= q // 3 * 3),
    "a model's own, or": or_masks(causal_mask_function, lambda b, h, q, k: k < 4),
}
OF_ALL_TOKENS = {"packed"}


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_attention()


@pytest.mark.parametrize("use_vmap", [False, True])
@pytest.mark.parametrize("padded", ["", "left", "right"])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("queries", "q_offset", "kv_offset"), [(TOKENS, 0, 0), (3, 8, 0), (1, 10, 0), (3, 8, 2)])
def test_masks_are_those_of_transformers(
    name: str, padded: str, queries: int, q_offset: int, kv_offset: int, use_vmap: bool
) -> None:
    if name in OF_ALL_TOKENS and queries != TOKENS:
        pytest.skip("packed sequences come without a cache")
    real = torch.ones(2, TOKENS, dtype=torch.bool)
    if padded:
        real[0, slice(0, 3) if padded == "left" else slice(8, None)] = False
    for offset in (q_offset, torch.tensor(q_offset)):  # static caches count in tensors
        arguments: dict[str, Any] = {
            "batch_size": 2, "q_length": queries, "kv_length": TOKENS - kv_offset, "q_offset": offset,
            "kv_offset": kv_offset, "mask_function": MASKS[name], "attention_mask": real, "use_vmap": use_vmap,
        }  # fmt: skip
        mask = spans_mask(**arguments)
        expected = sdpa_mask(**arguments, allow_is_causal_skip=False)
        assert torch.equal(visible(mask.spans, 0, TOKENS - kv_offset).expand(2, -1, -1), expected[:, 0])
        assert (mask.spans.dtype, mask.shape) == (torch.int32, expected.shape)


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("length", [3, 5, TOKENS, 14])
@pytest.mark.parametrize("name", sorted(MASKS.keys() - OF_ALL_TOKENS - {"images"}))
def test_padding_of_another_length_than_the_keys(name: str, length: int, left: int) -> None:
    """A static cache has more keys than there are tokens yet, one with a window fewer; keys past the padding are not there."""
    arguments: dict[str, Any] = {
        "batch_size": 2, "q_length": 3, "kv_length": TOKENS, "q_offset": 2, "mask_function": MASKS[name],
        "attention_mask": torch.arange(length).expand(2, -1) >= torch.tensor([[left], [0]]),
    }  # fmt: skip
    expected = sdpa_mask(**arguments, allow_is_causal_skip=False)
    assert torch.equal(visible(spans_mask(**arguments).spans, 0, TOKENS).expand(2, -1, -1), expected[:, 0])


@pytest.mark.parametrize("name", ["causal", "bidirectional"])
@pytest.mark.parametrize(("q_offset", "kv_offset"), [(0, 0), (0, 2), (1, 2), (5, 2)])
def test_queries_before_the_first_key_see_nothing(name: str, q_offset: int, kv_offset: int) -> None:
    arguments: dict[str, Any] = {
        "batch_size": 1, "q_length": 3, "kv_length": 4, "q_offset": q_offset, "kv_offset": kv_offset,
        "mask_function": MASKS[name],
    }  # fmt: skip
    mask, expected = spans_mask(**arguments), sdpa_mask(**arguments, allow_is_causal_skip=False)[:, 0]
    assert torch.equal(visible(mask.spans, 0, 4), expected)
    assert mask.has_blind == (not bool(expected.any(-1).all()))


def test_masks_that_are_no_intervals_are_refused() -> None:
    arguments = {"batch_size": 1, "q_length": 5, "kv_length": 5}
    with pytest.raises(ValueError, match="no interval"):
        spans_mask(**arguments, attention_mask=torch.tensor([[True, False, True, True, True]]))
    first_token_too = or_masks(sliding_window_causal_mask_function(2), lambda b, h, q, k: k == 0)
    for use_vmap in (False, True):
        with pytest.raises(ValueError, match="no interval"):
            spans_mask(**arguments, mask_function=first_token_too, use_vmap=use_vmap)


STRANGE = {
    "spans": torch.tensor([[[0] * 5, [5] * 5]] * 2, dtype=torch.int32),
    "three dimensions": torch.ones(2, 5, 5, dtype=torch.bool),
    "one dimension": torch.ones(5, dtype=torch.bool),
    "another batch": torch.ones(1, 5, dtype=torch.bool),
}


@pytest.mark.parametrize("name", STRANGE)
def test_an_attention_mask_that_is_no_padding_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"modelassay.*got an attention_mask of shape .* for a batch of 2; pass"):
        spans_mask(2, 5, 5, attention_mask=STRANGE[name])


@pytest.mark.parametrize("shape", [(2, 2, 5), (1, 2, 5)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_models_mask_of_the_shape_of_spans_is_refused(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    model = make_model("llama")
    model.set_attn_implementation("modelassay")
    with pytest.raises(ValueError, match="modelassay.*attention_mask of shape"):
        model(torch.full((2, 5), 7), attention_mask=torch.ones(shape, dtype=dtype))
    with pytest.raises(ValueError, match="modelassay.*made elsewhere"):
        model(torch.full((2, 5), 7), attention_mask=torch.ones(2, 1, 5, 5, dtype=dtype))


def test_masks_that_were_made_ahead_come_back() -> None:
    """`generate` makes them before the model does."""
    config = make_config("llama")
    config._attn_implementation = "modelassay"
    embeddings = torch.empty(2, 5, 0)
    real = torch.tensor([[False, True, True, True, True], [True] * 5])
    mask = create_masks_for_generate(config, embeddings, real, None)
    assert isinstance(mask, SpanMask)
    for create in (create_causal_mask, create_bidirectional_mask):
        assert create(config, embeddings, mask, past_key_values=None) is mask


X = torch.zeros(1, 2, 5, 4)
MASK = SpanMask(make_spans(5, 5, causal=True), 1, 5)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"dropout": 0.1}, "dropout"),
    ({"s_aux": torch.zeros(2)}, "sinks"),
    ({"position_bias": torch.zeros(1, 2, 5, 5)}, "position biases"),
    ({"output_attentions": True}, "no weights"),
    ({"block_indices": torch.zeros(1, 2, 5, 1)}, "an argument 'block_indices' that is not understood"),
    ({"indices": torch.zeros(1, 5, 2)}, "an argument 'indices'"),
    ({"alibi": torch.zeros(2)}, "an argument 'alibi'"),
    ({"head_mask": torch.ones(2)}, "an argument 'head_mask'"),
    ({"logit_cap": 0}, "an argument 'logit_cap'"),
    ({"cu_seq_lens_q": torch.tensor([0, 2, 5])}, "cu_seq_lens_q, which only flash attention reads"),
    ({"cu_seq_lens_k": torch.tensor([0, 2, 5])}, "cu_seq_lens_k"),
    ({"max_length_q": 3}, "an argument 'max_length_q'"),
    ({"attention_mask": torch.zeros(1, 1, 5, 5)}, r"mask of shape \(1, 1, 5, 5\)"),
    ({"attention_mask": MASK.spans}, r"mask of shape \(1, 2, 5\) and torch.int32, made elsewhere"),
    ({"attention_mask": {"full_attention": MASK}}, "a mask of <class 'dict'>"),
    ({"attention_mask": SpanMask(MASK.spans, 1, 6)}, r"for \(1, 1, 5, 6\), where queries and keys are \(1, 1, 5, 5\)"),
    ({"attention_mask": SpanMask(make_spans(4, 5, causal=True), 1, 5)}, r"for \(1, 1, 4, 5\)"),
    ({"attention_mask": SpanMask(MASK.spans, 2, 5)}, r"for \(2, 1, 5, 5\)"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_is_not_supported_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"modelassay.*{message}"):
        attention_forward(nn.Module(), X, X, X, **{"attention_mask": MASK, **options})


def test_arguments_that_change_nothing_are_let_pass() -> None:
    options: dict[str, Any] = {name: torch.ones(3) for name in HARMLESS}
    options |= {
        "output_attentions": False,
        "s_aux": None,
        "position_bias": None,
        "block_indices": None,
        "unheard_of": None,
    }
    attention_forward(nn.Module(), X, X, X, MASK, **options)


def _inputs(queries: int = 5, keys: int = 5, width: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, queries, 4), (2, 2, keys, 4), (2, 2, keys, width)]
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize("width", [3, 4, 7])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_values_may_be_wider_or_narrower_than_queries(width: int, scaling: float | None) -> None:
    q, k, v = _inputs(width=width)
    got, _ = attention_forward(nn.Module(), q, k, v, MASK, scaling=scaling)
    torch.testing.assert_close(got, attention_reference(q, k, v, MASK.spans, scaling).transpose(1, 2))


def test_a_query_that_sees_no_key_gets_the_mean_of_the_values() -> None:
    """As eager attention, which adds the lowest number to all scores; some models let it reach real tokens."""
    q, k, v = _inputs(width=3)
    real = torch.tensor([[False, False, True, True, True], [True] * 5])
    mask = spans_mask(2, 5, 5, attention_mask=real)
    lowest = torch.zeros(2, 1, 5, 5, dtype=q.dtype).masked_fill(~visible(mask.spans, 0, 5)[:, None], -1e300)
    expected, _ = _plain(None, q, k, v, lowest, None)
    torch.testing.assert_close(attention_forward(nn.Module(), q, k, v, mask)[0], expected)
    assert (mask.has_blind, mask.to("meta").has_blind, spans_mask(2, 5, 5).has_blind) == (True, True, False)


class Says(nn.Module):
    """A module that says whether it is causal."""

    def __init__(self, is_causal: bool) -> None:
        super().__init__()
        self.is_causal = is_causal


def test_without_a_mask_no_key_is_hidden_that_eager_attention_sees() -> None:
    q, k, v = _inputs()
    everything = attention_reference(q, k, v, make_spans(5, 5, causal=False)).transpose(1, 2)
    torch.testing.assert_close(attention_forward(Says(False), q, k, v, None, sliding_window=5)[0], everything)
    causal = attention_reference(q, k, v, make_spans(5, 5, causal=True)).transpose(1, 2)
    torch.testing.assert_close(attention_forward(Says(False), q, k, v, None, is_causal=True)[0], causal)
    torch.testing.assert_close(attention_forward(Says(True), q, k, v, None, is_causal=False)[0], everything)
    one, _ = attention_forward(Says(True), q[:, :, :1], k, v, None)
    torch.testing.assert_close(one, everything[:, :1])
    for module in (Says(True), nn.Module()):
        with pytest.raises(ValueError, match="passes no mask, and eager attention would see later keys"):
            attention_forward(module, q, k, v, None)
    with pytest.raises(ValueError, match="a window of 4 for 5 keys and no mask"):
        attention_forward(Says(False), q, k, v, None, sliding_window=4)
    with pytest.raises(ValueError, match="2 queries, 5 keys and no mask"):
        attention_forward(Says(True), q[:, :, :2], k, v, None, is_causal=True)


USES: dict[str, Callable[[Any], Any]] = {
    "index": lambda mask: mask[:, :, :, :5],
    "add to": lambda mask: torch.zeros(1, 1, 5, 5) + mask,
    "add": lambda mask: mask + torch.zeros(1, 1, 5, 5),
    "where": lambda mask: torch.where(mask, 0.0, 1.0),
    "fill": lambda mask: torch.zeros(1, 1, 5, 5).masked_fill(mask, 1.0),
    "compare": lambda mask: mask == 0,
    "subtract from": lambda mask: 1.0 - mask,
    "invert": lambda mask: ~mask,
    "convert": lambda mask: mask.to(torch.float32),
    "convert as": lambda mask: mask.to(torch.zeros(1)),
    "method": lambda mask: mask.masked_fill(torch.ones(5), 0.0),
    "dtype": lambda mask: mask.dtype,
    "truth": lambda mask: bool(mask),
    "length": lambda mask: len(mask),
    "concatenate": lambda mask: torch.cat([mask, torch.zeros(1, 1, 5, 5)]),
    "sdpa": lambda mask: nn.functional.scaled_dot_product_attention(X, X, X, attn_mask=mask),
}


@pytest.mark.parametrize("use", USES)
def test_a_mask_that_a_model_calculates_with_is_refused_with_a_sentence(use: str) -> None:
    with pytest.raises(MaskUseError, match=r"modelassay.*applies its attention mask itself \(.*\).*use attn_impl"):
        USES[use](MASK)


def test_a_mask_says_what_it_stands_for_and_moves() -> None:
    mask = spans_mask(2, 3, 7)
    assert (mask.shape, mask.ndim, mask.dim(), mask.size(-1)) == ((2, 1, 3, 7), 4, 4, 7)
    assert repr(mask) == "SpanMask(batch 2, 3 queries, 7 keys)"
    assert not hasattr(mask, "masked_fill")
    moved = mask.to("meta", non_blocking=True)
    assert (moved.device.type, moved.shape) == ("meta", mask.shape)
    for duplicate in (copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
        assert torch.equal(duplicate.spans, mask.spans)
        assert duplicate.shape == mask.shape


@pytest.mark.parametrize("model_type", ["bloom", "mpt"])
def test_models_that_index_their_mask_say_so(model_type: str) -> None:
    model = make_model(model_type)
    model.config._attn_implementation = "modelassay"
    with pytest.raises(ValueError, match="modelassay.*changes or applies its attention mask itself"):
        model(torch.full((2, 5), 7), attention_mask=torch.ones(2, 5))


def _plain(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float | None, **_: Any) -> Any:
    ratio = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(ratio, dim=1) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    return ((scores + (0.0 if mask is None else mask)).softmax(-1) @ v).transpose(1, 2), None


def _with_bias(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float | None, **_: Any) -> Any:
    return _plain(module, q, k, v, module.bias if mask is None else mask + module.bias, scaling)


def _with_a_wall(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float | None, **_: Any) -> Any:
    raise RuntimeError("the wall")


eager_attention_forward: Any = _plain


class Hides(nn.Module):
    """A module whose forward pass falls back to the eager function of this file."""

    is_causal = False

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(0, 1, 9).reshape(3, 3))

    def forward(self, *args: Any) -> Any:
        interface = transformers.AttentionInterface().get_interface("modelassay", eager_attention_forward)
        return interface(self, *args)


@pytest.mark.parametrize("masked", [True, False])
def test_a_module_is_asked_for_its_own_eager_attention(monkeypatch: pytest.MonkeyPatch, masked: bool) -> None:
    mask = MASK if masked else None
    Hides()(X, X, X, mask)
    for function, message in (
        (
            _with_bias,
            r"Hides computes another attention than softmax\(QK\^T\)V: its own eager function differs by \d+%",
        ),
        (_with_a_wall, r"eager attention of Hides could not be compared with this one \(RuntimeError: the wall\)"),
    ):
        monkeypatch.setitem(globals(), "eager_attention_forward", function)
        with pytest.raises(ValueError, match=f"modelassay.*{message}"):
            Hides()(X, X, X, mask)


def test_sinks_that_are_not_passed_on_are_refused() -> None:
    module = nn.Module()
    module.sinks = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="modelassay.*Module keeps attention sinks"):
        attention_forward(module, X, X, X, MASK)


def test_eager_attention_is_asked_in_full_precision() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):  # whose rounding is no other attention
        Hides()(*_inputs(), MASK)


def test_vmap_over_sequences_and_their_padding() -> None:
    model = make_model("llama")
    model.set_attn_implementation("modelassay")
    parameters = {name: x.detach() for name, x in model.named_parameters()}
    ids = torch.randint(3, 30, (2, 7), generator=torch.Generator().manual_seed(1))
    real = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]])

    def logits(ids_S: Tensor, real_S: Tensor) -> Any:
        inputs = {"input_ids": ids_S[None], "attention_mask": real_S[None], "use_cache": False}
        return functional_call(model, parameters, (), inputs).logits[0]

    torch.testing.assert_close(vmap(logits)(ids, real), model(ids, attention_mask=real).logits.detach())


def test_sparse_attention_is_refused_by_name() -> None:
    """MiniMax-M3 hands its choice of blocks to attention; left unread they made an error of 1.6."""
    settings = {
        "vocab_size": 32, "hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 16, "num_hidden_layers": 2, "num_local_experts": 2, "num_experts_per_tok": 1,
        "layer_types": ["full_attention", "minimax_m3_sparse"], "index_block_size": 2, "index_topk_blocks": 1,
        "index_n_heads": 2, "index_head_dim": 8, "rotary_dim": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = transformers.CONFIG_MAPPING["minimax_m3_vl_text"](**settings)
    model = transformers.AutoModel.from_config(config, attn_implementation="modelassay").eval()
    with pytest.raises(ValueError, match="modelassay.*an argument 'block_indices' that is not understood here"):
        model(torch.full((1, 9), 7))
