"""``fingerprint`` of models on a stand-in Hub: what it fetches, and what it says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from modelassay.cli import cli
from modelassay.commands.fingerprint.sampled import sampled
from modelassay.commands.fingerprint.subjects import fetched_line, read_subjects
from modelassay.errors import CheckpointError, UsageError
from modelassay.models import parts
from modelassay.models.checkpoints import open_checkpoint
from support.hub_server import HubServer
from support.near_hub import LLAMA, llama_file, near_hub, put_llama

SMALL = LLAMA | {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "vocab_size": 2000}  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with near_hub(tmp_path, monkeypatch) as hub:
        yield hub


def bytes_sent(hub: HubServer) -> int:
    assert hub.contents is not None
    return hub.num_bytes_sent + hub.contents.num_bytes_sent


def test_two_models_of_two_gigabytes_for_less_than_half_a_percent(hub: HubServer, tmp_path: Path) -> None:
    parent = llama_file(1)
    put_llama(hub, "lab/parent", tmp_path / "parent", parent)
    put_llama(hub, "lab/child", tmp_path / "child", llama_file(1, noise=1.0))
    assert parent.size > 2_000_000_000
    messages: list[str] = []
    view = sampled(["hf:lab/parent", "hf:lab/child"], suspect=None, alpha=1e-10, report=messages.append)
    (pair,) = view.data["pairs"]
    assert pair["verdict"] == "inherited"
    assert pair["log10_p"] < -10
    assert [look["num_rows"] for look in pair["looks"]] == [32]
    assert bytes_sent(hub) < 0.005 * 2 * parent.size
    assert bytes_sent(hub) < 0.0012 * 2 * parent.size  # headers, configuration, 32 rows: 0.1 %
    assert [model["fetched_bytes"] for model in view.data["models"]] == [
        pytest.approx(bytes_sent(hub) / 2, rel=0.001)
    ] * 2
    assert all(model["weights_bytes"] == parent.size for model in view.data["models"])
    for model in view.data["models"]:
        spread = 0.02 if model["model"] == "parent" else 0.02 * 2**0.5
        for one in model["sigmas"]:  # their coverage is measured in test_sampling.py
            assert one["low"] < one["value"] < one["high"] < 1.02 * one["low"]
            assert abs(one["value"] - spread) < one["high"] - one["low"]
    before = bytes_sent(hub)
    parts._opened.clear()
    again = sampled(["hf:lab/parent", "hf:lab/child"], suspect=None, alpha=1e-10, report=messages.append)
    assert again.summary == view.summary
    assert bytes_sent(hub) == before


def test_strangers_are_read_further_and_stay_open_below_half_a_percent(hub: HubServer, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        put_llama(hub, f"lab/{name}", tmp_path / name, llama_file(seed))
    view = sampled(["hf:lab/one", "hf:lab/two"], suspect=None, alpha=1e-6, report=lambda text: None)
    (pair,) = view.data["pairs"]
    assert pair["verdict"] == "not distinguishable from independent"
    assert [look["num_rows"] for look in pair["looks"]] == [32, 64, 128]
    assert bytes_sent(hub) < 0.005 * 2 * llama_file(0).size


@pytest.mark.parametrize("attention_only", [True, False])
def test_what_is_fetched_is_what_is_read(hub: HubServer, tmp_path: Path, attention_only: bool) -> None:
    file = llama_file(3, config=SMALL)
    for name in ("one", "two"):
        put_llama(hub, f"lab/{name}", tmp_path / name, file, config=SMALL)
        (tmp_path / name / "tokenizer.json").unlink()
    messages: list[str] = []
    subjects = read_subjects(
        ["hf:lab/one", "hf:lab/two"], attention_only=attention_only, behaviour=False, report=messages.append
    )
    layer = 2 * 256 * (256 + 256 + 128 + 128 + (0 if attention_only else 3 * 768 + 2))
    configs = sum((tmp_path / name / "config.json").stat().st_size for name in ("one", "two"))
    headers = 2 * parts.FIRST_BYTES + configs
    assert 0 <= bytes_sent(hub) - 2 * 3 * layer <= 0.02 * 2 * 3 * layer + headers
    assert all(
        str(line).startswith(f"{name}: ")
        for line, name in zip(map(fetched_line, subjects), ("one", "two"), strict=True)
    )
    assert any(f"of {file.size:,} bytes of weights" in message for message in messages)


def test_everything_is_opened_and_refused_before_weights_are_fetched(hub: HubServer, tmp_path: Path) -> None:
    put_llama(hub, "lab/one", tmp_path / "one", llama_file(3, config=SMALL), config=SMALL)
    put_llama(hub, "lab/two", tmp_path / "two", llama_file(3, config=SMALL), config=SMALL | {"hidden_size": 128})
    for name in ("one", "two"):
        (tmp_path / name / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="config.json implies a shape"):
        read_subjects(["hf:lab/one", "hf:lab/two"], attention_only=False, behaviour=False, report=lambda text: None)
    assert bytes_sent(hub) < 2 * parts.FIRST_BYTES + 2000


def test_weights_read_over_the_hub_are_those_of_the_file(hub: HubServer, tmp_path: Path) -> None:
    file = llama_file(4, config=SMALL)
    put_llama(hub, "lab/one", tmp_path / "one", file, config=SMALL)
    (tmp_path / "one" / "tokenizer.json").unlink()
    (tmp_path / "one" / "model.safetensors").write_bytes(file.read(0, file.size))
    near, far = open_checkpoint(tmp_path / "one"), open_checkpoint("hf:lab/one")
    for one, other in zip(near.matrices, far.matrices, strict=True):
        assert near.read(one).equal(far.read(other))


def test_whole_files_are_fetched_for_whoever_asks_for_their_hashes(hub: HubServer, tmp_path: Path) -> None:
    file = llama_file(5, config=SMALL)
    put_llama(hub, "lab/one", tmp_path / "one", file, config=SMALL)
    (tmp_path / "one" / "tokenizer.json").unlink()
    (subject,) = read_subjects(
        ["hf:lab/one"], attention_only=True, behaviour=False, whole=True, report=lambda text: None
    )
    assert fetched_line(subject) is None
    assert (subject.model.files.folder / "model.safetensors").read_bytes() == file.read(0, file.size)
    assert file.size <= bytes_sent(hub) < file.size + 3000
    assert not (parts.cache_root() / "hub").exists()


def test_a_suspect_is_sampled_against_its_candidates(hub: HubServer, tmp_path: Path) -> None:
    for seed, name in ((1, "parent"), (2, "stranger")):
        put_llama(hub, f"lab/{name}", tmp_path / name, llama_file(seed, config=SMALL), config=SMALL)
    put_llama(hub, "lab/child", tmp_path / "child", llama_file(1, noise=0.5, config=SMALL), config=SMALL)
    view = sampled(["hf:lab/parent", "hf:lab/stranger"], suspect="hf:lab/child", alpha=1e-6, report=lambda text: None)
    assert [(pair["a"], pair["b"], pair["verdict"]) for pair in view.data["pairs"]] == [
        ("child", "parent", "inherited"), ("child", "stranger", "not distinguishable from independent")]  # fmt: skip
    assert "corrected for 2 candidates" in view.summary[0]
    json.dumps(view.data, allow_nan=False)
    with pytest.raises(UsageError, match="name at least two, got 1"):
        sampled(["hf:lab/parent"], suspect=None, alpha=1e-6, report=lambda text: None)


@pytest.mark.parametrize("option", [["--attention-only"], ["--behaviour"], ["--evidence", "e"], ["--figure", "f.png"]])
def test_sampled_refuses_what_needs_whole_matrices(option: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["fingerprint", str(tmp_path), str(tmp_path), "--sampled", *option])
    assert result.exit_code == 2
    assert f"--sampled reads a few rows, and {option[0]} needs whole matrices; leave one of them out" in result.output
