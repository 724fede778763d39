"""Files of the Hub fetched in parts: what is asked for, what survives, and what is never read."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from modelassay.errors import AssayError, CheckpointError, HostError
from modelassay.models import parts
from modelassay.models.checkpoints.safetensors import read_elements, read_header
from modelassay.models.hub import HubFiles
from modelassay.models.parts import PartialFile, ensure, partial_file, prepare
from modelassay.models.ranges import Ranges, plan
from support.hub_server import HubServer, VirtualFile
from support.near_hub import TOKEN, near_hub

SIZE = 3_000_000


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A stand-in Hub that this process takes for the Hub, whose large files come from a second host."""
    with near_hub(tmp_path, monkeypatch) as hub:
        yield hub


@pytest.fixture
def repository(hub: HubServer, tmp_path: Path) -> str:
    """A repository of one file of weights: 200 tensors of random bytes; its commit."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"t{at:03d}": torch.randint(0, 256, (SIZE // 200,), dtype=torch.uint8, generator=generator) for at in range(200)
    }
    save_file(tensors, folder / "model.safetensors")
    commit = hub.add("lab/bytes", folder)
    assert hub.contents is not None
    hub.contents.add("lab/bytes", folder)
    return commit


def opened(commit: str) -> PartialFile:
    path = HubFiles(f"hf:lab/bytes@{commit}", "lab/bytes", commit).open_weights("model.safetensors", required=True)
    part = partial_file(path or "")
    assert part is not None
    return part


def served(tmp_path: Path) -> bytes:
    return (tmp_path / "served" / "model.safetensors").read_bytes()


def held(part: PartialFile) -> bytes:
    return part.path.read_bytes()


def test_requests_are_the_fewest_that_ask_for_no_byte_twice() -> None:
    random_ = random.Random(0)
    for _ in range(300):
        ranges = [sorted(random_.sample(range(5000), 2)) for _ in range(random_.randint(0, 8))]
        present = Ranges(tuple(sorted(random_.sample(range(5000), 2))) for _ in range(random_.randint(0, 8)))  # type: ignore[misc]
        pieces = plan([(a, b) for a, b in ranges], present, longest=700)
        wanted = {at for a, b in ranges for at in range(a, b)} - {at for a, b in present for at in range(a, b)}
        asked = [at for a, b in pieces for at in range(a, b)]
        assert len(asked) == len(set(asked))
        assert wanted <= set(asked)
        assert len(asked) <= 1.01 * len(wanted)
        assert not set(asked) & {at for a, b in present for at in range(a, b)}
        assert all(0 < b - a <= 700 for a, b in pieces)
        assert present.num_bytes == len({at for a, b in present for at in range(a, b)})


def test_what_is_read_is_fetched_and_little_else(hub: HubServer, repository: str, tmp_path: Path) -> None:
    part, contents = opened(repository), hub.contents
    assert contents is not None
    header = read_header(part.path)
    end = min(info.offset for info in header.values())
    assert contents.num_bytes_sent in range(end, end + parts.FIRST_BYTES)
    contents.clear()
    whole = served(tmp_path)
    names = random.Random(1).sample(sorted(header), 60)
    prepare({str(part.path): [(header[n].offset, header[n].offset + header[n].size_bytes) for n in names]})
    wanted = sum(header[name].size_bytes for name in names)
    assert 0.98 * wanted <= contents.num_bytes_sent <= 1.02 * wanted
    contents.clear()
    for name in names:
        info = header[name]
        assert whole[info.offset : info.offset + info.size_bytes] == held(part)[info.offset :][: info.size_bytes]
    assert contents.requests == []
    unprepared = next(name for name in sorted(header) if name not in names)
    info = header[unprepared]
    ensure(part.path, info.offset, info.size_bytes)
    assert held(part)[info.offset :][: info.size_bytes] == whole[info.offset :][: info.size_bytes]
    assert [request.range for request in contents.requests] == [(info.offset, info.offset + info.size_bytes)]


def test_nothing_reads_a_hole(hub: HubServer, tmp_path: Path) -> None:
    """`read_elements` fetches what it reads, so that no number is ever a hole's zero."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"a": torch.arange(1, 60_001, dtype=torch.float32)}, folder / "model.safetensors")
    commit = hub.add("lab/bytes", folder)
    assert hub.contents is not None
    hub.contents.add("lab/bytes", folder)
    part = opened(commit)
    info = read_header(part.path)["a"]
    assert part.missing([(info.offset, info.offset + info.size_bytes)])
    assert torch.equal(
        read_elements(part.path, "F32", info.offset + 4 * 40_000, 1000),
        torch.arange(40_001, 41_001, dtype=torch.float32),
    )


