"""What a user's file says settles what names and shapes cannot, and nothing that is not meant is taken from it."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from modelassay.cli import cli
from modelassay.errors import CheckpointError
from modelassay.models.checkpoints import open_checkpoint
from modelassay.models.checkpoints.overrides import read_overrides
from support.tiny_models import expected_blocks, make_model, save


def write(folder: Path, text: str) -> Path:
    path = folder / "layout.yaml"
    path.write_text(text)
    return path


def unnamed(folder: Path) -> Path:
    path = save(make_model("gpt_neox"), folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "its-own"}))
    return folder


ORDER = "model_type: its-own\nshares: q k v\nturns: kv-heads\n"
WHOLE = (
    ORDER
    + "layer: gpt_neox.layers.{layer}.\n"
    + "".join(f"{role}: attention.query_key_value\n" for role in "qkv")
    + "o: attention.dense\n"
)


@pytest.mark.parametrize("text", [ORDER, WHOLE])
def test_order_that_nothing_tells_is_told_by_a_file(text: str, tmp_path: Path) -> None:
    folder = unnamed(tmp_path / "model")
    with pytest.raises(
        CheckpointError, match=r"query_key_value\.weight holds q, k and v, and nothing tells .* --layout FILE"
    ):
        open_checkpoint(folder)
    checkpoint = open_checkpoint(folder, rows=read_overrides(write(tmp_path, text)))
    blocks = expected_blocks(make_model("gpt_neox"))
    assert len(checkpoint.matrices) == len(blocks)
    for matrix in checkpoint.matrices:
        assert torch.equal(checkpoint.read(matrix), blocks[matrix.role, matrix.layer])


def test_the_command_line_takes_the_file(tmp_path: Path) -> None:
    """Without it one line names the option, and nothing is printed as a result."""
    models = [str(unnamed(tmp_path / name)) for name in ("a", "b")]
    refused = CliRunner().invoke(cli, ["fingerprint", *models, "--attention-only"])
    assert isinstance(refused.exception, CheckpointError)
    assert "--layout FILE" in str(refused.exception)
    assert refused.stdout == ""
    layout = write(tmp_path, ORDER)
    read = CliRunner().invoke(cli, ["fingerprint", *models, "--attention-only", "--json", "--layout", str(layout)])
    assert read.exit_code == 0, read.stderr
    (pair,) = json.loads(read.stdout)["pairs"]
    assert pair["methods"]["paper-exact"]["value"] == pytest.approx(1)


def test_rows_of_other_model_types_are_passed_over(tmp_path: Path) -> None:
    folder = unnamed(tmp_path / "model")
    rows = read_overrides(
        write(tmp_path, f"- {{{ORDER.strip().replace(chr(10), ', ').replace('its-own', 'another')}}}\n")
    )
    with pytest.raises(CheckpointError, match="nothing tells their order"):
        open_checkpoint(folder, rows=rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not YAML"), ("3", "expected `model_type: NAME`"), ("model_type: a\nshare: q k v", "'share': unknown key"),
        ("model_type: a\nshares: q k", "shares: expected q, k and v"), ("model_type: a\nturns: 0", "turns: expected once"),
        ("model_type: a\nlayer: h.", "with {layer} once"), ("model_type: a\nq: 3", "q: expected a name, got 3"),
        ("model_type: a\nnorm_plus_one: 1", "expected true or false"),
    ],
)  # fmt: skip
def test_file_that_says_something_else_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_overrides(write(tmp_path, text))


BLOOM = {
    "model_type": "bloom",
    "n_embed": 1024,
    "n_layer": 24,
    "num_attention_heads": 16,
    "vocab_size": 250880,
    "n_inner": None,
}
LLAVA = {
    "model_type": "llava_next",
    "text_config": {"model_type": "mistral", "intermediate_size": 14336, "max_position_embeddings": 32768, "num_key_value_heads": 8,
                    "rms_norm_eps": 1e-05, "vocab_size": 32064},
    "vision_config": {"hidden_size": 1024, "num_hidden_layers": 24},
}  # fmt: skip


def test_authors_own_configurations_tell_the_sizes() -> None:
    """Of bloom-560m, whose hidden size has an older key, and of LLaVA-1.6-Mistral, which leaves out what its class has as a default."""
    from modelassay.models.checkpoints.architectures import read_sizes

    bloom, llava = read_sizes(BLOOM, "config.json"), read_sizes(LLAVA, "config.json")
    assert (bloom.num_layers, bloom.hidden_size, bloom.num_heads, bloom.num_kv_heads, bloom.head_dim) == (
        24,
        1024,
        16,
        16,
        64,
    )
    assert (llava.num_layers, llava.hidden_size, llava.num_heads, llava.num_kv_heads, llava.head_dim) == (
        32,
        4096,
        32,
        8,
        128,
    )
    assert llava.vocab_size == 32064
