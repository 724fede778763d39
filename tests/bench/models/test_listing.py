"""Listings against a stand-in Hub: every page, transient failures, what is kept, and refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from modelassay.errors import AssayError, CheckpointError, HostError, UsageError
from modelassay.models import connection
from modelassay.models.hub_errors import HubUnavailable
from modelassay.models.listing import Member, read_listing, take_listing
from support.hub_server import HubServer, serve_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serve_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # whatever the machine that tests has set
        monkeypatch.setattr(connection, "WAITS_S", (0.0, 0.0))
        server.page_size = 3
        for number in range(8):
            server.listed[f"lab/child-{number}"] = {"tags": ["base_model:lab/base", "base_model:finetune:lab/base"]}
        server.listed["lab/stranger"] = {"tags": ["base_model:lab/other"]}
        yield server


def test_all_pages_are_asked_for_and_strangers_are_not_in_them(hub: HubServer) -> None:
    listing = take_listing("hf:lab/base@0123abc")
    assert [member.name for member in listing.members] == [f"lab/child-{number}" for number in range(8)]
    assert [request.path for request in hub.requests].count("/api/models") == 3
    assert (listing.base, listing.endpoint) == ("lab/base", hub.url)


def test_what_the_hub_says_of_a_member_is_kept_and_what_it_does_not_say_is_not_made_up(
    hub: HubServer, tmp_path: Path
) -> None:
    hub.listed["lab/child-0"] |= {
        "tags": ["base_model:lab/base", "base_model:quantized:lab/base", "base_model:finetune:lab/other"], "downloads": 0,
        "downloadsAllTime": 12, "sha": "a" * 40, "createdAt": "2025-03-01T12:30:00.000Z", "pipeline_tag": "text-generation",
        "library_name": "transformers", "gated": "manual", "disabled": False, "siblings": [{"rfilename": "b"}, {"rfilename": "a"}],
        "config": {"architectures": ["X"], "model_type": "x", "quantization_config": {"quant_method": "gptq"}},
    }  # fmt: skip
    listing = take_listing("hf:lab/base")
    assert listing.members[0] == Member(
        name="lab/child-0", revision="a" * 40, relation="quantized", downloads=0, downloads_all_time=12, gated=True,
        created="2025-03-01T12:30:00Z", task="text-generation", library="transformers", disabled=False, files=("a", "b"),
        architectures=("X",), model_type="x", quantized_by="gptq",
    )  # fmt: skip
    assert listing.members[0].reference == f"hf:lab/child-0@{'a' * 40}"
    assert (listing.members[1].downloads, listing.members[1].relation) == (None, "finetune")
    listing.save(tmp_path / "listing.json")
    assert read_listing(tmp_path / "listing.json") == listing
    moved = replace(listing, members=(replace(listing.members[0], downloads=1), *listing.members[1:]))
    assert moved.digest != listing.digest


def test_first_page_is_asked_for_again_where_that_may_help(hub: HubServer) -> None:
    hub.refusals["api/models"] = [(503, "Busy"), (429, "TooMany")]
    assert len(take_listing("hf:lab/base").members) == 8
    hub.refusals["api/models"] = [(503, "Busy")] * 3
    with pytest.raises(
        HubUnavailable, match="hf:lab/base: the Hub answered 503 for the list of its family; try again later"
    ):
        take_listing("hf:lab/base")
    hub.requests.clear()
    hub.refusals["api/models"] = [(403, "Forbidden")]
    with pytest.raises(CheckpointError, match=r"the Hub refused the list of its family \(403\)"):
        take_listing("hf:lab/base")
    assert [request.path for request in hub.requests].count("/api/models") == 1


def test_offline_is_refused_without_a_request(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        HostError, match="HF_HUB_OFFLINE is set, so its family cannot be listed; unset it, or give listing"
    ):
        take_listing("hf:lab/base")
    assert hub.requests == []


def test_hub_that_is_not_there_is_the_machines_fault(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HostError, match="the list of its family was not fetched") as caught:
        take_listing("hf:lab/base")
    assert not isinstance(caught.value, HubUnavailable)


@pytest.mark.parametrize(("base", "message"), [
    ("zoo:base", "only the Hub knows a family; name the base hf:ORG/NAME, or give listing"),
    ("hf:lab/childless", "the Hub lists no model that names lab/childless as its base"),
])  # fmt: skip
def test_bases_without_a_family(hub: HubServer, base: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        take_listing(base)


@pytest.mark.parametrize(("content", "message"), [
    (None, "cannot be read: No such file or directory; listing names the listing.json"),
    ("{", "not a saved listing"), ("[]", "not a saved listing"), ('{"schema": 2}', "a listing of schema 2, this modelassay reads 1"),
    ('{"schema": 1, "members": [{"name": "x"}]}', "not a saved listing"),
    (json.dumps({"schema": 1, "members": []}), "not a saved listing"),
    (json.dumps({"schema": 1, "base": "a/b", "taken": 3, "endpoint": "", "members": []}), "not a saved listing"),
])  # fmt: skip
def test_files_that_are_no_listing(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "listing.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_listing(path)
    assert message in str(caught.value)
    assert isinstance(caught.value, AssayError)
