"""Hub-like servers: mirrors that explain nothing, servers that are not there, busy, or break off, and pages in between."""

from __future__ import annotations

import gzip
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from modelassay.errors import UsageError
from modelassay.models.token import require_plain_token
from support.hub_server import HubServer
from support.hub_user import User, attention_shards, expected, forker, hub, sharded, user
from support.tiny_models import make_model, save
from support.toy_suite import environ, modelassay

__all__ = ["forker", "hub", "sharded", "user"]

SOON_S = 3.0


@pytest.fixture
def mirror(hub: HubServer) -> HubServer:
    """A server of files: statuses without a word, and nothing for programs."""
    hub.explains = hub.describes = False
    return hub


# What is not there


def test_sharded_repository_opens_behind_a_mirror_that_explains_nothing(
    mirror: HubServer, user: User, sharded: Path
) -> None:
    commit = mirror.add("lab/llama", sharded)
    answer = user.opens(f"hf:lab/llama@{commit}")
    assert answer["sums"] == expected(sharded)
    assert answer["tokenizer"] is not None
    assert attention_shards(sharded) < mirror.files_sent()
    mirror.requests.clear()
    assert user.opens(f"hf:lab/llama@{commit}") == answer
    assert mirror.files_sent() == set()


def test_single_file_opens_behind_a_mirror_that_explains_nothing(mirror: HubServer, user: User, tmp_path: Path) -> None:
    folder = save(make_model("gpt2"), tmp_path / "gpt2")
    mirror.add("lab/gpt2", folder)
    answer = user.opens("hf:lab/gpt2")
    assert answer["sums"] == expected(folder)
    assert answer["tokenizer"] is None


@pytest.mark.parametrize("describes", [False, True])
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hf:lab/nothing", "no such repository, or nothing that a model needs in it"),
        ("hf:lab/llama@v9", "the repository has no such commit, tag or branch; check what follows the @"),
        ("hf:lab/bare", "the repository has no config.json; name one that holds a transformers model"),
    ],
)
def test_what_is_missing_is_told_apart_without_explanations(
    mirror: HubServer, user: User, sharded: Path, tmp_path: Path, reference: str, message: str, describes: bool
) -> None:
    mirror.describes = describes
    mirror.add("lab/llama", sharded)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "README.md").write_text("x")
    mirror.add("lab/bare", tmp_path / "bare")
    answer = user.opens(reference)
    assert answer["error"] == "CheckpointError"
    assert message in answer["message"]


def test_repository_that_a_mirror_lacks_is_not_a_lack_of_files(mirror: HubServer, user: User, sharded: Path) -> None:
    """Its config.json is in the cache; that the mirror has nothing else must not read as a model without weights."""
    commit = mirror.add("lab/llama", sharded)
    first = user.opens(f"hf:lab/llama@{commit}")
    for file in Path(first["folder"]).glob("model*"):
        file.unlink()
    mirror.revisions.clear()
    answer = user.opens(f"hf:lab/llama@{commit}")
    assert answer["error"] == "CheckpointError"
    assert f"does not serve the commit {commit}, of which config.json is in the cache" in answer["message"]


def test_listing_that_a_mirror_lacks(mirror: HubServer, user: User, tmp_path: Path) -> None:
    folder = save(make_model("gpt2"), tmp_path / "gpt2")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    mirror.add("lab/gpt2", folder)
    answer = user.opens("hf:lab/gpt2")
    assert answer["error"] == "CheckpointError"
    assert (
        "does not have its list of files (404); check the spelling, and whether HF_ENDPOINT is a Hub"
        in answer["message"]
    )


# What is not reached


def soon(user: User, reference: str = "hf:lab/llama", **environment: str) -> dict[str, Any]:
    """Open ``reference`` and return the answer, which must come in time and without other words."""
    opening = user.watch(reference, **environment)
    assert opening.seconds < SOON_S
    assert opening.stderr == ""
    return opening.answer


