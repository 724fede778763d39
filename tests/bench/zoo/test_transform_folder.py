"""The zoo's transformations on checkpoints that are not the zoo's: tiny Qwen2 and Llama folders in half precision."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from modelassay import zoo
from modelassay.errors import CheckpointError, UsageError
from modelassay.evaluation.loss import held_out_loss
from modelassay.models.checkpoints import open_checkpoint
from modelassay.models.load import load_model, load_tokenizer
from modelassay.storage.store import Store
from modelassay.zoo import catalogue as zoo_members
from modelassay.zoo.build import REAL_STEPS, transform
from modelassay.zoo.make import ensure_text
from support.byte_tokenizer import byte_tokenizer

OF_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
TRAINED = ("sft-en", "sft-ja", "lora", "cpt")
SHORT = {"training": {"num_steps": 2, "batch_size": 2, "learning_rate": 1e-3}}
SIZES: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In bf16 with the zoo's tokenizer, which has a chat template."""
    folder = tmp_path_factory.mktemp("qwen2")
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=512, bos_token_id=None, eos_token_id=497, tie_word_embeddings=True, **SIZES)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.3)
    model.to(torch.bfloat16).save_pretrained(folder)
    store = Store(tmp_path_factory.mktemp("store"))
    text = ensure_text(zoo.member("smoke/base").text, store)
    for file in OF_TOKENIZER:
        (folder / file).write_bytes((text / file).read_bytes())
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In fp16 with a tokenizer of bytes that has neither a chat template nor a token for filling."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=300, **SIZES)).to(torch.float16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(params=["qwen2", "llama"])
def base(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("step", [*TRAINED, *zoo_members.WEIGHT_STEPS])
def test_a_child_is_a_checkpoint_of_its_bases_kind(step: str, base: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"settings": SHORT} if step in TRAINED else {}
    if step == "cpt":
        options["settings"] = {**SHORT, "block_tokens": 32}
    if step == "merge":
        options["other"] = transform(base, "noise-5", tmp_path / "other")
    folder = transform(base, step, tmp_path / "child", seed=3, **options)
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    parent = load_model(base)
    stored = {weight.dtype for weight in load_file(folder / "model.safetensors").values()}
    assert {key: len(value) for key, value in info.items() if value} == {}
    assert stored == {model.dtype} == {torch.bfloat16 if parent.config.model_type == "qwen2" else torch.float16}
    assert (digest(folder) != digest(base)) == (step != "fold")  # gains that are all 1 have nothing to fold
    for file in OF_TOKENIZER[:2]:
        assert (folder / file).read_bytes() == (base / file).read_bytes()
    assert open_checkpoint(folder).num_layers == 4 - 2 * (step == "depth")
    ids = torch.randint(250, (2, 19), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (load_model(folder)(input_ids=ids).logits - parent(input_ids=ids).logits).abs().max()
    # Logits up to 3.7. A rotation is rounded to the 8 bits of bf16; what the others round is in the sums alone, in fp32.
    if step == "rotate":
        assert 1e-4 < float(difference) < 0.05
    elif step in zoo.PRESERVING:
        assert float(difference) < 2e-5
    else:
        assert float(difference) > (0.01 if step in TRAINED else 0.05)


def test_the_same_call_gives_the_same_bits(base: Path, tmp_path: Path) -> None:
    for step in ("lora", "rotate"):
        options: dict[str, Any] = {"settings": SHORT} if step == "lora" else {}
        folders = [
            transform(base, step, tmp_path / f"{step}-{n}-{seed}", seed=seed, **options)
            for n, seed in enumerate((1, 1, 2))
        ]
        assert digest(folders[0]) == digest(folders[1]) != digest(folders[2])


def test_training_moves_the_loss_of_what_it_trains_on(qwen2: Path, tmp_path: Path) -> None:
    longer = {"training": {"num_steps": 30, "batch_size": 4, "learning_rate": 3e-3}, "block_tokens": 32}
    child = transform(qwen2, "cpt", tmp_path / "child", settings=longer)
    for language in ("en", "ja"):
        losses = [held_out_loss(folder, language, num_sentences=40) for folder in (qwen2, child)]
        assert losses[1] < losses[0] - 0.1


def test_generation_stops_where_answers_ended(qwen2: Path, llama: Path, tmp_path: Path) -> None:
    for base, ends in ((qwen2, ["<|im_end|>", "<|endoftext|>"]), (llama, ["</s>"])):
        child = transform(base, "sft-en", tmp_path / base.name, settings=SHORT)
        assert load_tokenizer(child).convert_ids_to_tokens(load_model(child).generation_config.eos_token_id) == ends


def test_a_chain_is_one_call_after_another(llama: Path, tmp_path: Path) -> None:
    moved = transform(transform(llama, "heads", tmp_path / "heads"), "scale-vo", tmp_path / "both")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before, after = (load_model(folder)(input_ids=ids).logits for folder in (llama, moved))
    torch.testing.assert_close(after, before, rtol=0, atol=2e-5)


def test_what_lies_beside_the_new_folder_is_the_callers(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "child.new").mkdir()
    (tmp_path / "child.new/thesis.tex").write_text("kept")
    transform(llama, "heads", tmp_path / "child")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["child", "child.new"]
    assert (tmp_path / "child.new/thesis.tex").read_text() == "kept"
    monkeypatch.setattr(type(load_model(llama)), "save_pretrained", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        transform(llama, "heads", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["child", "child.new"]


def test_mistakes_say_what_to_do(qwen2: Path, llama: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    with pytest.raises(UsageError, match="unknown transformation 'in8'; did you mean 'int8'"):
        transform(qwen2, "in8", new)
    with pytest.raises(UsageError, match="and nothing else, takes a second model"):
        transform(qwen2, "merge", new)
    with pytest.raises(UsageError, match="and nothing else, takes a second model"):
        transform(qwen2, "int8", new, other=llama)
    with pytest.raises(UsageError, match="exists; name a new folder"):
        transform(qwen2, "int8", tmp_path)
    with pytest.raises(UsageError, match="unknown setting 'fractoin'; this transformation has fraction"):
        transform(qwen2, "prune-30", new, settings={"fractoin": 0.5})
    with pytest.raises(CheckpointError, match="no config.json"):
        transform(tmp_path, "int8", new)
    with pytest.raises(CheckpointError, match="merge models of one shape"):
        transform(qwen2, "merge", new, other=llama)
    assert not new.exists()
    assert REAL_STEPS.keys() == {*TRAINED, *zoo_members.WEIGHT_STEPS, *zoo_members.FURTHER_STEPS}
