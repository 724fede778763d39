"""`hf:` names against a stand-in Hub: what is fetched, what is not, and what is said when it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from modelassay.models.checkpoints import open_checkpoint
from support.hub_server import HubServer
from support.hub_user import User, attention_shards, expected, forker, hub, sharded, user
from support.tiny_models import NUM_LAYERS, make_model, save

__all__ = ["forker", "hub", "sharded", "user"]


def test_only_shards_with_attention_are_fetched_and_only_once(hub: HubServer, user: User, sharded: Path) -> None:
    commit = hub.add("lab/llama", sharded)
    first = user.opens(f"hf:lab/llama@{commit}")
    assert first["sums"] == expected(sharded)
    assert first["revision"] == commit
    assert Path(first["folder"]).is_relative_to(user.home)
    assert first["tokenizer"] == open_checkpoint(sharded).tokenizer_key is not None
    shards = attention_shards(sharded)
    assert shards < {path.name for path in sharded.glob("*.safetensors")}
    assert hub.files_sent() == shards | {"config.json", "model.safetensors.index.json", "vocab.json"}
    hub.requests.clear()
    assert user.opens(f"hf:lab/llama@{commit}") == first
    assert hub.files_sent() == set()
    assert [request for request in hub.requests if "lab/llama" in request.path] == []


def test_offline_takes_everything_from_the_cache_and_asks_nothing(hub: HubServer, user: User, sharded: Path) -> None:
    commit = hub.add("lab/llama", sharded, tag="v1")
    first = user.opens("hf:lab/llama@v1")
    assert first["revision"] == commit
    hub.requests.clear()
    for reference in ("hf:lab/llama@v1", f"hf:lab/llama@{commit}"):
        assert user.opens(reference, HF_HUB_OFFLINE="1") == first
    assert hub.requests == []


def test_offline_without_a_cache_is_refused_and_asks_nothing(hub: HubServer, user: User, sharded: Path) -> None:
    commit = hub.add("lab/llama", sharded)
    for reference in ("hf:lab/llama", f"hf:lab/llama@{commit}"):
        answer = user.opens(reference, HF_HUB_OFFLINE="1")
        assert answer["error"] == "CheckpointError"
        assert f"{reference}: config.json is not in the cache and HF_HUB_OFFLINE is set; run once" in answer["message"]
    assert hub.requests == []


def test_cache_that_lacks_a_shard_is_refused_offline(hub: HubServer, user: User, sharded: Path) -> None:
    commit = hub.add("lab/llama", sharded)
    user.opens(f"hf:lab/llama@{commit}")
    shard = min(attention_shards(sharded))
    (parts,) = user.home.rglob(f"{shard}.parts")
    for lacking, message in ((parts, f"bytes of {shard} are not in the cache and HF_HUB_OFFLINE is set"),
                             (parts.with_name(f"{shard}.origin.json"), f"{shard} is not in the cache and HF_HUB_OFFLINE is set")):  # fmt: skip
        lacking.unlink()
        answer = user.opens(f"hf:lab/llama@{commit}", HF_HUB_OFFLINE="1")
        assert answer["error"] == "CheckpointError"
        assert message in answer["message"]
    assert user.opens(f"hf:lab/llama@{commit}")["sums"] == expected(sharded)


def test_branch_that_moved_is_followed_and_reported(hub: HubServer, user: User, sharded: Path, tmp_path: Path) -> None:
    old = hub.add("lab/llama", sharded)
    first = user.opens("hf:lab/llama")
    assert first["revision"] == old
    torch.manual_seed(3)
    newer = save(make_model("llama").bfloat16(), tmp_path / "newer")
    new = hub.add("lab/llama", newer)
    answer = user.opens("hf:lab/llama")
    assert (answer["revision"], answer["sums"]) == (new, expected(newer))
    assert answer["tokenizer"] is None
    assert user.opens(f"hf:lab/llama@{old}") | {"folder": ""} == first | {"folder": ""}
    elsewhere = user._replace(home=tmp_path / "elsewhere")
    assert elsewhere.opens(f"hf:lab/llama@{old}") | {"folder": ""} == first | {"folder": ""}


def test_single_file_of_another_name(hub: HubServer, user: User, tmp_path: Path) -> None:
    folder = save(make_model("gpt2"), tmp_path / "gpt2")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    commit = hub.add("lab/gpt2", folder)
    answer = user.opens("hf:lab/gpt2")
    assert len(answer["sums"]) == 4 * NUM_LAYERS
    assert answer["sums"] == expected(folder)
    hub.requests.clear()
    assert user.opens(f"hf:lab/gpt2@{commit}", HF_HUB_OFFLINE="1") == answer
    assert hub.requests == []


def test_unknown_order_in_a_tensor_is_refused_before_weights_are_fetched(
    hub: HubServer, user: User, tmp_path: Path
) -> None:
    folder = save(make_model("gpt_neox"), tmp_path / "odd", max_shard_size="8KB")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "odd"}))
    hub.add("lab/odd", folder)
    answer = user.opens("hf:lab/odd")
    assert answer["error"] == "CheckpointError"
    assert "gpt_neox.layers.0.attention.query_key_value.weight holds q, k and v" in answer["message"]
    assert hub.files_sent() == {"config.json", "model.safetensors.index.json"}


@pytest.mark.parametrize(
    ("reference", "failure", "kind", "message"),
    [
        ("hf:lab/nothing", None, "CheckpointError", "no such repository, or a private one; check the spelling"),
        ("hf:lab/llama@v9", None, "CheckpointError", "no such commit, tag or branch; check what follows the @"),
        (f"hf:lab/llama@{'0' * 40}", None, "CheckpointError", "no such commit, tag or branch"),
        ("hf:lab/bad--name", None, "CheckpointError", "not a repository's name"),
        ("hf:lab/empty", None, "CheckpointError", "the repository has no config.json"),
        ("hf:lab/llama", (403, "GatedRepo"), "CheckpointError", "gated; accept its terms on its page, then `hf auth login`"),
        ("hf:lab/llama", (401, "RepoNotFound"), "CheckpointError", "no such repository, or a private one"),
        ("hf:lab/llama", (401, ""), "CheckpointError", "the Hub refused config.json (401)"),
        ("hf:lab/llama", (403, ""), "CheckpointError", "the Hub refused config.json (403)"),
        ("hf:lab/llama", (501, ""), "HubUnavailable", "the Hub answered 501 for config.json; try again later"),
    ],
)  # fmt: skip
def test_refusals_say_what_to_do(
    hub: HubServer, user: User, sharded: Path, tmp_path: Path, reference: str, failure: tuple[int, str] | None, kind: str, message: str
) -> None:  # fmt: skip
    hub.add("lab/llama", sharded)
    if failure:
        hub.failures["config.json"] = failure
    (tmp_path / "empty").mkdir()
    hub.add("lab/empty", tmp_path / "empty")
    answer = user.opens(reference)
    assert answer["error"] == kind
    assert answer["message"].startswith(reference)
    assert message in answer["message"]


def test_file_that_is_refused_is_not_taken_for_absent(hub: HubServer, user: User, sharded: Path) -> None:
    hub.add("lab/llama", sharded)
    hub.failures["model.safetensors.index.json"] = (501, "")
    answer = user.opens("hf:lab/llama")
    assert answer["error"] == "HubUnavailable"
    assert "the Hub answered 501 for model.safetensors.index.json" in answer["message"]


def test_full_disk_is_the_machines_fault(hub: HubServer, user: User, sharded: Path) -> None:
    """A limit on the size of files stands for the full disk: writing fails in the same place."""
    hub.add("lab/llama", sharded)
    largest = max((sharded / shard).stat().st_size for shard in attention_shards(sharded))
    answer = user.opens("hf:lab/llama", largest_file=largest - 1)
    assert answer["error"] == "HostError"
    assert "cannot be kept in the cache" in answer["message"]
    assert answer["message"].endswith("free some space, or point MODELASSAY_CACHE elsewhere")
