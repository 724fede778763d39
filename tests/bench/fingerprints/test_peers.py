"""The peer's adapter: with a stand-in for the peer everywhere, and against its own pair command where it is installed."""

import json
import math
import pickle
import re
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from modelassay.errors import CheckpointError, HostError
from modelassay.fingerprints.peers import PEERS, PeerFingerprint, peer, provenance_kit
from modelassay.fingerprints.peers import modeldna as peers
from modelassay.fingerprints.peers.modeldna import MODELDNA_PARTS, modeldna_fingerprint, modeldna_score
from modelassay.fingerprints.peers.provenance_kit import provenance_kit_fingerprint, provenance_kit_score

with_modeldna = pytest.mark.skipif(find_spec("modeldna") is None, reason="modeldna is not installed; see ci/peers")
with_the_kit = pytest.mark.skipif(find_spec("provenancekit") is None, reason="the kit is not installed; see ci/peers")
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _look_anew() -> Any:
    peers._modeldna.cache_clear()
    yield
    peers._modeldna.cache_clear()


def weights(seed: int, num_layers: int = 4, width: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(num_layers):
        at = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{at}.self_attn.{name}.weight"] = rng.normal(scale=rng.uniform(0.5, 2), size=(width, width))
        tensors[f"{at}.mlp.down_proj.weight"] = rng.normal(size=(width, 2 * width))
        tensors[f"{at}.input_layernorm.weight"] = 1 + 0.1 * rng.normal(size=width)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def write(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    width = tensors["model.layers.0.input_layernorm.weight"].size
    config = {"model_type": "llama", "hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2,
              "num_key_value_heads": 2, "num_hidden_layers": sum("q_proj" in name for name in tensors)}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


# Without the peer.


def print_of(model: str) -> PeerFingerprint:
    return PeerFingerprint(model=model, content={"model_id": model}, num_bytes=1)


def stand_in(features: dict[str, float | None], **result: Any) -> SimpleNamespace:
    """modelDNA's names, comparing any two models to ``features`` and judging them ``result``."""
    evidence = SimpleNamespace(features=lambda: features, notes=result.pop("notes", []))
    judged = SimpleNamespace(verdict=SimpleNamespace(value=result.pop("word")), candidates=[SimpleNamespace(**result)])

    def from_dict(content: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(**content, arch=SimpleNamespace(torch_dtype=""))

    return SimpleNamespace(Fingerprint=SimpleNamespace(from_dict=from_dict), compare_fingerprints=lambda a, b: evidence,
                           judge=lambda pairs, **_: judged)  # fmt: skip


def test_score_is_the_probability_with_the_four_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"sigma_r": 0.9, "vector_cos": 0.8, "pcs_cos": None, "spectra_r": 0.7}
    api = stand_in(features, probability=0.6, ruled_out=None, word="NO_MATCH")
    monkeypatch.setattr(peers, "_modeldna", lambda: api)
    score = modeldna_score(print_of("a"), print_of("b"))
    assert (score.value, score.reason, score.verdict) == (0.6, None, "NO_MATCH")
    assert score.parts == pytest.approx({"F1": 0.9, "F2": 0.8, "F3": math.nan, "F4": 0.7}, nan_ok=True)


def test_a_pair_it_rules_out_has_its_reason_and_keeps_the_signals_it_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"sigma_r": 0.9, "vector_cos": None, "pcs_cos": None, "spectra_r": None}
    api = stand_in(features, probability=None, ruled_out="shapes", notes=["96 against 64"], word="NO_MATCH")
    monkeypatch.setattr(peers, "_modeldna", lambda: api)
    score = modeldna_score(print_of("a"), print_of("b"))
    assert math.isnan(score.value)
    assert score.reason == "shapes; 96 against 64"
    assert (score.parts["F1"], math.isnan(score.parts["F2"])) == (0.9, True)


def test_what_it_raises_becomes_a_reason_but_not_want_of_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(error: Exception) -> None:
        def extract(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(peers, "_modeldna", lambda: SimpleNamespace(extract_fingerprint=extract, LocalSource=Path))

    fail(KeyError(f"no tensor in {tmp_path}"))
    unread = modeldna_fingerprint(tmp_path, name="x")
    assert (unread.content, unread.reason) == (None, "x: KeyError: 'no tensor in x'")
    score = modeldna_score(unread, print_of("b"))
    assert math.isnan(score.value)
    assert score.reason == unread.reason
    assert set(score.parts) == set(MODELDNA_PARTS)
    fail(MemoryError())
    with pytest.raises(HostError, match="x: out of memory"):
        modeldna_fingerprint(tmp_path, name="x")
    fail(ModuleNotFoundError("No module named 'gguf'"))
    with pytest.raises(HostError, match="x: a package it needs is missing .*gguf"):
        modeldna_fingerprint(tmp_path, name="x")


@pytest.mark.parametrize("use", [lambda: modeldna_fingerprint(Path()), lambda: modeldna_score(print_of("a"), print_of("b")),
                                 PEERS["modeldna"].installed_version])  # fmt: skip
def test_without_the_package_it_says_how_to_get_it(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setitem(sys.modules, "modeldna", None)
    with pytest.raises(HostError, match=re.escape("not installed for")) as caught:
        use()
    assert "pip install --no-deps modeldna==0.1.0" in str(caught.value)
    assert caught.value.exit_code == 6


def test_another_version_is_recorded_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = PEERS["modeldna"]
    monkeypatch.setattr(peer, "version", lambda _: "0.1.0")
    assert (tool.installed_version(), tool.caveat()) == ("0.1.0", None)
    monkeypatch.setattr(peer, "version", lambda _: "0.2.0")
    assert tool.installed_version() == "0.2.0"
    assert tool.caveat() == "modeldna 0.2.0 was run; the project's figures are of 0.1.0"
    monkeypatch.setattr(peers, "import_module", lambda _: SimpleNamespace())
    with pytest.raises(HostError, match=r"version 0\.2\.0 cannot be used .*LocalSource"):
        modeldna_score(print_of("a"), print_of("b"))


def test_ci_installs_the_versions_the_figures_are_of() -> None:
    _, _, wanted = (ROOT / "ci/peers").read_text().replace("\\\n", "").partition("--no-deps ")
    assert wanted.split() == [requirement for tool in PEERS.values() for requirement in tool.requirements]


@pytest.mark.parametrize(("name", "score", "called"), [("modeldna", 0.9, True), ("modeldna", 0.89, False), ("modeldna", math.nan, False),
    ("cisco-ai-provenance-kit", 0.65, False), ("cisco-ai-provenance-kit", 0.66, True)])  # fmt: skip
def test_a_peer_calls_pairs_at_its_own_threshold(name: str, score: float, called: bool) -> None:
    assert PEERS[name].calls(score) is called


def kit(tier: int, identity: float) -> SimpleNamespace:
    """The kit's names, matching any two configurations in ``tier`` and their weights by ``identity``."""
    as_is = SimpleNamespace(model_validate=lambda content: content, from_cache_dict=lambda content: content)
    return SimpleNamespace(
        similarity=lambda a, b: SimpleNamespace(tier=tier, score={1: 1.0, 2: 0.9, 3: 0.3}[tier]),
        tfv_similarity=lambda a, b: 0.7, compute_identity_score=lambda *_: identity, MFIFingerprint=as_is, TokenizerFeatures=as_is,
        WeightSignalFeatures=as_is, interpret_score=lambda score: SimpleNamespace(label=f"says {score}"),
        **{f"{signal}_similarity": lambda a, b: 0.1 for signal in provenance_kit.SIGNALS},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tier", "identity", "value", "verdict"),
    [(1, 0.2, 1.0, "Confirmed Match"), (2, 0.2, 0.9, "Confirmed Match"), (3, 0.2, 0.2, "says 0.2"),
     (3, math.nan, 0.3, "says 0.3 (metadata only)")],
)  # fmt: skip
def test_equal_configurations_decide_without_the_weights(
    tier: int, identity: float, value: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance_kit, "_kit", lambda: kit(tier, identity))
    prints = [PeerFingerprint(model=name, content={"mfi": name, "tfv": name, "ws": name}) for name in "ab"]
    score = provenance_kit_score(*prints)
    assert (score.value, score.verdict) == (value, verdict)
    assert score.parts["identity"] == pytest.approx(identity, nan_ok=True)
    assert set(score.parts) == set(PEERS["cisco-ai-provenance-kit"].parts)
    unread = PeerFingerprint(model="c", content=None, reason="c: no tokenizer")
    assert provenance_kit_score(prints[0], unread).reason == "c: no tokenizer"


# With it.


@pytest.fixture
def sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No connection can be opened, and the home is a new folder."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the peer opened a connection")

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("MODELDNA_DB", raising=False)
    return home


@with_modeldna
@pytest.mark.parametrize("mode", ["fast", "full"])
def test_the_same_to_the_last_bit_as_its_own_pair_command(mode: Any, sealed: Path, tmp_path: Path) -> None:
    from modeldna.scan import compare_pair

    parent = weights(0)
    child = {name: tensor + np.float32(0.02) for name, tensor in parent.items()}
    folders = [write(tmp_path / "a", parent), write(tmp_path / "b", child), write(tmp_path / "c", weights(1))]
    prints = [pickle.loads(pickle.dumps(modeldna_fingerprint(folder, mode=mode))) for folder in folders]
    for i, j in ((0, 1), (0, 2)):
        _, _, evidence, verdict = compare_pair(str(folders[i]), str(folders[j]), mode=mode)
        score = modeldna_score(prints[i], prints[j])
        assert (score.value, score.verdict) == (verdict.probability, verdict.verdict.value)
        assert tuple(score.parts.values()) == tuple(evidence.features().values())
        assert modeldna_score(prints[j], prints[i]).value == score.value
    assert modeldna_score(*prints[:2]).value > 0.9 > modeldna_score(prints[0], prints[2]).value
    assert list(sealed.iterdir()) == []


@with_modeldna
def test_signals_are_what_the_table_says_they_are(tmp_path: Path) -> None:
    one, two = weights(0), weights(1)
    a, b = (modeldna_fingerprint(write(tmp_path / name, tensors)) for name, tensors in (("a", one), ("b", two)))
    roles = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")

    def over_layers(tensors: dict[str, np.ndarray], role: str) -> list[np.ndarray]:
        return [tensor.astype(np.float64) for name, tensor in tensors.items() if f".{role}." in name]

    def cosine(role: str) -> float:
        x, y = (np.concatenate([w.ravel() for w in over_layers(tensors, role)]) for tensors in (one, two))
        return float(x @ y / np.sqrt(x @ x * (y @ y)))

    curves = [[[w.std() for w in over_layers(tensors, role)] for tensors in (one, two)] for role in roles]
    expected = {
        "F1": np.mean([np.corrcoef(*pair)[0, 1] for pair in curves]),
        "F2": cosine("input_layernorm"),
        "F3": np.mean([cosine(role) for role in roles]),
        "F4": np.mean([
            np.corrcoef(*(np.log(np.linalg.svd(w, compute_uv=False)) for w in pair))[0, 1]
            for role in roles[:4] for pair in zip(over_layers(one, role), over_layers(two, role), strict=True)
        ]),
    }  # fmt: skip
    assert modeldna_score(a, b).parts == pytest.approx(expected, abs=1e-5)  # its float32 spectra


@with_modeldna
def test_it_refuses_other_depths_and_shapes_and_what_it_cannot_read(tmp_path: Path) -> None:
    base = modeldna_fingerprint(write(tmp_path / "base", weights(0)))
    deeper = modeldna_fingerprint(write(tmp_path / "deeper", weights(0, num_layers=5)))
    wider = modeldna_fingerprint(write(tmp_path / "wider", weights(0, width=16)))
    broken = weights(0)
    broken["model.layers.1.self_attn.q_proj.weight"][0, 0] = np.nan
    hole = modeldna_fingerprint(write(tmp_path / "hole", broken), name="zoo:hole")
    (tmp_path / "empty").mkdir()
    empty = modeldna_fingerprint(tmp_path / "empty")
    scores = {other.model: modeldna_score(base, other) for other in (deeper, wider, hole, empty)}
    assert all(math.isnan(score.value) for score in scores.values())
    assert str(scores["deeper"].reason).startswith("layer count mismatch; layer count differs (4 vs 5)")
    assert str(scores["wider"].reason).startswith("incompatible tensor shapes")
    assert str(scores["zoo:hole"].reason).startswith("zoo:hole: LinAlgError")
    assert scores["empty"].reason == "empty: WeightIndexError: no safetensors or GGUF weights found in empty"
    assert all(math.isnan(value) for value in scores["deeper"].parts.values())
    assert -1 <= scores["wider"].parts["F1"] <= 1
    with pytest.raises(CheckpointError, match="no such folder"):
        modeldna_fingerprint(tmp_path / "org/model")


@with_the_kit
def test_the_same_to_the_last_digit_as_the_kits_own_compare(sealed: Path, tmp_path: Path) -> None:
    """Three models: two of one configuration, which its gate confirms, and a wider one."""
    from provenancekit.core.scanner import ModelProvenanceScanner
    from provenancekit.services.cache import NullCache

    from support.byte_tokenizer import byte_tokenizer
    from support.tiny_models import make_model, save

    folders = []
    for place, width in enumerate((16, 16, 24)):
        folder = tmp_path / f"m{place}"
        model = make_model("qwen2", num_hidden_layers=2, hidden_size=width)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(place)))
        save(model, folder)
        byte_tokenizer().save_pretrained(folder)
        folders.append(folder)
    prints = [pickle.loads(pickle.dumps(provenance_kit_fingerprint(folder))) for folder in folders]
    assert [one.reason for one in prints] == [None] * 3
    scanner = ModelProvenanceScanner(cache=NullCache())
    for i, j in ((0, 1), (0, 2)):
        result = scanner.compare(str(folders[i]), str(folders[j]))
        score = provenance_kit_score(prints[i], prints[j])
        assert (score.value, score.verdict) == (result.scores.pipeline_score, result.scores.provenance_decision)
        expected = {
            name.upper(): math.nan if value is None else value for name, value in result.signals.model_dump().items()
        }
        expected |= {"MFI": result.scores.mfi_score, "identity": result.scores.identity_score}
        assert score.parts == pytest.approx({part: expected[part] for part in score.parts}, nan_ok=True, abs=1e-12)
    assert provenance_kit_score(prints[0], prints[1]).value == 1.0
    assert not (sealed / ".provenancekit").exists()
