"""A model that was quantised is told from one that was trained on, by its bits; every format made here independently."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modelassay.errors import CheckpointError
from modelassay.fingerprints.rederived import Rederivation, blocks, rederived
from modelassay.models.checkpoints.gguf import read_gguf
from modelassay.models.hub import open_files
from modelassay.models.reference import Model
from support.gguf_files import encoded, write_gguf

NAMES = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight")
NORM = "model.norm.weight"
CONFIG = {"model_type": "qwen2", "num_hidden_layers": 1, "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4,
          "vocab_size": 24}  # fmt: skip
NF4 = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803, 0.1609302, 0.2461123, 0.33791524,
       0.44070983, 0.562617, 0.72295684, 1.0]  # fmt: skip
State = dict[str, torch.Tensor]


def weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> State:
    random = torch.Generator().manual_seed(seed)
    state = {name: 0.02 * torch.randn(24, 128, generator=random) for name in NAMES}
    return {
        name: tensor.to(dtype) for name, tensor in {**state, NORM: 1 + 0.1 * torch.randn(128, generator=random)}.items()
    }


def write(folder: Path, state: State, **config: object) -> Model:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(state, folder / "model.safetensors")
    return model(folder)


def model(folder: Path) -> Model:
    return Model(reference=str(folder), open_files=lambda: open_files(folder), identity=None, family=None)


def bf16(state: State) -> State:
    """Round to the nearest of the upper 16 bits, ties to even, by integers."""
    bits = {name: tensor.view(torch.int32).to(torch.int64) & 0xFFFFFFFF for name, tensor in state.items()}
    rounded = {name: (value + 0x7FFF + ((value >> 16) & 1)) >> 16 for name, value in bits.items()}
    return {
        name: torch.from_numpy(value.numpy().astype(np.uint16)).view(torch.bfloat16) for name, value in rounded.items()
    }


def fp16(state: State) -> State:
    return {name: torch.from_numpy(tensor.numpy().astype(np.float16)) for name, tensor in state.items()}


def _parts(state: State, quantise: Callable[[str, np.ndarray], State]) -> State:
    return {NORM: state[NORM]} | {
        part: tensor for name in NAMES for part, tensor in quantise(name, state[name].float().numpy()).items()
    }


def int8(state: State) -> State:
    def quantise(name: str, rows: np.ndarray) -> State:
        rows = rows.astype(np.float16).astype(np.float32)
        most = np.abs(rows).max(1)
        codes = np.rint(rows * (np.float32(127) / most)[:, None]).astype(np.int8)
        return {name: torch.from_numpy(codes), name.replace(".weight", ".SCB"): torch.from_numpy(most)}

    return _parts(state, quantise)


def fp8_rows(state: State) -> State:
    def quantise(name: str, rows: np.ndarray) -> State:
        scale = (np.abs(rows).max(1) / np.float32(448)).astype(np.float32)
        return {
            name: torch.from_numpy(rows / scale[:, None]).to(torch.float8_e4m3fn),
            name + "_scale": torch.from_numpy(scale)[:, None],
        }

    return _parts(state, quantise)


def fp8_blocks(state: State) -> State:
    """Blocks of 16 rows and 64 columns, the last rows' blocks not full."""

    def quantise(name: str, rows: np.ndarray) -> State:
        scales = np.array(
            [[np.abs(rows[r : r + 16, c : c + 64]).max() / np.float32(448) for c in (0, 64)] for r in (0, 16)],
            dtype=np.float32,
        )
        codes = np.stack([[rows[r, c] / scales[r // 16, c // 64] for c in range(128)] for r in range(24)])
        return {name: torch.from_numpy(codes).to(torch.float8_e4m3fn), name + "_scale_inv": torch.from_numpy(scales)}

    return _parts(state, quantise)


def nf4(state: State) -> State:
    def quantise(name: str, rows: np.ndarray) -> State:
        groups = rows.reshape(-1, 64)
        most = np.abs(groups).max(1)
        codes = (
            np
            .abs((groups / most[:, None]).reshape(-1, 1).astype(np.float64) - np.array(NF4))
            .argmin(1)
            .astype(np.uint8)
        )
        settings = torch.tensor(list(json.dumps({"blocksize": 64, "quant_type": "nf4"}).encode()), dtype=torch.uint8)
        return {name: torch.from_numpy(16 * codes[::2] + codes[1::2])[:, None], f"{name}.absmax": torch.from_numpy(most),
                f"{name}.quant_map": torch.tensor(NF4), f"{name}.quant_state.bitsandbytes__nf4": settings}  # fmt: skip

    return _parts(state, quantise)


WAYS = {"BF16": bf16, "F16": fp16, "I8": int8, "F8_E4M3": fp8_rows, "blocks": fp8_blocks, "NF4": nf4}


def changed(state: State) -> State:
    """A model of which one weight is another."""
    other = {name: tensor.clone() for name, tensor in state.items()}
    other[NAMES[1]][3, 5] *= -1
    return other


@pytest.mark.parametrize("way", WAYS)
def test_a_quantised_model_is_told_by_its_bits(way: str, tmp_path: Path) -> None:
    quantise, state = WAYS[way], weights()
    b = write(tmp_path / "b", quantise(state), quantization_config={"weight_block_size": [16, 64]})
    result = rederived(write(tmp_path / "a", state), b)
    assert result is not None
    assert not result.partly, [str(tensor) for tensor in result.partly]
    assert result.is_rederived
    assert len(result.matched) == 4
    near = rederived(write(tmp_path / "near", changed(state)), b)
    assert near is not None
    assert [tensor.name for tensor in near.partly] == [NAMES[1]]
    assert not near.is_rederived
    assert 0 < near.partly[0].of - near.partly[0].equal <= 128  # the code alone, or those whose scale it was
    stranger = rederived(write(tmp_path / "stranger", weights(1)), b)
    assert stranger is not None
    assert not stranger.matched


def gguf(folder: Path, state: State, type_name: str, *, architecture: str = "qwen2") -> Model:
    folder.mkdir()
    order = {NAMES[0]: "blk.0.attn_q.weight", NAMES[1]: "blk.0.ffn_up.weight", NAMES[2]: "token_embd.weight"}
    tensors = {
        other: (type_name, (24, 128), encoded(type_name, state[name].float().numpy())) for name, other in order.items()
    }
    write_gguf(folder / "m.gguf", {**tensors, "output_norm.weight": ("F32", (128,), encoded("F32", state[NORM].float().numpy()))},
               architecture=architecture)  # fmt: skip
    return model(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("type_name", ["F16", *blocks.TYPES])
def test_a_gguf_file_is_told_by_its_blocks(type_name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    state = weights(dtype=dtype)
    b = gguf(tmp_path / "b", state, type_name)
    result = rederived(write(tmp_path / "a", state), b)
    assert result is not None
    assert not result.partly, [str(tensor) for tensor in result.partly]
    assert result.is_rederived
    assert result.formats == {type_name: 3, "F32": 1}
    near = rederived(write(tmp_path / "near", changed(state)), b)
    assert near is not None
    [only] = near.partly
    assert (only.name, only.of - only.equal) == ("blk.0.ffn_up.weight", 1)


def test_rows_of_heads_are_turned_as_converters_do(tmp_path: Path) -> None:
    state = weights()
    a = write(tmp_path / "a", state)
    turned = torch.stack([
        state[NAMES[0]][6 * head + 3 * half + row] for head in range(4) for row in range(3) for half in range(2)
    ])
    result = rederived(a, gguf(tmp_path / "b", {**state, NAMES[0]: turned}, "Q8_0", architecture="llama"))
    assert result is not None
    assert result.is_rederived


def test_types_that_search_their_scales_are_named(tmp_path: Path) -> None:
    state = weights()
    a = write(tmp_path / "a", state)
    b = gguf(tmp_path / "b", state, "Q8_0")
    path = b.files.folder / "m.gguf"
    header = read_gguf(path)
    assert header.tensors["token_embd.weight"].shape == (24, 128)
    data = path.read_bytes().replace(b"token_embd.weight" + b"\x02\0\0\0\x80" + bytes(7) + b"\x18" + bytes(7) + b"\x08", b"token_embd.weight"
                                     + b"\x02\0\0\0\x80" + bytes(7) + b"\x18" + bytes(7) + b"\x14")  # fmt: skip
    path.write_bytes(data)
    result = rederived(a, b)
    assert result is not None
    assert result.not_redone == (
        "IQ4_NL: its scales are searched, which no definition makes again bit for bit: 1 tensors",
    )
    assert result.is_rederived
    assert len(result.tensors) == 3


def test_an_architecture_with_other_names_is_said(tmp_path: Path) -> None:
    state = weights()
    result = rederived(write(tmp_path / "a", state), gguf(tmp_path / "b", state, "Q8_0", architecture="gemma"))
    assert result is not None
    assert (result.tensors, result.share, result.is_rederived) == ((), 0, False)
    assert result.not_redone == ("GGUF of architecture gemma, whose names are not known here: 4 tensors",)


def test_a_model_of_which_little_can_be_made_again_is_not_called_rederived(tmp_path: Path) -> None:
    state = weights()
    packed = bf16(state)
    for name in NAMES[:2]:
        packed[name.replace(".weight", ".qweight")] = packed.pop(name)
    result = rederived(write(tmp_path / "a", state), write(tmp_path / "b", packed))
    assert result is not None
    assert not result.partly
    assert result.share == pytest.approx(25 / 73)  # the embedding and the norm of 3 x 24 + 1 rows
    assert not result.is_rederived
    assert result.not_redone == (
        "qweight: GPTQ or AWQ packs several weights into one integer, in a format that is not made again here: 2 tensors",
    )


def test_what_is_not_stored_in_fewer_bits_is_no_question(tmp_path: Path) -> None:
    state = weights()
    a, b = write(tmp_path / "a", state), write(tmp_path / "b", bf16(state))
    assert rederived(a, write(tmp_path / "same", state)) is None
    assert rederived(b, a) is None
    result = rederived(a, b)
    assert isinstance(result, Rederivation)
    widened = rederived(write(tmp_path / "wide", {name: tensor.float() for name, tensor in bf16(state).items()}), b)
    assert widened is not None
    assert widened.is_rederived  # which of the two was first, bits do not tell


def test_models_of_one_format_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = write(tmp_path / "a", weights(0)), write(tmp_path / "b", weights(1))
    monkeypatch.setattr("modelassay.fingerprints.rederived.stored.read_source", None)
    assert rederived(a, b) is None


def test_tensors_alike_throughout_say_nothing(tmp_path: Path) -> None:
    ones = {name: torch.ones_like(tensor) for name, tensor in weights().items()}
    assert rederived(write(tmp_path / "a", ones), write(tmp_path / "b", bf16(ones))) is None


def test_a_fused_last_step_is_another_rounding() -> None:
    """A product and a sum that round once differ from two that round each, and are what float64 rounded at the end gives."""
    random = np.random.default_rng(0)
    num_unlike = 0
    for _ in range(40):
        rows = random.integers(-127, 128, (8192, 32)).astype(np.float32)
        plain, fused = (blocks.quantise("Q4_0", rows, fused=fused) for fused in (False, True))
        exact = np.abs(rows).argmax(1)
        scale = np.take_along_axis(rows, exact[:, None], 1) / np.float32(-8)
        inverse = np.float32(1) / np.where(scale == 0, np.float32(1), scale)
        codes = np.minimum((rows.astype(np.float64) * inverse + 8.5).astype(np.float32).astype(int), 15)
        unpacked = np.concatenate([fused[:, 2:] & 15, fused[:, 2:] >> 4], 1)
        assert (unpacked == codes).all()
        num_unlike += int((plain != fused).any(1).sum())
    assert num_unlike > 0


@pytest.mark.parametrize("length", [3, 20, 60, 150, 400])
def test_a_gguf_file_cut_short_is_refused(length: int, tmp_path: Path) -> None:
    b = gguf(tmp_path / "b", weights(), "Q4_0")
    path = b.files.folder / "m.gguf"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="m.gguf: "):
        read_gguf(path)
