"""``fingerprint`` of two forms of one model: what was done is the storing again, and no guess from the values."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from modelassay.cli import cli
from support.gguf_files import converted_llama
from support.model_forms import HEAD_DIM, HEADS, KV_HEADS, VOCAB, folder, weights


def test_a_copy_quantised_again_is_called_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    source = folder(tmp_path / "source", weights())
    tensors = {name: tensor.float().numpy() for name, tensor in weights().items()}
    copy = converted_llama(tmp_path / "copy-Q8_0.gguf", tensors, "Q8_0", heads=(HEADS, KV_HEADS), head_dim=HEAD_DIM,
                           tokens=[f"t{at}" for at in range(VOCAB)])  # fmt: skip
    result = CliRunner().invoke(cli, ["fingerprint", str(source), str(copy), "--json"])
    assert result.exit_code == 0, result.stderr
    (pair,) = json.loads(result.stdout)["pairs"]
    assert pair["verdict"] == "re-derived"
    assert pair["derivation"]["kind"] == "rounded"
    assert "stored again as Q8_0" in pair["derivation"]["evidence"]
