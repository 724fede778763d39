"""The library that draws figures in a browser, as vl-convert ships it; bundling it takes 2 s, so the cache keeps it."""

from __future__ import annotations

import secrets
from contextlib import suppress
from importlib.metadata import version

from modelassay.errors import AssayError
from modelassay.storage.sealed import read_sealed, sealed_json
from modelassay.storage.store import cache_root


def drawing_library() -> str:
    """Return Vega, Vega-Lite and vega-embed as one script, 0.9 MB.

    It is kept as ``report/vega-<version of vl-convert>.json`` in the cache, sealed; one that is damaged, of another version or
    cannot be read is bundled anew, and where the cache cannot be written nothing is kept.
    """
    number = version("vl-convert-python")
    try:
        path = cache_root() / "report" / f"vega-{number}.json"
    except AssayError:  # a user without a home folder
        return _bundle()
    with suppress(OSError, ValueError, AssayError):
        document = read_sealed(path)
        if document.get("version") == number and isinstance(script := document.get("script"), str):
            return script
    script = _bundle()
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(sealed_json({"version": number, "script": script}))
        draft.replace(path)  # not synced: after a power cut its checksum tells
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return script


def _bundle() -> str:
    import vl_convert  # here: it takes 0.2 s to load

    script: str = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]  # its stub forgets the default
    return script