@contextmanager
def mute_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "127.0.0.1: connection refused"),
        ({"HF_ENDPOINT": "https://127.0.0.1:9"}, "127.0.0.1: connection refused"),
        ({"HF_ENDPOINT": "https://hub.invalid"}, "hub.invalid: "),
        ({"HF_ENDPOINT": "https://hub.example", "NAMES_HANG": "1"}, "hub.example cannot be found or takes no connection within 2 s"),
        ({"HF_ENDPOINT": "http://hub.example", "HTTP_PROXY": "http://127.0.0.1:9"}, "the proxy 127.0.0.1:9: connection refused); check HTTP_PROXY"),
        ({"HF_ENDPOINT": "https://hub.example", "HTTPS_PROXY": "http://me:secret@127.0.0.1:9"}, "the proxy 127.0.0.1:9: connection refused"),
        ({"HF_ENDPOINT": "http://hub.example", "HTTP_PROXY": "MUTE"}, "does not answer within 2 s); check HTTP_PROXY"),
        ({"HF_ENDPOINT": "https://hub.example", "HTTPS_PROXY": "MUTE"}, "cannot be found or takes no connection within 2 s"),
        ({"HTTPS_PROXY": "ftp://me:secret@x", "HF_ENDPOINT": "https://hub.example"}, "HTTPS_PROXY is no proxy's address"),
        ({"SSL_CERT_FILE": "/nowhere.pem", "HF_ENDPOINT": "https://hub.example"}, "SSL_CERT_FILE"),
    ],
)  # fmt: skip
def test_hub_that_is_not_there_is_told_soon_in_one_line(
    user: User, capfd: pytest.CaptureFixture[str], environment: dict[str, str], message: str
) -> None:
    with mute_server() as mute:
        answer = soon(user, **{name: mute if value == "MUTE" else value for name, value in environment.items()})
    assert answer["error"] == "HostError"
    assert message in answer["message"]
    assert "secret" not in answer["message"]
    assert "; " in answer["message"]
    assert len(answer["message"].splitlines()) == 1


@pytest.mark.parametrize(
    "address", ["hub.example", "http://[::1", "https://hub.example:port", "https://hub example", "ftp://x"]
)
def test_endpoint_that_is_no_address_is_refused(user: User, address: str) -> None:
    answer = soon(user, HF_ENDPOINT=address)
    assert answer["error"] == "UsageError"
    assert answer["message"] == f"HF_ENDPOINT: {address} is no address; write it as https://HOST"


def test_command_without_a_network_ends_before_it_imports_much(tmp_path: Path) -> None:
    """One line; torch alone takes seconds to import."""
    env = environ(
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HOME=str(tmp_path),
        NO_PROXY="127.0.0.1",
        HF_HUB_OFFLINE="0",
        PYTHONPROFILEIMPORTTIME="1",
    )
    code, out, err = modelassay("fingerprint", "hf:lab/a", "hf:lab/b", env=env)
    lines = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert (code, out) == (6, "")
    assert lines == ["error: hf:lab/a: config.json is not in the cache and the Hub cannot be reached (127.0.0.1: connection"
                     " refused); check the network, or set HF_ENDPOINT to a mirror"]  # fmt: skip
    assert "| torch" not in err


def test_what_is_cached_works_without_a_network(hub: HubServer, user: User, sharded: Path) -> None:
    commit = hub.add("lab/llama", sharded)
    first = user.opens("hf:lab/llama")
    for reference in ("hf:lab/llama", f"hf:lab/llama@{commit}"):
        answer = soon(user, reference, HF_ENDPOINT="http://127.0.0.1:9")
        assert answer == first


def test_file_that_may_be_absent_is_not_taken_for_absent_without_a_network(
    hub: HubServer, user: User, sharded: Path
) -> None:
    commit = hub.add("lab/llama", sharded)
    first = user.opens(f"hf:lab/llama@{commit}")
    (Path(first["folder"]) / "vocab.json").unlink()
    answer = soon(user, f"hf:lab/llama@{commit}", HF_ENDPOINT="http://127.0.0.1:9")
    assert answer["error"] == "HostError"
    assert (
        "vocab.json is not in the cache and the Hub cannot be reached (127.0.0.1: connection refused)"
        in answer["message"]
    )


# What is refused, busy, or no Hub


