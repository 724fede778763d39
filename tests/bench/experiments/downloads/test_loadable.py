"""Which members can be loaded, as metadata tell; and which uploads are the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modelassay.experiments.downloads.loadable import why_excluded
from modelassay.experiments.downloads.members import choose
from modelassay.experiments.downloads.overlap import weights_key
from modelassay.experiments.downloads.params import Params
from modelassay.models.listing import Member

GOOD = Member(
    name="lab/child", revision="a" * 40, relation="finetune", downloads=3, downloads_all_time=9, created=None,
    task="text-generation", library="transformers", gated=False, disabled=False, architectures=("Qwen2ForCausalLM",),
    files=("config.json", "model.safetensors", "tokenizer.json"), model_type="qwen2", quantized_by=None,
)  # fmt: skip


@pytest.mark.parametrize("changes", [
    {}, {"gated": True}, {"task": None}, {"relation": "merge"}, {"downloads": None},
    {"files": (*GOOD.files, "model.Q4.gguf")}, {"files": (*GOOD.files, "adapter_config.json")},
    {"files": ("config.json", "model.safetensors.index.json", "vocab.json")}, {"task": "text-to-speech"},
])  # fmt: skip
def test_loadable(changes: dict[str, Any]) -> None:
    assert why_excluded(replace(GOOD, **changes)) is None


@pytest.mark.parametrize(("changes", "reason"), [
    ({"disabled": True}, "disabled on the Hub"),
    ({"task": "image-text-to-text"}, "task of computer vision"),
    ({"relation": "adapter", "files": ("adapter_config.json", "adapter_model.safetensors")}, "adapter, not a whole model"),
    ({"files": ("adapter_config.json", "adapter_model.bin")}, "adapter, not a whole model"),
    ({"files": ("config.json", "a.gguf", "tokenizer.json")}, "GGUF only"),
    ({"files": ("config.json", "pytorch_model.bin", "tokenizer.json")}, "no safetensors"),
    ({"files": ("model.safetensors", "tokenizer.json")}, "no config.json"),
    ({"files": ("config.json", "model.safetensors")}, "no tokenizer"),
    ({"quantized_by": "bitsandbytes"}, "packed by a quantiser"),
    ({"architectures": ()}, "no architecture named"),
    ({"architectures": ("Qwen2ForTokenClassification",)}, "architecture is no causal language model"),
])  # fmt: skip
def test_not_loadable(changes: dict[str, Any], reason: str) -> None:
    assert why_excluded(replace(GOOD, **changes)) == reason


def test_cohorts_are_the_same_for_the_same_members_and_know_no_downloads_that_nobody_knows() -> None:
    members = [replace(GOOD, name=f"lab/{at:02}", downloads=None if at == 5 else at) for at in range(40)]
    params = Params(model="hf:lab/base", random_sample=10, most_downloaded=4, more_than=20)
    chosen = choose(members, params, seed="lab/base")
    assert choose(list(reversed(members)), params, seed="lab/base") == chosen
    assert len(chosen.random_sample) == 10
    assert choose(members, params, seed="lab/other").random_sample != chosen.random_sample
    assert chosen.most_downloaded == {"lab/39", "lab/38", "lab/37", "lab/36"}
    everyone = choose(members, Params(model="hf:lab/base", most_downloaded=99, more_than=20), seed="lab/base")
    assert everyone.most_downloaded == {f"lab/{at}" for at in range(21, 40)}
    assert everyone.random_sample == {member.name for member in members}


def test_weights_are_known_again_under_other_names_shards_and_types(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(4, 6, generator=generator).bfloat16() for name in "abc"}

    def key(name: str, *files: dict[str, torch.Tensor]) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for number, content in enumerate(files):
            save_file(content, folder / f"{number}.safetensors")
        return weights_key(folder)

    expected = key("whole", tensors)
    assert key("shards", {"a": tensors["a"]}, {"b": tensors["b"], "c": tensors["c"]}) == expected
    assert key("renamed", {f"model.{name}": value for name, value in tensors.items()}) == expected
    assert key("wider", {name: value.float() for name, value in tensors.items()}) == expected
    assert key("tied", {**tensors, "head": tensors["a"].clone(), "rotary.inv_freq": torch.ones(3)}) == expected
    moved = {**tensors, "c": tensors["c"].clone()}
    moved["c"][0, 0] += 1
    assert (
        len({
            expected,
            key("moved", moved),
            key("less", {"a": tensors["a"]}),
            key("shape", {**tensors, "c": tensors["c"].view(6, 4)}),
        })
        == 4
    )
