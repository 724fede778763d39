"""No secret survives scrubbing, and what a reader needs does."""

import json
import random
import string
from pathlib import Path

import pytest

from modelassay.machine.scrub import known_secrets, scrub_argv, scrub_json, scrub_text

BASE62 = string.ascii_letters + string.digits
URL_SAFE = BASE62 + "-_"
HEX = "0123456789abcdef"
CAPITALS = string.ascii_uppercase + string.digits


def _random(alphabet: str, length: int, rng: random.Random) -> str:
    return "".join(rng.choices(alphabet, k=length))


def _shaped_secrets(rng: random.Random) -> list[str]:
    """Secrets that give themselves away wherever they stand."""
    return [
        f"hf_{_random(BASE62, rng.randint(16, 40), rng)}",
        f"sk-{_random(BASE62, 48, rng)}",
        f"sk-ant-api03-{_random(URL_SAFE, 80, rng)}AA",
        f"sk-proj-{_random(URL_SAFE, 60, rng)}",
        f"ghp_{_random(BASE62, 36, rng)}",
        f"gho_{_random(BASE62, 36, rng)}",
        f"github_pat_{_random(BASE62, 22, rng)}_{_random(BASE62, 59, rng)}",
        f"glpat-{_random(URL_SAFE, 20, rng)}",
        f"xoxb-{_random(string.digits, 12, rng)}-{_random(BASE62, 24, rng)}",
        f"xoxp-{_random(string.digits, 12, rng)}-{_random(BASE62, 24, rng)}",
        f"AKIA{_random(CAPITALS, 16, rng)}",
        f"AIza{_random(URL_SAFE, 35, rng)}",
        f"npm_{_random(BASE62, 36, rng)}",
        f"eyJ{_random(URL_SAFE, 30, rng)}.eyJ{_random(URL_SAFE, 60, rng)}.{_random(URL_SAFE, 43, rng)}",
        f"{_random(BASE62, 60, rng)}Aa0",
    ]


def _plain_secrets(rng: random.Random) -> list[str]:
    """Secrets that only their name betrays."""
    return [
        _random(HEX, rng.choice([32, 40, 64]), rng),
        _random(BASE62 + "+/", 40, rng) + "==",
        _random(string.ascii_lowercase, rng.randint(8, 20), rng),
        _random(string.digits, 8, rng),
        _random(BASE62 + "!$%^*()@#~", 16, rng),
        "correct horse battery staple",
        "-" + _random(URL_SAFE, 20, rng),
    ]


PLACES = [
    ["{}"],
    ["-o", "note={}"],
    ["--note={}"],
    ["https://hub.example/{}/resolve"],
    ["https://hub.example/x?a=%3D{}&b=1"],
    ["prefix_{}"],
    ['{{"note": ["{}"]}}'],
    ["two words {} and more"],
    ["line\n{}\nline"],
]  # fmt: skip

NAMED_PLACES = [
    ["--token", "{}"], ["--token={}"], ["-token", "{}"], ["--hf-token", "{}"], ["--api_key={}"], ["--apiKey={}"],
    ["--db.password", "{}"], ["--auth", "{}"], ["--cookie={}"], ["-o", "hub.token={}"], ["-o", "credential={}"],
    ["HF_TOKEN={}"], ["env", "AWS_SECRET_ACCESS_KEY={}"], ["export WANDB_API_KEY={} && run"], ["secret:{}"],
    ["password: {}"], ["-H", "Authorization: Bearer {}"], ["-H", "Authorization:", "Bearer", "{}"],
    ["-H", "Authorization: Bearer", "{}"], ["-H", "authorization: token {}"], ["-H", "Cookie: a=b; session={}"],
    ['{{"token": "{}"}}'], ["{{'api-key': '{}'}}"], ["headers[Authorization]={}"], ["token%3D{}"],
    ["https://hub.example/x?token={}&rev=1"], ["https://hub.example/x?rev=1&X-Amz-Signature={}"],
    ["run --token {} --steps 5"], ['run --token "{}"'], ["a=1,token={},b=2"], ["{{token: {}, steps: 5}}"],
    ["--token", "--token", "{}"], ["--passphrase", "{}"], ["--github-pat={}"], ["MYPASSWD={}"],
]  # fmt: skip

URL_PLACES = [
    ["https://user:{}@hub.example/x"], ["https://{}@hub.example/x"], ["https://{}:x@hub.example"],
    ["postgresql://me:{}@db:5432/runs"], ["--endpoint=http://user:{}@hub.example:8080"], ["user:{}@proxy.example:3128"],
    ["git+https://user:{}@hub.example/x.git@main"],
]  # fmt: skip


def _put(place: list[str], secret: str) -> list[str]:
    return ["run.py", *(argument.format(secret) for argument in place), "--profile", "smoke"]


@pytest.mark.parametrize("seed", range(20))
def test_shaped_secrets_are_found_anywhere(seed: int) -> None:
    rng = random.Random(seed)
    for secret in _shaped_secrets(rng):
        for place in (*PLACES, *NAMED_PLACES, *URL_PLACES):
            assert secret not in "\n".join(scrub_argv(_put(place, secret))), place


