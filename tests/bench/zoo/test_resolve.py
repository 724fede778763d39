"""One answer to what a model is: its files, its family, and the identity under which what was computed of it is kept."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelassay import zoo
from modelassay.errors import CheckpointError
from modelassay.models.tokenizer import TOKENIZER_FILES, copy_tokenizer
from modelassay.storage.store import Store
from modelassay.zoo.resolve import resolve
from support.hub_server import HubServer, serve_hub
from support.toy_suite import environ
from support.zoo_needs import store_with_zoo

MEASURE = """
import json, sys
from pathlib import Path
from modelassay.fingerprints.bottom_k import PromptedModel
from modelassay.fingerprints.peers import Peer, PeerFingerprint, PeerScore, peer_fingerprint
from modelassay.fingerprints.weights import load_weights
from modelassay.storage.store import Store
from modelassay.zoo.resolve import resolve

reference, root = arguments
store, calls = Store(Path(root)), []
model = resolve(reference, store=store)
weights = load_weights(model, store=store)
prompted = PromptedModel(model, store=store)
responses = prompted.responses(prompted.prompts)
loaded = "_loaded" in vars(prompted)

def extract(folder, *, name=None):
    calls.append(name)
    return PeerFingerprint(model=name, content={"files": len(list(folder.glob("*.safetensors")))})

peer = Peer(name="numpy", version="0", fingerprint=extract, score=None, parts={}, threshold=0.5, reached=True)
content = peer_fingerprint(peer, model, store=store).content
measured = json.dumps({
    "identity": model.identity, "name": weights.name, "grams": weights.grams(range(weights.num_layers)).sum(),
    "prompts": prompted.prompts.key, "hidden": responses.hidden["stable"].double().sum().item(),
    "head": responses.head.weight_VD.double().sum().item(), "loaded": loaded, "peer_calls": calls, "content": content,
})
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_with_zoo(tmp_path_factory.mktemp("store") / "artifacts")


@pytest.fixture(scope="module")
def folder(store: Store) -> Path:
    return zoo.ensure("smoke/base", store=store)


def measure(reference: str, root: Path, home: Path, hub: HubServer) -> dict[str, Any]:
    """Everything that may be kept of a model, in a process of its own, since huggingface_hub reads its settings once."""
    cache = str(home / "own")  # of parts of weights; where what is computed goes, the program says
    env = environ(HF_HOME=str(home), MODELASSAY_CACHE=cache, HF_ENDPOINT=hub.url, NO_PROXY="127.0.0.1")
    env.pop("HF_HUB_OFFLINE", None)
    program = f"import sys\narguments = sys.argv[1:]{MEASURE}print(measured)"
    command = [sys.executable, "-c", program, reference, str(root)]
    process = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return dict(json.loads(process.stdout))


def measure_here(reference: str, root: Path) -> dict[str, Any]:
    """The same in this process, where no Hub is asked."""
    names: dict[str, Any] = {"__name__": "measure", "arguments": (reference, str(root))}
    exec(MEASURE, names)
    return dict(json.loads(names["measured"]))


def kinds_in(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir()) if root.is_dir() else []


@pytest.mark.nightly
def test_what_was_computed_of_a_commit_is_kept_and_a_branch_stands_for_the_one_it_points_to(
    folder: Path, store: Store, tmp_path: Path
) -> None:
    root, home = tmp_path / "store", tmp_path / "home"
    with serve_hub() as hub:
        commit = hub.add("lab/base", folder)
        first = measure("hf:lab/base", root, home, hub)
        assert first["identity"] == {"hub": "lab/base", "commit": commit}
        assert kinds_in(root) == ["peer", "prompts", "responses", "weights"]
        assert (first["loaded"], len(first["peer_calls"])) == (True, 1)
        hub.requests.clear()
        again = measure(f"hf:lab/base@{commit}", root, home, hub)
        assert not [request for request in hub.requests if "lab/base" in request.path]  # the cache holds that commit
        newer = hub.add("lab/base", zoo.ensure("smoke/stranger-1", store=store))
        other = measure("hf:lab/base", root, home, hub)
    assert (again["loaded"], again["peer_calls"]) == (False, [])
    same = ("identity", "grams", "prompts", "hidden", "head", "content")
    assert [again[name] for name in same] == [first[name] for name in same]
    assert other["identity"] == {"hub": "lab/base", "commit": newer}
    assert first["grams"] != other["grams"]
    assert other["loaded"]


@pytest.mark.nightly
def test_of_a_local_folder_nothing_is_kept_and_its_numbers_are_those_of_the_member_it_is(
    folder: Path, store: Store, tmp_path: Path
) -> None:
    local, member = measure_here(str(folder), tmp_path / "store"), measure_here("zoo:smoke/base", store.root)
    assert local["identity"] is None
    assert kinds_in(tmp_path / "store") == []
    assert member["identity"] == zoo.recipe("smoke/base")
    assert {"peer", "prompts", "responses", "weights"} <= set(kinds_in(store.root))
    numbers = ("grams", "prompts", "hidden", "head", "content")
    assert [local[name] for name in numbers] == [member[name] for name in numbers]


def test_a_member_is_made_when_its_files_are_asked_for_and_knows_its_family(tmp_path: Path) -> None:
    store = Store(tmp_path)
    model = resolve("zoo:smoke/base+noise-5", store=store)
    assert (model.family, model.identity) == ("smoke/base", zoo.recipe("smoke/base+noise-5"))
    assert resolve("zoo:smoke/base+noise-5", store=store, family="declared").family == "declared"
    assert kinds_in(tmp_path) == []
    assert model.sizes().num_layers == zoo.member("smoke/base").shape.num_layers
    assert model.folder == store.path(zoo.recipe("smoke/base+noise-5"))


@pytest.mark.parametrize(("reference", "message"), [
    ("zoo:smoke/bass", "zoo:smoke/bass: no such model in the zoo; did you mean 'smoke/base'"),
    ("nothing/here", "expected a folder with config.json, got nothing there; a repository of the Hub is written hf:nothing/here"),
    ("./empty", "./empty: no config.json; name the folder that `save_pretrained` of transformers wrote"),
    ("./adapter", "adapter/adapter_config.json: an adapter of peft_type None is not merged, only LORA"),
    ("hf:gpt2", "hf:gpt2: not a repository of the Hub; write hf:ORG/NAME"),
    ("zoo/smoke/base", "zoo/smoke/base: expected a folder with config.json, got nothing there"),
])  # fmt: skip
def test_what_is_no_model_is_refused(
    reference: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError) as error:
        resolve(reference, store=Store(tmp_path / "store"))
    assert str(error.value).startswith(message) or message in str(error.value)
    assert kinds_in(tmp_path / "store") == []


def test_a_tokenizer_is_copied_with_all_its_files_and_nothing_else(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in (*TOKENIZER_FILES, "config.json", "model.safetensors"):
        (source / name).write_text(name)
    copy_tokenizer(source, target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {name: name for name in TOKENIZER_FILES}
