"""Where attempts ran: recorded in each log, said when a run moves, and told apart by whoever reads it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from modelassay.machine.place import differ, in_words, moved, place
from modelassay.recording.log import read_cell
from support.toy_suite import SUITE, environ, modelassay, only_run, rewrite, write_suite

DIGEST = "sha256:5f0c2a9be1d34477aabbccdd"
ONE = SUITE.replace("[zoo:base, zoo:child]", "[zoo:base]").replace("[0, 1]", "[0]")
INTERRUPTED = ONE.replace("pause_ms: 3.0", "exit_at: 9, only_first: true")


def test_place_outside_an_image_keeps_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELASSAY_IMAGE", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "alices-laptop")
    about = place({"torch": "2.13.0"})
    assert about["libraries"] == {"torch": "2.13.0"}
    assert (about["image"], about["digest"], about["host"]) == (None, None, "a4f020bd")  # BLAKE2b, 4 bytes
    assert "alice" not in json.dumps(about)


def test_place_in_an_image_is_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELASSAY_IMAGE", "cpu")
    monkeypatch.setenv("MODELASSAY_IMAGE_DIGEST", DIGEST)
    about = place({})
    assert (about["image"], about["digest"], about["host"]) == ("cpu", DIGEST, None)
    assert in_words(about) == "image cpu@sha256:5f0c2a9be1d3"


def test_places_are_counted_where_they_differ() -> None:
    here, there = {"image": None, "host": "aa"}, {"image": "cpu", "digest": DIGEST, "host": None}
    assert differ([]) is differ([here, here]) is None
    assert differ([there, here, there]) == (
        "its attempts ran in different places: 2 in image cpu@sha256:5f0c2a9be1d3, 1 in host aa; their logs open with what was there"
    )
    assert differ([here, {**here, "host": "bb"}]) is not None
    assert differ([there, {**there, "digest": "sha256:0"}]) is not None


def test_move_between_image_and_host_is_said() -> None:
    inside, outside = {"image": "cpu", "image_digest": DIGEST}, {"image": None, "image_digest": None}
    now_inside, now_outside = {"image": "cpu", "digest": DIGEST}, {"image": None, "digest": None, "host": "aa"}
    assert moved(inside, now_inside) is moved(outside, now_outside) is moved({}, now_outside) is None
    assert moved(inside, now_outside) == (
        "this run began in image cpu@sha256:5f0c2a9be1d3 and goes on outside any image: each attempt records where it ran"
    )
    assert moved(outside, now_inside) == (
        "this run began outside any image and goes on in image cpu@sha256:5f0c2a9be1d3: each attempt records where it ran"
    )
    assert moved({**inside, "image_digest": "sha256:0"}, now_inside) is not None


def test_run_that_began_in_an_image_and_goes_on_outside_says_so_and_records_it(tmp_path: Path) -> None:
    image = environ(MODELASSAY_IMAGE="cpu", MODELASSAY_IMAGE_DIGEST=DIGEST)
    code, _, err = modelassay("run", write_suite(tmp_path, INTERRUPTED), "--runs", tmp_path / "runs", env=image)
    assert (code, "goes on" in err) == (3, False)
    run = only_run(tmp_path / "runs")
    code, _, err = modelassay("run", run)
    assert code == 0, err
    assert "this run began in image cpu@sha256:5f0c2a9be1d3 and goes on outside any image" in err
    (cell,) = (run / "cells").iterdir()
    places = read_cell(cell).places
    assert [(about["image"], about["digest"]) for about in places] == [("cpu", DIGEST), (None, None)]
    assert places[0]["libraries"] == places[1]["libraries"]
    assert {"python", "torch", "numpy"} <= places[0]["libraries"].keys()
    code, out, _ = modelassay("show", run, "--json")
    assert any(
        "ran in different places: 1 in image cpu@sha256:5f0c2a9be1d3, 1 in host" in note
        for note in json.loads(out)["caveats"]
    )


def test_other_python_is_refused(tmp_path: Path) -> None:
    assert modelassay("run", write_suite(tmp_path, INTERRUPTED), "--runs", tmp_path / "runs")[0] == 3
    run = only_run(tmp_path / "runs")
    rewrite(run, lambda manifest: manifest["environment"]["libraries"].update(python="3.8.1"))
    code, _, err = modelassay("run", run)
    assert (code, "python changed from 3.8 to " in err) == (2, True), err