_RAW = re.compile(r"\bfromfile\(|\blayer_std_file\(|\bmemmap\(|\bmmap\.|\bsafe_open\(|\bpread\(")
_SAYS_SO = re.compile(r"from modelassay\.models\.(parts|checkpoints\.prepare) import")


def test_whoever_reads_weights_in_place_says_so_before() -> None:
    """A module that opens weights by itself and neither ensures nor prepares what it reads would read holes as zeros."""
    house = Path(parts.__file__).parents[1]
    readers = {
        path.relative_to(house).as_posix(): bool(_SAYS_SO.search(text))
        for room in ("models", "fingerprints")
        for path in (house / room).rglob("*.py")
        if _RAW.search(text := path.read_text())
        and path.relative_to(house).as_posix() not in {"models/parts.py", "fingerprints/drift/snapshot.py"}
    }  # the first is what fetches; the second reads what it wrote itself
    assert {"fingerprints/identical.py", "fingerprints/measure.py", "fingerprints/rederived/compare.py"} <= set(readers)
    assert [path for path, says_so in readers.items() if not says_so] == []


def test_a_folder_of_the_user_is_never_fetched_into(hub: HubServer, repository: str, tmp_path: Path) -> None:
    """Whoever sends somebody a folder could put the notes of a file in parts beside its weights."""
    part = opened(repository)
    folder = tmp_path / "planted"
    folder.mkdir()
    for path in part.path.parent.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    hub.clear()
    ensure(folder / part.path.name, 0, SIZE)
    assert partial_file(folder / part.path.name) is None
    assert hub.requests == []


@pytest.mark.parametrize("ending", [".origin.json", ".parts", ".use", ".lock"])
def test_a_repository_cannot_write_the_notes_of_its_files(
    hub: HubServer, repository: str, tmp_path: Path, ending: str
) -> None:
    name = f"model.safetensors{ending}"
    (tmp_path / "served" / name).write_bytes(b"0 3000000 00000000")
    files = HubFiles(f"hf:lab/bytes@{repository}", "lab/bytes", repository)
    path = files.open_weights(name, required=True)
    assert path is not None
    assert not path.is_relative_to(parts.cache_root() / "hub")


def cut_five(hub: HubServer) -> None:
    hub.broken[:] = [0, 1, 1000, 0, 300_000]


def be_busy(hub: HubServer) -> None:
    hub.busy[:] = [(429, "1"), (503, "")]


def be_slow(hub: HubServer) -> None:
    hub.pauses_s = 0.02


def expire(hub: HubServer) -> None:
    hub.expires[:] = [403, 404]


