"""Takes secrets out of what a run records: tokens by their shape, and whatever stands beside a name like PASSWORD.

Scrubbing is biased: masking a harmless word costs a little legibility, keeping a secret costs the secret. What cannot
be told from an ordinary word (``-p hunter2``) is caught only where an environment variable with a secret-like name
holds the same value.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias
from urllib.parse import quote, unquote

JSON: TypeAlias = "None | bool | int | float | str | list[JSON] | dict[str, JSON]"

MASK: Final = "***"

# Beyond any argument a person types. The patterns take quadratic time on adversarial text: 0.1 s at this length.
LONGEST: Final = 4096

# A name is secret when one of its words contains the first pattern or is one of the second; words are split at
# punctuation and at a change to upper case, and these few ordinary words contain one by accident.
_SECRET_PART: Final = re.compile(r"token|secret|key|passw|passphrase|credential|auth|cookie|bearer", re.IGNORECASE)
_SECRET_WORDS: Final = frozenset({"pass", "pwd", "pw", "pat", "jwt", "sig", "signature", "sas", "otp", "netrc"})
_PLACES: Final = frozenset({"PWD", "OLDPWD"})
_ORDINARY_WORDS: Final = re.compile(
    r"tokeni[sz](e|ed|er|ers|ing|ation)|keywords?|monkey|keyed|keyframes?|authors?|authority|authored", re.IGNORECASE
)
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

# Counts such as max_tokens=128 and num_key_value_heads=2 are parameters of language models, not secrets.
_COUNTED: Final = re.compile(r"(^|[_.-])(tokens|keys|num|max|min|per|id|ids|heads?|count|budget|size|dim)($|[_.-])")
_NUMBER: Final = re.compile(r"[-+]?\d{1,12}(\.\d*)?(e[-+]?\d{1,3})?|true|false|null|none", re.IGNORECASE)

_START: Final = r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2}))"
_SHAPES: Final = [
    re.compile(_START + shape)
    for shape in (
        r"(?:hf|api_org)_[A-Za-z0-9]{8,}",  # Hugging Face
        r"(?:sk|rk|pk)[-_][A-Za-z0-9_-]{8,}",  # OpenAI, Anthropic, Stripe
        r"gh[a-z]_[A-Za-z0-9]{8,}",  # GitHub
        r"github_pat_[A-Za-z0-9_]{8,}",
        r"gl[a-z]{2,5}-[A-Za-z0-9_-]{8,}",  # GitLab
        r"xox[a-z](?:\.xox[a-z])?-[A-Za-z0-9-]{4,}",  # Slack
        r"xapp-[A-Za-z0-9-]{8,}",
        r"A[A-Z]{2}A[0-9A-Z]{12,}",  # AWS access key ids
        r"AIza[0-9A-Za-z_-]{20,}",  # Google
        r"ya29\.[0-9A-Za-z_.-]{8,}",
        r"eyJ[A-Za-z0-9_=-]{6,}(?:\.[A-Za-z0-9_=+/-]*)*",  # JSON web tokens, base64 of '{"'
        r"(?:npm|pypi|nvapi|r8|gsk|glsa|dop_v1|shpat|wandb_v1)[-_][A-Za-z0-9_-]{16,}",
        r"(?:Bearer|Basic|Digest)\s+[^\s\"',;]+",  # the scheme names of an Authorization header
        r"[A-Za-z0-9+/_-]{16,}={1,2}(?=[\s\"']|$)",  # padded base64
    )
] + [
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY.*", re.DOTALL),
    re.compile(r"(?<=://)[^/\s?#]*(?=@)"),  # user:password@ in a URL
    re.compile(r"(?<=://)[^/\s:@]+:(?!\d{1,5}(?:[/?#]|$))\S*(?=@)"),  # the same with a slash in the password
    re.compile(r"(?<![\w./-])(?!hf:|zoo:)[\w.%+-]+:[^\s:@/]+@(?!sha256:)(?=[\w.-])"),  # and without a scheme
]
# Base62 noise: commit ids and digests are spared by having no capitals, names in CamelCase by having few digits.
_OPAQUE: Final = re.compile(r"(?<![A-Za-z0-9])[A-Za-z0-9]{20,}(?![A-Za-z0-9])")

# user:password in an address, be there a slash or an @ in the password; "host:8080/a@b" holds none.
_LOGIN: Final = r"([^/\s?#]+|[^/\s:]+:(?!\d{1,5}[/?#])\S+)@"
_URL_LOGIN: Final = re.compile("://" + _LOGIN)
_PROXY_LOGIN: Final = re.compile(r"^(?:\w+://)?" + _LOGIN)

_NAMED: Final = re.compile(r"(?P<name>[A-Za-z_][\w.-]*)(?P<sep>[\"'\\\])]*\s*(?:=|:(?!//)|%3[AaDd])\s*)(?=\S)")
_FLAG: Final = re.compile(r"(?:^|(?<=[\s\"']))(?P<name>--?[A-Za-z][\w.-]*)(?P<sep>\s+)(?=\S)")
_ENDS_IN_NAME: Final = re.compile(r"(?:^|[\s\"'])(?P<name>(?:--?)?[A-Za-z_][\w.-]*)[\"']?\s*(?P<sep>[=:]?)\s*$")


def is_secret_name(name: str) -> bool:
    """Tell whether a variable, option or key of this name is likely to hold a secret.

    >>> [is_secret_name(name) for name in ("HF_TOKEN", "--api-key", "apiKey", "wandbPassword", "GIT_ASKPASS_AUTH")]
    [True, True, True, True, True]
    >>> [is_secret_name(name) for name in ("tokenizer", "author", "passes", "OMP_NUM_THREADS", "signal")]
    [False, False, False, False, False]
    """
    words = _WORD.findall(name)
    return any(
        word.lower() in _SECRET_WORDS or (_SECRET_PART.search(word) and not _ORDINARY_WORDS.fullmatch(word))
        for word in words
    )


def split_login(url: str) -> tuple[str, str]:
    """Return ``url`` without the login in it, and the login as it stands there, empty where there is none.

    >>> split_login("https://me:pass/word@hub.example/x"), split_login("https://hub.example:80/a@b")
    (('https://hub.example/x', 'me:pass/word'), ('https://hub.example:80/a@b', ''))
    """
    match = _URL_LOGIN.search(url)
    return (url[: match.start(1)] + url[match.end() :], match[1]) if match else (url, "")


def scrub_text(text: str, secrets: Sequence[str] = ()) -> str:
    """Return ``text`` with every secret replaced by ``***``.

    Three nets: the values in ``secrets`` (see :func:`known_secrets`); shapes of tokens, credentials in URLs and opaque
    base62 strings; and everything after a secret-like name with ``=``, ``:`` or, for an option, a blank. A text longer
    than ``LONGEST`` characters is masked whole.

    >>> scrub_text("https://me:pw@hub.example/x?rev=1 -o steps=5 --max-tokens 128")
    'https://***@hub.example/x?rev=1 -o steps=5 --max-tokens 128'
    >>> scrub_text("run --token abc"), scrub_text("api_key: abc"), scrub_text("hf:gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e")
    ('run --token ***', 'api_key: ***', 'hf:gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e')
    """
    if len(text) > LONGEST:
        return MASK
    for value in secrets:
        text = text.replace(value, MASK)
    for shape in _SHAPES:
        text = shape.sub(MASK, text)
    text = _OPAQUE.sub(lambda match: MASK if _looks_random(match[0]) else match[0], text)
    for pattern in (_NAMED, _FLAG):
        text = _mask_after_names(text, pattern)
    return text


def scrub_argv(argv: Sequence[str], secrets: Sequence[str] = ()) -> list[str]:
    """Return a command line without its secrets, also those that stand in the argument after their name.

    >>> scrub_argv(["train.py", "--token", "abc", "--steps", "5", "-H", "Authorization:", "Bearer", "abc"])
    ['train.py', '--token', '***', '--steps', '5', '-H', 'Authorization:', '***', '***']
    """
    clean: list[str] = []
    awaited: str | None = None
    for argument in argv:
        if awaited is not None and not _is_count(awaited, argument):
            clean.append(MASK)
        else:
            clean.append(scrub_text(argument, secrets))
        awaited = _name_awaiting_value(argument)
    return clean


def scrub_json(value: JSON, secrets: Sequence[str] = ()) -> JSON:
    """Return ``value`` with every string inside it scrubbed, and every field of a secret-like name masked."""
    if isinstance(value, str):
        return scrub_text(value, secrets)
    if isinstance(value, list):
        return [scrub_json(item, secrets) for item in value]
    if isinstance(value, dict):
        return {
            scrub_text(key, secrets): MASK
            if isinstance(item, str) and is_secret_name(key) and not _is_count(key, item)
            else scrub_json(item, secrets)
            for key, item in value.items()
        }
    return value


def known_secrets(environ: Mapping[str, str]) -> list[str]:
    """Return the secrets that variables hold, longest first: values under secret-like names, and logins in URLs.

    Also as they look inside a URL and in an Authorization header, and each line of those of several lines. Values under
    eight characters are left out: they are rarely secrets, and masking ``1`` everywhere helps nobody. So are places: the
    shell's PWD, and values that are the absolute path of something here, as of SSH_AUTH_SOCK.

    >>> secrets = known_secrets({"HTTPS_PROXY": "http://me:open%20sesame@proxy:3128"})
    >>> {"open sesame", "open%20sesame", "bWU6b3BlbiBzZXNhbWU="} <= {*secrets}
    True
    """
    values = {
        value.strip()
        for name, value in environ.items()
        if is_secret_name(name) and not (value.startswith("/") and (name in _PLACES or is_here(value.strip())))
    }
    values |= {line.strip() for value in values for line in value.splitlines()}
    for name, value in environ.items():
        pattern = _PROXY_LOGIN if name.lower().endswith("_proxy") else _URL_LOGIN
        for login in pattern.findall(value):
            plain = unquote(login)
            header = base64.b64encode(plain.encode(errors="replace")).decode()
            values |= {login, plain, header, login.partition(":")[2], plain.partition(":")[2]}
    long = {value for value in values if len(value) >= 8}
    return sorted(long | {quote(value, safe="") for value in long}, key=len, reverse=True)


def is_here(path: str) -> bool:
    """Tell whether ``path``, which has a slash, is that of something on this machine.

    >>> is_here("/"), is_here("/nowhere/at/all"), is_here(".")
    (True, False, False)
    """
    try:
        return "/" in path and os.path.lexists(path)
    except ValueError:  # a NUL
        return False


def _mask_after_names(text: str, pattern: re.Pattern[str]) -> str:
    """Cut ``text`` after the first secret-like name: where its value ends cannot be known (blanks, commas, quotes)."""
    for match in pattern.finditer(text):
        rest = text[match.end() :]
        first = re.split(r"[\s,;&\"'}\])]", rest, maxsplit=1)[0]
        if is_secret_name(match["name"]) and not _is_count(match["name"], first):
            return text[: match.end()] + MASK
    return text


def _is_count(name: str, value: str) -> bool:
    return bool(_NUMBER.fullmatch(value) and _COUNTED.search(name.lower().lstrip("-")))


def _name_awaiting_value(argument: str) -> str | None:
    """Return the secret-like name at the end of ``argument`` whose value must be the next one, None if there is none."""
    if argument.strip(":\"' ").lower().split(" ")[-1] in {"bearer", "basic", "digest", "token"}:
        return "authorization"
    match = _ENDS_IN_NAME.search(argument)
    if match and (match["sep"] or match["name"].startswith("-")) and is_secret_name(match["name"]):
        return match["name"]
    return None


def _looks_random(word: str) -> bool:
    counts = [sum(map(kind, word)) for kind in (str.isupper, str.islower, str.isdigit)]
    return min(counts) >= 3 or (len(word) >= 32 and min(counts) >= 1)