@pytest.mark.parametrize(
    ("status", "headers", "kind", "message"),
    [
        (401, {}, "CheckpointError", "the Hub refused config.json (401); `hf auth login` with an account that may read it"),
        (403, {}, "CheckpointError", "the Hub refused config.json (403)"),
        (407, {}, "HostError", "the proxy asks for a login (407)"),
        (429, {"Retry-After": "3600"}, "HubUnavailable", "the Hub answered 429 for config.json; try again in 3600 s, or log in"),
        (429, {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}, "HubUnavailable", "429 for config.json; try again in "),
        (429, {"RateLimit": '"api";r=0;t=55'}, "HubUnavailable", "try again in 55 s"),
        (503, {"Retry-After": "120"}, "HubUnavailable", "the Hub answered 503 for config.json; try again in 120 s"),
        (418, {}, "HubUnavailable", "the Hub answered 418 for config.json; try again later"),
    ],
)  # fmt: skip
def test_refusals_without_an_explanation(
    mirror: HubServer, user: User, sharded: Path, status: int, headers: dict[str, str], kind: str, message: str
) -> None:
    mirror.add("lab/llama", sharded)
    mirror.failures["config.json"] = (status, "")
    mirror.headers[str(status)] = headers
    answer = soon(user)
    assert answer["error"] == kind
    assert message in answer["message"]
    assert len(answer["message"].splitlines()) == 1


def test_server_that_is_busy_for_a_moment_is_asked_again(hub: HubServer, user: User, sharded: Path) -> None:
    hub.add("lab/llama", sharded)
    hub.refusals["lab/llama"] = [(503, ""), (429, "")]
    answer = user.opens("hf:lab/llama")
    assert answer["sums"] == expected(sharded)


def test_server_that_stays_busy_is_told_in_one_line(hub: HubServer, user: User, sharded: Path) -> None:
    hub.add("lab/llama", sharded)
    hub.failures["config.json"] = (502, "")
    answer, stderr, seconds = user.watch("hf:lab/llama")
    assert (stderr, seconds < 15) == ("", True)
    assert answer["error"] == "HubUnavailable"
    assert answer["message"] == "hf:lab/llama: the Hub answered 502 for config.json; try again later"


def test_page_in_between_is_no_hub(hub: HubServer, user: User, sharded: Path) -> None:
    hub.add("lab/llama", sharded)
    hub.pages = True
    answer = soon(user)
    assert answer["error"] == "HostError"
    assert (
        "answers for config.json, but not as a Hub does; a login page or a proxy may stand in between"
        in answer["message"]
    )


def test_page_in_between_does_not_hide_what_is_cached(hub: HubServer, user: User, sharded: Path) -> None:
    hub.add("lab/llama", sharded)
    first = user.opens("hf:lab/llama")
    hub.pages = True
    assert user.opens("hf:lab/llama") == first


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_transfer_that_breaks_off_each_time_ends(
    hub: HubServer, user: User, sharded: Path, ignores_ranges: bool
) -> None:
    hub.add("lab/llama", sharded)
    shard = min(attention_shards(sharded))
    hub.cuts[shard] = [0 if not ignores_ranges else 500] * 50
    hub.ignores_ranges = ignores_ranges
    answer, stderr, seconds = user.watch("hf:lab/llama")
    assert (stderr, seconds < 20) == ("", True)
    assert answer["error"] == "HubUnavailable"
    assert shard in answer["message"]
    assert "breaks the transfer off at the same place each time" in answer["message"]
    hub.cuts.clear()
    assert user.opens("hf:lab/llama")["sums"] == expected(sharded)


def test_transfer_that_breaks_off_goes_on(hub: HubServer, user: User, sharded: Path) -> None:
    hub.add("lab/llama", sharded)
    shard = min(attention_shards(sharded))
    hub.cuts[shard] = [10, 200, 300]
    answer = user.opens("hf:lab/llama")
    assert answer.get("sums") == expected(sharded), answer


def test_file_of_another_length_than_announced(hub: HubServer, user: User, sharded: Path) -> None:
    hub.add("lab/llama", sharded)
    size = (sharded / "config.json").stat().st_size
    hub.headers["config.json"] = {"X-Linked-Size": str(size + 7)}
    answer = user.opens("hf:lab/llama")
    assert answer["error"] == "HubUnavailable"
    assert (
        f"config.json came damaged or not whole (file should be of size {size + 7} but has size {size})"
        in answer["message"]
    )
    hub.headers.clear()
    assert user.opens("hf:lab/llama")["sums"] == expected(sharded)


def test_damaged_compression_is_told(hub: HubServer, user: User, sharded: Path) -> None:
    hub.add("lab/llama", sharded)
    hub.headers["config.json"] = {"Content-Encoding": "gzip"}
    answer = user.opens("hf:lab/llama")
    assert answer["error"] == "HubUnavailable"
    assert "config.json came damaged or not whole" in answer["message"]