@pytest.mark.parametrize("fault", [cut_five, be_busy, be_slow, expire])
def test_what_goes_wrong_in_between_is_survived(
    hub: HubServer, repository: str, tmp_path: Path, fault: Callable[[HubServer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "REQUEST_BYTES", 500_000)
    part = opened(repository)
    assert hub.contents is not None
    fault(hub.contents)
    began = time.monotonic()
    ensure(part.path, 0, SIZE * 2)
    assert held(part) == served(tmp_path)
    assert time.monotonic() - began >= (1 if fault is be_busy else 0)  # as the server asked
    assert list(part.present) == [(0, len(served(tmp_path)))]


def test_a_transfer_that_never_gets_on_is_told_in_one_line(hub: HubServer, repository: str) -> None:
    part = opened(repository)
    assert hub.contents is not None
    hub.contents.broken[:] = [0] * 500
    with pytest.raises(HostError, match=r"model.safetensors.*(breaks|not fetched)") as caught:
        ensure(part.path, 0, SIZE)
    assert "\n" not in str(caught.value)
    hub.contents.broken.clear()
    ensure(part.path, 0, SIZE)


@pytest.mark.parametrize(("pause", "message"), [("0", "try again later"), ("77", "try again in 77 s")])
def test_a_server_that_stays_busy_is_told_in_one_line(
    hub: HubServer, repository: str, pause: str, message: str
) -> None:
    part = opened(repository)
    assert hub.contents is not None
    hub.contents.busy[:] = [(429, pause)] * 50
    with pytest.raises(HostError, match=rf"^hf:lab/bytes@\w+: the Hub answered 429 for model.safetensors; {message}$"):
        ensure(part.path, 0, SIZE)
    assert len(hub.contents.busy) >= (47 if pause == "0" else 49)


def test_a_server_that_falls_silent_is_given_up_in_time(
    hub: HubServer, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = opened(repository)
    assert hub.contents is not None
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.contents.pauses_s = 0.6  # the first piece comes, the next one does not
    ensure(part.path, 10_000, 50_000)
    began = time.monotonic()
    hub.contents.silent_s = 0.6
    with pytest.raises(HostError, match=r"model.safetensors.*localhost does not answer within 0.1 s") as caught:
        ensure(part.path, 500_000, 1000)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 3


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(40))
def test_whatever_goes_wrong_the_bytes_are_those_of_the_file(
    hub: HubServer, repository: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults, ranges and sizes of pieces at random, several times over, with processes that forget in between."""
    draw, contents, whole = random.Random(seed), hub.contents, served(tmp_path)
    assert contents is not None
    monkeypatch.setattr(parts, "REQUEST_BYTES", draw.choice([50_000, 400_000, 10**8]))
    monkeypatch.setattr(parts, "PIECE_BYTES", draw.choice([1, 30_000, 10**8]))
    for _ in range(6):
        parts._opened.clear()
        part = opened(repository)
        ranges = [tuple(sorted(draw.choices(range(len(whole) + 1), k=2))) for _ in range(draw.randint(1, 30))]
        contents.broken[:] = [draw.choice([0, 1, 5000, 70_000, 10**7]) for _ in range(draw.randint(0, 12))]
        contents.busy[:] = [(draw.choice([429, 503]), "0")] * draw.randint(0, 2)
        contents.expires[:] = [draw.choice([403, 404, 410])] * draw.randint(0, 1)
        before = Ranges(part.present)
        with contextlib.suppress(HostError):
            prepare({str(part.path): ranges})  # type: ignore[dict-item]
            assert all(not part.missing([piece]) for piece in ranges)  # type: ignore[list-item]
        parts._opened.clear()
        again = opened(repository)
        assert all(not again.missing([piece]) for piece in before)
        data = held(again)
        assert all(data[begin:end] == whole[begin:end] for begin, end in again.present)


def test_a_file_that_is_replaced_meanwhile_is_refused(hub: HubServer, repository: str, tmp_path: Path) -> None:
    part = opened(repository)
    path = tmp_path / "served" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(HostError, match="was replaced while it came"):
        ensure(part.path, 1_000_000, 1000)
    path.write_bytes(bytes(data) + b"x")
    with pytest.raises(HostError, match=r"bytes now, [\d,]+ before"):
        ensure(part.path, 1_000_000, 1000)
    assert not part.missing([(0, 8)])
    assert part.missing([(1_000_000, 1_001_000)]) == [(1_000_000, 1_001_000)]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_token_goes_to_the_hub_alone(
    hub: HubServer, repository: str, host: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert hub.contents is not None
    hub.contents.url = hub.contents.url.replace("localhost", host)
    part = opened(repository)
    ensure(part.path, 0, SIZE)
    assert {request.token for request in hub.requests if "/resolve/" in request.path} == {f"Bearer {TOKEN}"}
    assert {request.token for request in hub.contents.requests} == {""}
    assert len([request for request in hub.requests if request.path.endswith(".safetensors")]) == 1
    assert "hf_secret" not in "".join(capfd.readouterr())
    cached = [path for path in parts.cache_root().rglob("*") if path.is_file()]
    assert not any(b"hf_secret" in path.read_bytes() for path in cached)


def test_nothing_is_asked_for_offline(hub: HubServer, repository: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = opened(repository)
    ensure(part.path, 500_000, 1000)
    hub.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ensure(part.path, 500_100, 100)
    with pytest.raises(CheckpointError, match=r"hf:lab/bytes@\w+: 100 bytes of model.safetensors are not in the cache"):
        ensure(part.path, 900_000, 100)
    assert hub.requests == []


def test_a_journal_claims_what_is_there_and_no_more(hub: HubServer, repository: str, tmp_path: Path) -> None:
    part = opened(repository)
    ensure(part.path, 1_000_000, 1000)
    ensure(part.path, 2_000_000, 1000)
    journal = part.path.with_name(part.path.name + ".parts")
    text = journal.read_bytes()
    for damaged in (text[:-3], text.replace(b"2001000", b"2901000"), text + b"5 99 00000000\n\xff\x00", text + b"7 "):
        journal.write_bytes(damaged)
        parts._opened.clear()
        again = opened(repository)
        whole = served(tmp_path)
        assert all(held(again)[begin:end] == whole[begin:end] for begin, end in again.present)
        ensure(again.path, 2_000_000, 1000)
        parts._opened.clear()
        assert not opened(repository).missing([(1_000_000, 1_001_000), (2_000_000, 2_001_000)])
    os.truncate(part.path, 2_000_500)  # as a full disk or a copy may leave it
    parts._opened.clear()
    again = opened(repository)
    ensure(again.path, 1_000_000, 1000)
    assert held(again)[1_000_000:1_001_000] == served(tmp_path)[1_000_000:1_001_000]


def test_what_was_taken_away_is_fetched_again(hub: HubServer, repository: str, tmp_path: Path) -> None:
    files = HubFiles(f"hf:lab/bytes@{repository}", "lab/bytes", repository)
    path = files.open_weights("model.safetensors")
    assert path is not None
    ensure(path, 0, SIZE)
    blocks = path.stat().st_blocks
    files.release()
    assert path.stat().st_size == len(served(tmp_path))
    assert path.stat().st_blocks < blocks / 10
    header = read_header(path)
    part = partial_file(path)
    assert part is not None
    assert part.present.num_bytes == min(info.offset for info in header.values())
    ensure(path, 5000, 100_000)
    assert held(part)[5000:105_000] == served(tmp_path)[5000:105_000]


def test_nobody_takes_away_what_another_process_reads(hub: HubServer, repository: str) -> None:
    part = opened(repository)
    ensure(part.path, 0, SIZE)
    code = f"""
import sys
from modelassay.models.parts import ensure, partial_file
ensure({str(part.path)!r}, 0, 100)
print("reads", flush=True)
sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reads\n"
        assert not part.release((0, 8))
        assert not part.missing([(0, SIZE)])
        reader.communicate("\n")
    assert part.release((0, 8))
    assert part.present.num_bytes == 8


_FETCH = """
import sys
from huggingface_hub import constants
from modelassay.models import parts
parts.PIECE_BYTES = 100_000
print("begins", flush=True)
parts.ensure(sys.argv[1], 0, 2**40)
"""


def test_nothing_is_fetched_twice_after_a_kill(hub: HubServer, repository: str, tmp_path: Path) -> None:
    part, contents = opened(repository), hub.contents
    assert contents is not None
    contents.pauses_s = 0.05
    journal = part.path.with_name(part.path.name + ".parts")
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
    with subprocess.Popen([sys.executable, "-c", _FETCH, str(part.path)], env=env, stdout=subprocess.PIPE) as process:
        while journal.read_bytes().count(b"\n") < 8:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    parts._opened.clear()
    again = opened(repository)
    kept = Ranges(again.present)
    whole = served(tmp_path)
    assert 700_000 <= kept.num_bytes < len(whole)
    assert all(held(again)[begin:end] == whole[begin:end] for begin, end in kept)
    time.sleep(0.3)
    contents.clear()
    contents.pauses_s = 0
    ensure(again.path, 0, SIZE * 2)
    assert held(again) == whole
    asked = [request.range for request in contents.requests if request.range is not None]
    assert sum(end - begin for begin, end in asked) == len(whole) - kept.num_bytes
    assert all(kept.missing(*span) == [span] for span in asked)


def test_two_processes_share_what_comes(hub: HubServer, repository: str, tmp_path: Path) -> None:
    part, contents = opened(repository), hub.contents
    assert contents is not None
    contents.clear()
    contents.pauses_s = 0.01
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
    with subprocess.Popen([sys.executable, "-c", _FETCH, str(part.path)], env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        ensure(part.path, 0, SIZE * 2)
        assert process.wait() == 0
    assert held(part) == served(tmp_path)
    assert contents.num_bytes_sent <= len(served(tmp_path))


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((403, "GatedRepo"), "the repository is gated; accept its terms on its page, then `hf auth login` or set HF_TOKEN"),
        ((401, "RepoNotFound"), "no such repository, or a private one; check the spelling, or `hf auth login` if it is yours"),
        ((404, "RevisionNotFound"), "the repository has no such commit, tag or branch; check what follows the @"),
        ((403, ""), "the Hub refused model.safetensors (403); the token of HF_TOKEN was sent and may be expired; `hf auth login` with"
                    " an account that may read it"),
        ((501, ""), "the Hub answered 501 for model.safetensors; try again later"),
    ],
)  # fmt: skip
def test_weights_that_are_refused_are_told_in_one_line(
    hub: HubServer, repository: str, failure: tuple[int, str], message: str
) -> None:
    if failure[0] != 404:
        hub.failures["model.safetensors"] = failure
        with pytest.raises(AssayError) as caught:
            opened(repository)
        assert str(caught.value).removeprefix(f"hf:lab/bytes@{repository}: ") == message
        return
    files = HubFiles(f"hf:lab/bytes@{repository}", "lab/bytes", repository)
    hub.revisions.clear()
    hub.add("lab/bytes", Path("/nowhere"))
    with pytest.raises(CheckpointError, match="has no such commit"):
        files.open_weights("model.safetensors", required=True)


def test_a_renamed_repository_is_said(hub: HubServer, repository: str, capfd: pytest.CaptureFixture[str]) -> None:
    hub.renamed["old/bytes"] = "lab/bytes"
    assert hub.contents is not None
    files = HubFiles("hf:old/bytes", "old/bytes", None)
    assert files.open_weights("model.safetensors") is not None
    assert capfd.readouterr().err == "note: hf:old/bytes: the Hub has renamed the repository to lab/bytes\n"


def test_a_hostile_header_length_is_no_request_for_it(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    hub.contents = None
    commit = hub.add("lab/bytes", folder)
    for length in (2**62, 2**33, 51_000_000):
        hub.virtual["lab/bytes", "model.safetensors"] = VirtualFile(
            2**34, lambda a, b, n=length: (n.to_bytes(8, "little") + bytes(b))[a:b] if b < 10**6 else bytes(b - a)
        )  # type: ignore[misc]
        hub.clear()
        with pytest.raises(AssayError, match="the header claims"):
            read_header(opened(commit).path)
        assert hub.num_bytes_sent < 20_000
        parts._opened.clear()
        for path in (parts.cache_root() / "hub").rglob("model*"):
            path.unlink()
