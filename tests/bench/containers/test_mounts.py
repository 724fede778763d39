"""What a run inside an image says of results that its container would take along; mounts as a real engine shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelassay.containers.mounts import command_that_keeps, loss_warning
from support.toy_suite import environ, modelassay, write_suite

IMAGE = {"MODELASSAY_IMAGE": "modelassay/cpu:0.1.0"}
ROOT = "76 52 0:39 / / rw,relatime master:2 - overlay overlay rw,lowerdir=/l/A:/l/B,upperdir=/u,workdir=/w\n"
PROC = "77 76 0:42 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw\n"
VOLUMES = "/var/lib/docker/volumes"
NUMBER = "99a09fcf7c32458ead304c17efedf8326a2151ff3e49f681bbea2cd2a9511f15"


def line(root: str, path: str = "/data", kind: str = "ext4") -> str:
    return f"93 76 254:0 {root} {path} rw,relatime master:1 - {kind} /dev/vda rw,discard\n"


MOUNTS = {
    "none": ("", True),
    "bind": (line("/home/me/runs"), False),
    "bind of a host's tmpfs": (line("/me/runs", kind="tmpfs"), False),
    "bind with a blank in its name": (line("/home/me/my\\040runs", "/data"), False),
    "whole disk": (line("/"), False),
    "network file system": (line("/", kind="nfs4"), False),
    "named volume": (line(f"{VOLUMES}/results/_data"), False),
    "volume without a name": (line(f"{VOLUMES}/{NUMBER}/_data"), True),
    "podman's volume without a name": (line(f"/home/me/.local/share/containers/storage/volumes/{NUMBER}/_data"), True),
    "tmpfs": (line("/", kind="tmpfs"), True),
    "tmpfs over a bind": (line("/home/me/runs") + line("/", kind="tmpfs"), True),
    "bind over a tmpfs": (line("/", kind="tmpfs") + line("/home/me/runs"), False),
    "bind below": (line("/home/me/runs", "/data/walk-2"), True),
    "bind beside": (line("/home/me/runs", "/dat"), True),
    "bind above, tmpfs nearer": (line("/home/me", "/") + line("/", kind="tmpfs"), True),
}


@pytest.mark.parametrize("case", MOUNTS)
def test_only_results_that_would_be_lost_are_told(tmp_path: Path, case: str) -> None:
    text, lost = MOUNTS[case]
    mounts = tmp_path / "mountinfo"
    mounts.write_text(ROOT + PROC + text)
    warning = loss_warning(Path("/data/walk-1"), mounted=Path("/data"), arguments=["run", "walk", "--runs", "/data"],
                           environ=IMAGE, mounts_file=mounts)  # fmt: skip
    assert (warning is not None) == lost
    if warning is not None:
        first, command = warning.splitlines()
        assert first.startswith(
            "warning: /data/walk-1: lies inside this container and is lost when the container is removed;"
        )
        assert 'docker run --rm -v "$PWD"/data:/data --user "$(id -u):0" ' in command
        assert command.endswith(" modelassay/cpu:0.1.0 run walk --runs /data")


def test_link_out_of_the_mount_counts_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to("/elsewhere")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(ROOT + line("/home/me", str(tmp_path)))
    arguments = {"arguments": ["run", "walk"], "environ": IMAGE, "mounts_file": mounts}
    assert loss_warning(tmp_path / "runs/walk-1", mounted=tmp_path / "runs", **arguments) is not None
    assert loss_warning(tmp_path / "walk-1", mounted=tmp_path, **arguments) is None


def test_nothing_is_said_outside_our_images_or_where_mounts_are_hidden(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(ROOT)
    told = {"mounted": Path("/data"), "arguments": ["run", "walk"]}
    assert loss_warning(Path("/data/a"), environ={}, mounts_file=mounts, **told) is None
    assert loss_warning(Path("/data/a"), environ=IMAGE, mounts_file=tmp_path / "none", **told) is None


def test_secrets_of_the_command_line_are_not_printed(tmp_path: Path) -> None:
    token = "hf_" + "Q7x" * 8
    mounts = tmp_path / "mountinfo"
    mounts.write_text(ROOT)
    warning = loss_warning(Path("/runs/a"), mounted=Path("/runs"), arguments=["run", "walk", "-o", f"note={token}"],
                           environ=IMAGE, mounts_file=mounts)  # fmt: skip
    assert warning is not None
    assert token not in warning


def test_line_is_one_that_a_shell_takes() -> None:
    command = command_that_keeps(Path("/my runs"), arguments=["run", "a b.yaml", "-o", "x=[1, 2]"], image="a/b:1")
    assert command == (
        "mkdir -p 'my runs' && docker run --rm -v \"$PWD\"/'my runs':'/my runs' --user \"$(id -u):0\" a/b:1"
        " run 'a b.yaml' -o 'x=[1, 2]'"
    )
    assert command_that_keeps(Path("/"), arguments=["run", "walk", "--runs", "/"], image="a/b:1") == (
        'mkdir -p runs && docker run --rm -v "$PWD"/runs:/runs --user "$(id -u):0" a/b:1 run walk --runs / --runs /runs'
    )


def test_entry_points_choice_of_user_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    command = command_that_keeps(Path("runs"), arguments=["run", "walk"], image="a/b:1")
    assert command == f'mkdir -p runs && docker run --rm -v "$PWD"/runs:{tmp_path}/runs a/b:1 run walk'


def test_warning_stands_before_the_work_and_not_in_the_data(tmp_path: Path) -> None:
    """This machine's own root stands for the container's, where the tests do not lie on a mount of their own."""
    text = Path("/proc/self/mountinfo").read_text()
    points = [Path(entry.split()[4]) for entry in text.splitlines()]
    if max((point for point in points if tmp_path.is_relative_to(point)), key=lambda point: len(point.parts)) != Path(
        "/"
    ):
        pytest.skip("temporary files lie on a mount of their own")
    code, out, err = modelassay(
        "run", write_suite(tmp_path), "--runs", tmp_path / "runs", "--json", env=environ(**IMAGE)
    )
    assert code == 0, err
    lines = err.splitlines()
    assert lines[0].startswith("warning: ")
    assert lines[1].startswith("  mkdir -p runs && docker run --rm -v ")
    assert "4 of 4 cells to run" in lines[2]
    assert out.startswith("{")