def test_compressed_file_is_what_it_was(hub: HubServer, user: User, sharded: Path, tmp_path: Path) -> None:
    """A server that compresses whatever it is asked, and announces the compressed length."""
    folder = tmp_path / "packed"
    folder.mkdir()
    for file in sharded.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_bytes(gzip.compress((sharded / "config.json").read_bytes()))
    hub.add("lab/llama", folder)
    hub.headers["config.json"] = {"Content-Encoding": "gzip"}
    answer = user.opens("hf:lab/llama")
    assert answer.get("sums") == expected(sharded) or "came damaged or not whole" in answer["message"]


@pytest.mark.parametrize("place", ["/lab/llama/resolve/main/config.json", "http://127.0.0.1:9/elsewhere"])
def test_redirects_that_lead_nowhere(hub: HubServer, user: User, sharded: Path, place: str) -> None:
    hub.add("lab/llama", sharded)
    hub.failures["config.json"] = (302, "")
    hub.headers["302"] = {"Location": place}
    answer = soon(user)
    assert answer["error"] == "HostError"
    assert len(answer["message"].splitlines()) == 1


def test_slow_server_is_waited_for(hub: HubServer, user: User, sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the connection must come soon: a mirror that fetches a file itself first takes its time."""
    commit = hub.add("lab/llama", sharded)
    with socket.create_server(("127.0.0.1", 0)) as front:
        threading.Thread(target=_pass_on_late, args=(front, hub.url, 3.5), daemon=True).start()
        answer = user.opens(f"hf:lab/llama@{commit}", HF_ENDPOINT=f"http://127.0.0.1:{front.getsockname()[1]}")
    assert answer["sums"] == expected(sharded)


def _pass_on_late(front: socket.socket, url: str, wait_s: float) -> None:
    """Answer the first request ``wait_s`` late with a redirect to ``url`` and all others at once."""
    while True:
        try:
            client, _ = front.accept()
        except OSError:
            return
        path = client.recv(65536).split(b" ")[1].decode()
        time.sleep(wait_s)
        wait_s = 0.0
        client.sendall(
            f"HTTP/1.1 307 Moved\r\nLocation: {url}{path}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        client.close()


# Tokens


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("hf_abc\u2026xyz", "horizontal ellipsis (U+2026)"),
        ("hf_abc def", "a space"),
        ("hf_abc\ndef", "a line break"),
        ("\ufeffhf_abc", "zero width no-break space (U+FEFF)"),
        ('"hf_abc"', "quotation mark"),
        ("hf_\x1babc", "a control character (U+001B)"),
        ("hf_\udcffabc", "bytes that are no UTF-8"),
    ],
)
@pytest.mark.parametrize("place", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "file"])
def test_token_that_no_header_can_carry_is_refused_by_its_place(
    user: User, hub: HubServer, sharded: Path, tmp_path: Path, token: str, says: str, place: str
) -> None:
    hub.add("lab/llama", sharded)
    file = tmp_path / "token"
    environment = {"HF_TOKEN_PATH": str(file)} if place == "file" else {place: token}
    if place == "file":
        file.write_bytes(os.fsencode(token))
    answer = user.opens("hf:lab/llama", **environment)
    assert answer["error"] == "UsageError"
    assert answer["message"].startswith(f"{file if place == 'file' else place}: not a token of the Hub: it holds ")
    assert says in answer["message"]
    assert "abc" not in answer["message"]
    assert hub.requests == []


def test_token_with_a_line_end_is_a_token(user: User, hub: HubServer, sharded: Path) -> None:
    hub.add("lab/llama", sharded)
    assert user.opens("hf:lab/llama", HF_TOKEN="hf_abcdef\r\n")["sums"] == expected(sharded)


def test_token_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"the Hub's token cannot be read \(is a directory\)"):
        require_plain_token()
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    require_plain_token()


def test_expired_token_is_named(user: User, hub: HubServer, sharded: Path) -> None:
    hub.add("lab/llama", sharded)
    hub.failures["config.json"] = (401, "")
    answer = user.opens("hf:lab/llama", HF_TOKEN="hf_abcdef")
    assert "the token of HF_TOKEN was sent and may be expired" in answer["message"]
