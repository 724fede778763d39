"""The Hub's token: where it comes from, and whether a header can carry it. The token itself is never shown."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Final

from modelassay.errors import UsageError

_VARIABLES: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def token_source() -> str | None:
    """Return which variable or file the Hub's token comes from, None without one."""
    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    variable = next((name for name in _VARIABLES if os.environ.get(name)), None)
    return variable or (constants.HF_TOKEN_PATH if os.path.lexists(constants.HF_TOKEN_PATH) else None)


def require_plain_token() -> None:
    """Refuse a token that no header can carry: the library would die of it.

    Raises:
        UsageError: its file cannot be read, or it holds what no token does.
    """
    source = token_source()
    if source is None:
        return
    try:
        data = os.fsencode(os.environ[source]) if source in _VARIABLES else Path(source).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{source}: the Hub's token cannot be read ({(error.strerror or str(error)).lower()}); mend the file, name"
            " another with HF_TOKEN_PATH, or set HF_HUB_DISABLE_IMPLICIT_TOKEN=1 to do without"
        ) from None
    text = data.decode(errors="replace").strip()
    if odd := next((char for char in text if not "!" <= char <= "~" or char in "\"'`"), None):
        raise UsageError(f"{source}: not a token of the Hub: it holds {_in_words(odd)}; copy it anew (hf auth login)")


def _in_words(char: str) -> str:
    names = {" ": "a space", "\n": "a line break", "\r": "a line break", "\ufffd": "bytes that are no UTF-8"}
    return names.get(char) or f"{unicodedata.name(char, 'a control character').lower()} (U+{ord(char):04X})"