@pytest.mark.parametrize("seed", range(20))
def test_plain_secrets_are_found_after_their_names(seed: int) -> None:
    rng = random.Random(seed)
    for secret in _plain_secrets(rng):
        for place in NAMED_PLACES:
            assert secret not in "\n".join(scrub_argv(_put(place, secret))), (secret, place)


@pytest.mark.parametrize("seed", range(20))
def test_passwords_in_urls_are_found(seed: int) -> None:
    rng = random.Random(seed)
    for secret in (_random(HEX, 40, rng), _random(BASE62 + "!$%^*()~", 16, rng), _random(string.digits, 8, rng)):
        for place in URL_PLACES:
            assert secret not in "\n".join(scrub_argv(_put(place, secret))), (secret, place)
    slashed = _random(BASE62, 6, rng) + "/" + _random(BASE62, 6, rng)
    assert slashed not in scrub_text(f"https://user:{slashed}@hub.example/x")


def test_values_of_secret_variables_are_found_under_any_name() -> None:
    environ = {"WANDB_API_KEY": "0123456789abcdef", "DB_PASSWORD": "p w/d:12", "HOME": "/home/someone", "A_KEY": "1"}
    known = known_secrets(environ)
    assert scrub_argv(["-p", "0123456789abcdef", "--home", "/home/someone", "--x=p w/d:12", "p%20w%2Fd%3A12", "1"], known) == [
        "-p", "***", "--home", "/home/someone", "--x=***", "***", "1",
    ]  # fmt: skip


@pytest.mark.parametrize("text", [
    "hf_{}", "api_org_{}", "sk-{}", "rk_live_{}", "ghp_{}", "ghs_{}", "github_pat_{}", "glpat-{}", "xoxb-{}", "xapp-{}",
    "ya29.{}", "eyJ{}.{}.{}", "npm_{}", "pypi-{}", "nvapi-{}", "gsk_{}", "Bearer {}", "Basic {}", "{}==", "header%3Dhf_{}",
    "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----", "-----BEGIN RSA PRIVATE KEY-----\n{}",
])  # fmt: skip
def test_a_shape_is_known_by_itself(text: str) -> None:
    """With a body of small letters only, so that the net for random strings cannot help."""
    assert "abcdefghijklmnopqrst" not in scrub_text(f"x {text.replace('{}', 'abcdefghijklmnopqrst')}")


@pytest.mark.parametrize("text", [
    "run", "--profile", "smoke", "-o", "steps=60", "-o lr=1e-5", "matrix.language=[en, ja]", "max_tokens=128",
    "--max-tokens 128", "num_key_value_heads=2", "pad_token_id=151643", "tokens_per_batch: 4096", "tokenizer=zoo:base",
    "hf:Qwen/Qwen2.5-0.5B@060db6499f32faf8b98477b0a26969ef7d8b9987", "hf:gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "sha256:24c8e3581ea6330038b0d374920721983312627f8adbfcf390bdb4b399d280ed", "author=someone",
    "python:3.12@sha256:24c8e3581ea6330038b0d374920721983312627f8adbfcf390bdb4b399d280ed",
    "runs/sft-drift-20261120T101500Z-7f3a9c", "DeepSeek-R1-Distill-Qwen-1.5B", "Qwen2ForCausalLMWithValueHead",
    "http://hub.example:8080/path", "Intel(R) Xeon(R) Platinum 8480+ @ 2.00GHz", "expandable_segments:True",
])  # fmt: skip
def test_ordinary_arguments_stay(text: str) -> None:
    assert scrub_text(text) == text


def test_json_is_scrubbed_at_every_depth_and_by_field_name() -> None:
    secret = "hf_" + "x" * 34
    value = {
        "a": [secret, {"b": f"--x={secret}", secret: 1}],
        "api_key": "plain",
        "max_tokens": 5,
        "n": None,
        "t": True,
    }
    clean = scrub_json(value)
    assert secret not in json.dumps(clean)
    assert clean == {"a": ["***", {"b": "--x=***", "***": 1}], "api_key": "***", "max_tokens": 5, "n": None, "t": True}


@pytest.mark.parametrize("unit", ["a", "a.", "a-", "a=", "a:", "://a", "--a ", "aA0", "=", "sk-"])
def test_a_secret_behind_repetition_is_found(unit: str) -> None:
    """Each unit is one that a pattern could backtrack over: were one exponential, this would not end."""
    assert "abcdefgh" not in scrub_text(unit * 800 + " --token abcdefgh")
    assert scrub_text(unit * 5000) == "***"


def test_a_place_on_this_machine_is_no_secret(tmp_path: Path) -> None:
    """Under names that sound like secrets stand the shell's folder, sockets and key files; a token is none of them."""
    here = tmp_path / "agent"
    here.write_text("")
    known = known_secrets({
        "PWD": "/gone/with/the/container", "SSH_AUTH_SOCK": str(here), "GOOGLE_APPLICATION_CREDENTIALS": str(here),
        "HF_TOKEN": "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", "API_PASSWORD": "/b8+secret/0", "HTTPS_PROXY": "http://me:/etc/hosts@proxy",
    })  # fmt: skip
    assert {"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", "/b8+secret/0", "/etc/hosts"} <= {*known}
    assert not [value for value in known if "gone" in value or str(here) in value]
