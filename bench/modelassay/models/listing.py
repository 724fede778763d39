"""A family as the Hub lists it: every model that names a base as what it was made from, at one moment.

Downloads move by the hour and repositories go away, so a listing is taken once, saved with what it is used for, and read
again from there.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from modelassay.errors import CheckpointError, HostError, UsageError
from modelassay.models.connection import endpoint, log_in
from modelassay.models.hub_errors import hub_errors
from modelassay.storage.sealed import Unsealed, sealed_json, unseal

SCHEMA: Final = 1
"""Version of a saved listing; a reader refuses another."""

RELATIONS: Final = ("adapter", "quantized", "merge", "finetune")
"""How the Hub says a model was made from its base, in the tag ``base_model:<relation>:<base>``."""

_EXPAND: Final = ("config", "createdAt", "disabled", "downloads", "downloadsAllTime", "gated", "library_name", "pipeline_tag",
                  "private", "sha", "siblings", "tags")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Member:
    """What the Hub's listing said of one model."""

    name: str
    """``ORG/NAME`` on the Hub; of another source a whole reference."""
    revision: str | None
    """Commit of its main branch."""
    relation: str
    """One of `RELATIONS`; ``unknown`` where the Hub only says that it has this base."""
    downloads: int | None
    """Over the last 30 days, as the Hub counts; None where the Hub does not say, which is not 0."""
    downloads_all_time: int | None
    created: str | None
    """UTC, ISO 8601."""
    task: str | None
    """The Hub's pipeline tag."""
    library: str | None
    gated: bool
    disabled: bool
    files: tuple[str, ...]
    """Every file of the repository."""
    architectures: tuple[str, ...]
    """Of config.json; empty where there is none, or it names none."""
    model_type: str | None
    quantized_by: str | None
    """Of config.json's quantization_config; None without one."""

    @property
    def reference(self) -> str:
        """The name by which it is opened, at the commit that was listed."""
        if ":" in self.name:
            return self.name
        return f"hf:{self.name}@{self.revision}" if self.revision else f"hf:{self.name}"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A base's family at one moment, members by name."""

    base: str
    """``ORG/NAME`` on the Hub; of another source a whole reference."""
    taken: str
    """When it was asked for, UTC, ISO 8601."""
    endpoint: str
    """Which Hub, or what else lists it."""
    members: tuple[Member, ...]

    @property
    def digest(self) -> str:
        """16 hex digits of SHA-256 over what `save` writes: equal listings, equal digests."""
        return hashlib.sha256(self._text().encode()).hexdigest()[:16]

    def _text(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    def save(self, path: Path) -> None:
        """Write the listing to ``path``, whole or not at all, with its checksum."""
        aside = path.with_suffix(".new")
        aside.write_bytes(sealed_json({"schema": SCHEMA, **asdict(self)}, by_lines=True))
        aside.rename(path)


def take_listing(base: str) -> Listing:
    """Ask the Hub for every model that names ``base`` (``hf:ORG/NAME``, with or without a commit) as its base, page by page.

    One request per page of up to 1,000 models; HF_ENDPOINT and HF_TOKEN are honoured.

    Raises:
        HostError: offline, or the Hub cannot be reached or still does not serve the list at the third try.
        CheckpointError: not a name of the Hub's, or nothing names it as its base.
    """
    log_in()
    from huggingface_hub import HfApi, is_offline_mode

    if not base.startswith("hf:"):
        raise CheckpointError(f"{base}: only the Hub knows a family; name the base hf:ORG/NAME, or give listing")
    if is_offline_mode():
        raise HostError(f"{base}: HF_HUB_OFFLINE is set, so its family cannot be listed; unset it, or give listing the "
                        "listing.json among the artifacts of an earlier run")  # fmt: skip
    repository = base.removeprefix("hf:").partition("@")[0]

    with hub_errors(base, "the list of its family", parses=True):
        infos = list(HfApi().list_models(filter=f"base_model:{repository}", expand=list(_EXPAND)))
        members = {info.id: _member(info, repository) for info in infos if info.id != repository}
    if not members:
        raise CheckpointError(f"{base}: the Hub lists no model that names {repository} as its base; check the spelling")
    return Listing(base=repository, taken=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), endpoint=endpoint(),
                   members=tuple(members[name] for name in sorted(members)))  # fmt: skip


def read_listing(path: Path) -> Listing:
    """Read what `Listing.save` wrote; one without a checksum, as those of earlier versions, is taken as it is.

    Raises:
        UsageError: no such file, or not a listing of this version.
    """
    from pydantic import TypeAdapter

    try:
        try:
            data = unseal(path.read_bytes())
        except Unsealed as error:
            data = error.document
        if data["schema"] != SCHEMA:
            raise UsageError(
                f"{path}: a listing of schema {data['schema']!r}, this modelassay reads {SCHEMA}; take it anew"
            )
        return TypeAdapter(Listing).validate_python(data)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read: {error.strerror}; listing names the listing.json that a run saved"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(f"{path}: not a saved listing ({reason}); name the listing.json that a run saved") from error


def _member(info: Any, base: str) -> Member:
    """Return what is kept of a ``ModelInfo``."""
    config = info.config if isinstance(info.config, dict) else {}
    quantization = config.get("quantization_config")
    quantized_by = None
    if quantization is not None:
        quantized_by = str(quantization.get("quant_method", "unknown")) if isinstance(quantization, dict) else "unknown"
    tags = set(info.tags or ())
    return Member(
        name=info.id, revision=info.sha, downloads=info.downloads, downloads_all_time=info.downloads_all_time,
        relation=next((kind for kind in RELATIONS if f"base_model:{kind}:{base}" in tags), "unknown"),
        created=None if info.created_at is None else info.created_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        task=info.pipeline_tag, library=info.library_name, gated=bool(info.gated), disabled=bool(info.disabled),
        files=tuple(sorted(file.rfilename for file in info.siblings or ())),
        architectures=tuple(config.get("architectures") or ()), model_type=config.get("model_type"),
        quantized_by=quantized_by,
    )  # fmt: skip
