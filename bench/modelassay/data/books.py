"""Books that exist in English and in Japanese, chapter by chapter: language varied with the content held still.

They are Debian's own documentation, which ``ci/real-text`` fetches through apt into the cache; nothing of them is in this repository. Each text is
pinned by its SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from modelassay.errors import UsageError
from modelassay.storage.store import cache_root

BOOKS: Mapping[str, Mapping[str, str]] = {
    "debian-reference": {
        "en": "fc8dce7f9d076f78432b74cc91555017c855d19d5bbc5b8e7e3ad472f00ec6cf",
        "ja": "b9939fcf774115addea2e1753135fdb6357ccbcd6b810dfbc7860574754fa71a",
    },
    "developers-reference": {
        "en": "6e16d3fba905b0ac7636d34bd703512087a24063ab8e778abbdf8a76363bc95e",
        "ja": "50d7695371bff1663050a197cd44b6303b6a19485fef7f329b7deeffdf1aeae0",
    },
    "maint-guide": {
        "en": "5926f4e5972c38bc18f94a7ac545e9794678d82d9b4d0ea93c843e1c94f1b9e1",
        "ja": "e0d4f5503c64ff7c5c0fb277868bf2ca1bf0bb8cf81f70a749e0c61deb5e5a8a",
    },
}
"""Book to language to the SHA-256 of its text: Debian 12, versions 2.100, 12.18 and 1.2.53."""


def book_path(book: str, language: str) -> Path:
    """Return where ``ci/real-text`` puts a book's text.

    Raises:
        UsageError: there is no such book, or not in this language.
    """
    if language not in BOOKS.get(book, {}):
        raise UsageError(f"no book {book!r} in language {language!r}; there are {', '.join(BOOKS)}, each in en and ja")
    return cache_root() / "text" / f"{book}.{language}.txt"


def check_book(book: str, language: str) -> None:
    """Refuse a book whose text is not there, or is another than the one that is pinned.

    Raises:
        UsageError: so, or there is no such book in this language.
    """
    path = book_path(book, language)
    if not path.is_file():
        raise UsageError(f"{path} is not there: ci/real-text fetches it from Debian")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != BOOKS[book][language]:
        raise UsageError(
            f"{path}: its SHA-256 is {digest[:16]}..., not the one that is pinned; delete it and run ci/real-text"
        )
