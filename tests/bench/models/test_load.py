"""Loading: the numbers are those of the file, and each way a folder can be wrong says what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelassay import zoo
from modelassay.errors import CheckpointError
from modelassay.models.load import load_model, load_tokenizer, stored_dtype
from modelassay.storage.store import Store


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.ensure("smoke/base", store=Store(tmp_path_factory.mktemp("store")))


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_weights_are_those_of_the_file_in_the_dtype_asked_for(base: Path) -> None:
    stored = load_file(base / "model.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(base, dtype=dtype)
        assert not model.training
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), stored[name].to(dtype), rtol=0, atol=0)


def test_adapter_beside_a_model_is_refused_rather_than_loaded_over_its_own_base(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would load what lies at ``base_model_name_or_path`` from the current folder."""
    shutil.copytree(copy, tmp_path / "elsewhere/base")
    settings = {"base_model_name_or_path": "base", "peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]}
    (copy / "adapter_config.json").write_text(json.dumps(settings))
    save_file({}, copy / "adapter_model.safetensors")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"holds adapter_config\.json, so that transformers would load the base"):
        load_model(copy)


def test_float32_is_the_default_whatever_the_config_says(copy: Path) -> None:
    edit_config(copy, dtype="bfloat16")
    assert load_model(copy).dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"dtype": "torch.float64", "torch_dtype": "float16"}, torch.float64),
        ({"text_config": {"dtype": "bfloat16"}}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_stored_precision_is_the_one_that_config_states(tmp_path: Path, config: object, dtype: torch.dtype) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert stored_dtype(tmp_path) == dtype


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"dtype": "int8"}', "dtype: expected a floating-point type such as 'bfloat16', got 'int8'"),
        ('{"dtype": "load"}', "got 'load'"),
        ('{"dtype": ["float32"]}', r"got \['float32'\]"),
        ('{"dtype": "auto"}', "got 'auto'"),
        ("[]", "expected a JSON object, got list"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "brackets nested more than 64 deep"),
        (" " * 16_000_001, "larger than 16,000,000 bytes"),
    ],
)
def test_config_that_states_no_precision_is_an_error_and_no_traceback(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        stored_dtype(tmp_path)


def test_attention_is_passed_through_and_agrees(base: Path) -> None:
    ids = torch.tensor([load_tokenizer(base).encode("Anna walks to the old mill.")])
    models = [load_model(base, attn_implementation=name) for name in ("eager", "sdpa")]
    assert [model.config._attn_implementation for model in models] == ["eager", "sdpa"]
    with torch.no_grad():
        eager, sdpa = (model(input_ids=ids).logits for model in models)
    torch.testing.assert_close(eager, sdpa, rtol=1e-4, atol=1e-5)


def test_a_bin_checkpoint_is_read_without_running_its_code(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    assert torch.equal(load_model(copy).model.embed_tokens.weight, weights["model.embed_tokens.weight"])

    class Bomb:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return Path.touch, (tmp_path / "exploded",)  # type: ignore[return-value]

    torch.save({"model.embed_tokens.weight": Bomb()}, copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot load its model"):
        load_model(copy)
    assert not (tmp_path / "exploded").exists()


def test_remote_code_is_never_run(copy: Path, tmp_path: Path) -> None:
    edit_config(
        copy, model_type="mystery", auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    )
    (copy / "code.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'exploded')!r}).touch()\n")
    with pytest.raises(CheckpointError, match="cannot load its model"):
        load_model(copy)
    assert not (tmp_path / "exploded").exists()


def test_a_missing_tensor_is_not_filled_with_random_numbers(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError,
        match=r"1 tensors of Qwen2ForCausalLM are missing, the first 'model.layers.1.self_attn.q_proj.weight'",
    ):
        load_model(copy)


def truncate(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (shutil.rmtree, "not a folder; give the local folder"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json, it holds chat_template.jinja"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda folder: edit_config(folder, model_type="mystery"), "cannot load its model.*names an architecture"),
        (lambda folder: edit_config(folder, hidden_size=48), "cannot load its model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot load its model"),
        (truncate, "model.safetensors: the header claims"),
    ],
)
def test_a_broken_checkpoint_is_refused(copy: Path, break_it: Callable[[Path], object], message: str) -> None:
    break_it(copy)
    with pytest.raises(CheckpointError, match=message):
        load_model(copy)


def test_a_broken_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer.json: not valid JSON"):
        load_tokenizer(copy)
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer_config.json"):
        load_tokenizer(copy)


def test_token_id_that_would_make_a_list_of_gigabytes_is_refused(copy: Path) -> None:
    path = copy / "tokenizer.json"
    data = json.loads(path.read_text())
    token = next(iter(data["model"]["vocab"]))
    data["model"]["vocab"][token] = 2**29
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: token .*: its id 536870912 is not below 16,777,216"):
        load_tokenizer(copy)
