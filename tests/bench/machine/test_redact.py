"""No secret of the environment, of an address or of the command line is kept in a run directory or printed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from modelassay.machine.redact import Mask
from modelassay.recording.log import read_cell
from support.hub_server import serve_hub
from support.toy_suite import environ, modelassay, only_run

SUITE = """\
suite: misdeeds
experiment: rogue
question: What if?
profiles:
  embedded: {deed: DEED}
"""

KEYS = {
    "HF_TOKEN": "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",
    "HF_ORG_TOKEN": "api_org_QkRzLmTnVbWcXdYfGhJjKlPoIuYtReWq",
    "OPENAI_API_KEY": "sk-proj-a8Zx_Qw3-Er5Ty7Ui9Op1As3Df5Gh7Jk9Lz",
    "GITHUB_TOKEN": "ghp_a8ZxQw3Er5Ty7Ui9Op1As3Df5Gh7Jk9LzXcv",
    "GH_PAT": "github_pat_11A8ZXQW3Er5Ty7Ui9Op1_As3Df5Gh7Jk9LzXcvBnM",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzzQ1PLEKEY",
    "WANDB_API_KEY": "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c",
    "SESSION_JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
}
PASSWORDS = {
    "HF_ENDPOINT": ("hub-pass1", "http://reader:hub-pass1@127.0.0.1:9"),
    "HTTPS_PROXY": ("pr/oxy@pass2", "http://me:pr/oxy@pass2@127.0.0.1:9"),
}
VARIABLES = KEYS | {name: address for name, (_, address) in PASSWORDS.items()}
SECRETS = [*KEYS.values(), *(password for password, _ in PASSWORDS.values())]
SHAPED = [value for name, value in KEYS.items() if name not in {"AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"}]


def write(folder: Path, deed: str) -> Path:
    path = folder / "misdeeds.yaml"
    path.write_text(SUITE.replace("DEED", deed))
    return path


def places_of(secrets: list[str], folder: Path, **printed: str) -> list[tuple[str, str]]:
    """Return each of ``secrets`` with the file or the stream that holds it."""
    texts = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    texts |= {name: text.encode() for name, text in printed.items()}
    return [(secret, name) for name, data in texts.items() for secret in secrets if secret.encode() in data]


def printed_by(run: Path) -> str:
    (path,) = run.glob("cells/*/attempt-1.out")
    return path.read_text()


@pytest.mark.parametrize("as_json", [False, True])
def test_secrets_of_the_environment_are_nowhere(tmp_path: Path, as_json: bool) -> None:
    env = environ(TELL=" ".join([*VARIABLES, "HF_ENDPOINT"]), **VARIABLES)
    arguments = ["run", write(tmp_path, "tell"), "--runs", tmp_path / "runs", *(["--json"] if as_json else [])]
    code, out, err = modelassay(*arguments, env=env)
    assert code == 3
    run = only_run(tmp_path / "runs")
    assert places_of(SECRETS, run, out=out, err=err) == []
    kept = printed_by(run)
    for way in ("python", "warning", "native", "child", "error"):
        assert f"{way}: *** *** *** *** *** *** *** *** http://127.0.0.1:9 http://***@127.0.0.1:9" in kept
    assert "ValueError: error: ***" in err
    _, out, err = modelassay("show", run, "--json", env=env)
    assert places_of(SECRETS, run, out=out, err=err) == []
    assert json.loads(out)["cells"][0]["outcome"] == "failed"


@pytest.mark.parametrize(
    "form", ["{}", "Authorization: Bearer {}", "https://hub.example/x?a={}&b=1", "https://{}@hub.example/x"]
)
def test_tokens_that_no_variable_holds_are_known_by_their_shape(tmp_path: Path, form: str) -> None:
    said = " ".join(form.format(secret) for secret in SHAPED)
    _, out, err = modelassay(
        "run", write(tmp_path, "tell"), "--runs", tmp_path / "runs", "--json", env=environ(SAY=said)
    )
    run = only_run(tmp_path / "runs")
    assert places_of(SHAPED, run, out=out, err=err) == []
    assert printed_by(run).count("***") >= 5 * len(SHAPED)


@pytest.mark.parametrize("secret", SECRETS)
def test_a_suite_takes_no_secret(tmp_path: Path, secret: str) -> None:
    env, suite = environ(**VARIABLES), write(tmp_path, "behave")
    for option in (f"deed={secret}", f"deed=https://x:{secret}@hub.example", f"matrix.deed=[behave, '{secret}']",
                   f"deed=behave # {secret}", f"deed={secret}{'x' * 80}", f"{secret}=5"):  # fmt: skip
        code, out, err = modelassay("run", suite, "--runs", tmp_path / "runs", "--json", "-o", option, env=env)
        assert code == 2, option
        assert places_of([secret], tmp_path, out=out, err=err) == [], option
        assert "token or password" in err, option
        assert "HF_TOKEN" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("line", ["question: What of {}?", "profiles: {{embedded: {{deed: '{}'}}}}", "'{}': 1"])
def test_a_suite_file_takes_no_secret_and_says_where_it_is(tmp_path: Path, line: str) -> None:
    suite = write(tmp_path, "behave")
    key = line.partition(":")[0]
    kept = [old for old in suite.read_text().splitlines() if not old.startswith((key, "  "))]
    suite.write_text("\n".join([*kept, line.format(KEYS["HF_TOKEN"])]) + "\n")
    for verb in ("check", "run"):
        code, out, err = modelassay(verb, suite)
        assert code == 2
        assert KEYS["HF_TOKEN"] not in out + err
        assert f"misdeeds.yaml:{len(kept) + 1}:" in out + err
        assert "token or password" in out + err


def test_an_unknown_secret_option_is_not_repeated(tmp_path: Path) -> None:
    code, out, err = modelassay("run", write(tmp_path, "behave"), "-o", "hub.token=hunter22hunter")
    assert code == 2
    assert "hunter22" not in out + err
    assert "-o hub.token=***: hub.token: unknown parameter" in err


def test_what_names_no_run_is_not_repeated(tmp_path: Path) -> None:
    address = "https://me:hunter22@hub.example/suite.yaml"
    for arguments in (["run", address], ["show", KEYS["HF_TOKEN"]], ["run", "spectral", "--profile", KEYS["GH_PAT"]],
                      ["run", f"--{KEYS['HF_TOKEN']}"]):  # fmt: skip
        code, out, err = modelassay(*arguments, cwd=tmp_path)
        assert code == 2
        assert places_of([*SECRETS, "hunter22"], tmp_path, out=out, err=err) == []
        assert "***" in err


@pytest.mark.parametrize(
    "password",
    ["pass%2Fword%401", *(pytest.param(word, marks=pytest.mark.nightly) for word in ("pass-word1", "pass/word@1"))],
)
def test_a_password_of_the_hub_serves_and_is_nowhere(tmp_path: Path, password: str) -> None:
    plain = password.replace("%2F", "/").replace("%40", "@")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with serve_hub() as hub:
        hub.add("lab/model", tmp_path / "model")
        hub.login = f"reader:{plain}"
        hub.refusals["lab/model"] = [(503, "")] * 2
        env = environ(HF_ENDPOINT=hub.url.replace("://", f"://reader:{password}@"), HF_HOME=str(tmp_path / "home"), MODELASSAY_CACHE=str(tmp_path / "cache"),
                      HF_HUB_OFFLINE="0", NO_PROXY="127.0.0.1")  # fmt: skip
        code, out, err = modelassay(
            "run", write(tmp_path, "ask_the_hub"), "--runs", tmp_path / "runs", "--json", env=env
        )
    run = only_run(tmp_path / "runs")
    assert code == 0, err
    assert places_of([password, plain], run, out=out, err=err) == []
    assert hub.refusals["lab/model"] == []  # it was busy twice, and asked again
    assert "fetched /" in printed_by(run)
    assert json.loads((run / "run.json").read_text())["environment"]["variables"]["HF_ENDPOINT"] == hub.url


def test_a_password_of_the_hub_is_not_printed_by_the_command_line_itself(tmp_path: Path) -> None:
    env = environ(HF_ENDPOINT="http://reader:hub-pass1@127.0.0.1:9", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0")
    code, out, err = modelassay("fingerprint", "hf:lab/a", "hf:lab/b", "--json", env=env)
    assert code == 6
    assert places_of(["hub-pass1"], tmp_path, out=out, err=err) == []
    assert "the Hub cannot be reached" in err


def test_nothing_printed_before_a_kill_is_lost(tmp_path: Path) -> None:
    code, _, _ = modelassay("run", write(tmp_path, "print_and_be_killed"), "--runs", tmp_path / "runs")
    assert code == 3
    assert printed_by(only_run(tmp_path / "runs")) == "".join(f"line {n}\n" for n in range(50_000)) + "the last"


@pytest.mark.parametrize("text", [
    "sk-learn", "hf:Qwen/Qwen2.5-0.5B@060db6499f32faf8b98477b0a26969ef7d8b9987", "zoo:base@2", "embedded", "/models/hf_cache",
    "python:3.12@sha256:24c8e3581ea6330038b0d374920721983312627f8adbfcf390bdb4b399d280ed", "Basic multilingual plane",
    "http://hub.example:8080/a@b", "DeepSeek-R1-Distill-Qwen-1.5B", "1234567890.5",
])  # fmt: skip
def test_what_a_suite_says_stays(text: str) -> None:
    mask = Mask({"SSO_AUTH": "embedded", "SOME_KEY": "1234567890", "A_TOKEN": "short"})
    assert not mask.refuses(text)
    assert text == "embedded" or mask(text) == text


@pytest.mark.parametrize("unit", ["a", "a:", "://a", "://a:", "@", "Basic ", "eyJ", "sk-", "://" + "a" * 250])
def test_a_long_line_costs_linear_time(unit: str) -> None:
    mask, text = Mask(os.environ), unit * (1_000_000 // len(unit))
    began = time.process_time()
    mask(text)
    assert time.process_time() - began < 2.0


def test_a_status_holds_no_secret(tmp_path: Path) -> None:
    env = environ(TELL="WANDB_API_KEY", WANDB_API_KEY=KEYS["WANDB_API_KEY"])
    modelassay("run", write(tmp_path, "tell"), "--runs", tmp_path / "runs", env=env)
    (cell,) = (only_run(tmp_path / "runs") / "cells").iterdir()
    status = read_cell(cell).status
    assert status is not None
    assert status["reason"].startswith("ValueError: error: *** ")
