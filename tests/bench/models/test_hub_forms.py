"""Models of the Hub in other forms than safetensors: what of them is fetched, and what is refused before anything is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modelassay.errors import CheckpointError
from modelassay.models.checkpoints import gguf, open_checkpoint
from modelassay.models.checkpoints.prepare import need, prepare_spans
from support.gguf_files import converted_llama
from support.hub_server import HubServer
from support.model_forms import CONFIG, HEAD_DIM, HEADS, KV_HEADS, LAYERS, VOCAB, folder, weights
from support.near_hub import near_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with near_hub(tmp_path, monkeypatch) as hub:
        yield hub


def serve(hub: HubServer, name: str, folder: Path) -> str:
    assert hub.contents is not None
    hub.contents.add(name, folder)
    return hub.add(name, folder)


def test_a_gguf_file_is_read_by_ranges_without_config(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "_PIECE_BYTES", 4096)
    (tmp_path / "served").mkdir()
    path = tmp_path / "served" / "m-Q8_0.gguf"
    source = {name: tensor.float().numpy() for name, tensor in weights().items()}
    converted_llama(
        path, source, "Q8_0", heads=(HEADS, KV_HEADS), head_dim=HEAD_DIM, tokens=[f"t{at}" for at in range(VOCAB)]
    )
    commit = serve(hub, "lab/tiny-gguf", tmp_path / "served")
    checkpoint = open_checkpoint("hf:lab/tiny-gguf")
    assert hub.contents is not None
    assert (checkpoint.num_layers, checkpoint.revision) == (LAYERS, commit)
    assert hub.contents.num_bytes_sent < 20_000 < path.stat().st_size
    spans = [matrix.span for matrix in checkpoint.matrices_of("v")]
    wanted = need(spans)
    assert 0 < wanted.missing_bytes == wanted.wanted_bytes < 2 * KV_HEADS * HEAD_DIM * 70 + 1
    assert prepare_spans(spans) >= wanted.missing_bytes
    assert need(spans).missing_bytes == 0
    matrix = checkpoint.matrices_of("v")[1]
    expected = source["model.layers.1.self_attn.v_proj.weight"]
    assert np.abs(checkpoint.read(matrix).numpy() - expected).max() <= np.abs(expected).max() / 127
    again = open_checkpoint(f"hf:lab/tiny-gguf/m-Q8_0.gguf@{commit}")
    assert torch.equal(again.read(again.matrices_of("v")[1]), checkpoint.read(matrix))


def test_a_quantiser_that_is_not_read_is_told_before_weights_are_fetched(hub: HubServer, tmp_path: Path) -> None:
    served = folder(tmp_path / "served", weights(), config={**CONFIG, "quantization_config": {"quant_method": "hqq"}})
    serve(hub, "lab/hqq", served)
    with pytest.raises(CheckpointError, match="quantised by HQQ"):
        open_checkpoint("hf:lab/hqq")
    assert hub.contents is not None
    assert hub.contents.requests == []


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a config.json"])
def test_an_adapter_and_its_base(hub: HubServer, tmp_path: Path, beside: bool) -> None:
    serve(hub, "lab/base", folder(tmp_path / "base", weights()))
    child = tmp_path / "child"
    child.mkdir()
    stem = "model.layers.0.self_attn.q_proj"
    a, b = torch.randn(4, 64), torch.randn(64, 4)
    save_file(
        {f"base_model.model.{stem}.lora_A.weight": a, f"base_model.model.{stem}.lora_B.weight": b},
        child / "adapter_model.safetensors",
    )
    said = {"peft_type": "LORA", "base_model_name_or_path": "lab/base", "r": 4, "lora_alpha": 4}
    (child / "adapter_config.json").write_text(json.dumps(said))
    if beside:
        shutil.copy2(tmp_path / "base" / "config.json", child)
    serve(hub, "lab/child", child)
    checkpoint = open_checkpoint("hf:lab/child")
    got = checkpoint.read(checkpoint.matrices_of("q")[0]).double()
    expected = weights()[f"{stem}.weight"].double() + b.double() @ a.double()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_model_costs_one_question_for_an_adapter_and_none_again(hub: HubServer, tmp_path: Path) -> None:
    commit = serve(hub, "lab/base", folder(tmp_path / "base", weights()))
    open_checkpoint(f"hf:lab/base@{commit}")
    asked = [path for _, path, *_ in hub.requests if path.endswith("adapter_config.json")]
    assert len(asked) == 1
    open_checkpoint(f"hf:lab/base@{commit}")
    assert [path for _, path, *_ in hub.requests if path.endswith("adapter_config.json")] == asked
