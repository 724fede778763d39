"""Which models a family has, and which of them are compared: a listing of the Hub, of the zoo or of an earlier run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from modelassay.errors import CheckpointError, UsageError
from modelassay.experiments.downloads.params import Params
from modelassay.models.checkpoints import config_path
from modelassay.models.gate import read_json
from modelassay.models.listing import Listing, Member, read_listing, take_listing
from modelassay.storage.store import Store
from modelassay.zoo.ancestry import descendants, is_zoo
from modelassay.zoo.resolve import resolve


@dataclass(frozen=True, kw_only=True)
class Cohorts:
    """Which loadable members are compared with the bases, by name."""

    random_sample: frozenset[str]
    """Drawn whatever their downloads."""
    most_downloaded: frozenset[str]
    """Those with the most downloads."""

    @property
    def everyone(self) -> frozenset[str]:
        """All of them."""
        return self.random_sample | self.most_downloaded


def choose(loadable: Sequence[Member], params: Params, *, seed: str) -> Cohorts:
    """Draw the cohorts by ``seed``; the same members give the same ones.

    A member whose downloads are not known may be drawn, but is never among the most downloaded, nor above or below the filter.
    """
    names = sorted(member.name for member in loadable)
    drawn = names
    if params.random_sample is not None and params.random_sample < len(names):
        drawn = random.Random(seed).sample(names, params.random_sample)
    above = [member for member in loadable if member.downloads is not None and member.downloads > params.more_than]
    ranked = sorted(above, key=lambda member: (-(member.downloads or 0), member.name))
    most_downloaded = frozenset(member.name for member in ranked[: params.most_downloaded])
    return Cohorts(random_sample=frozenset(drawn), most_downloaded=most_downloaded)


def family_listing(params: Params, saved: Path, *, store: Store) -> Listing:
    """Return the listing of ``saved``, where an earlier attempt left it; else the one that is named, or a new one, which is saved.

    Raises:
        UsageError: the named one lists another base's family.
        HostError: the Hub cannot be asked.
        CheckpointError: the base has no family there.
    """
    if saved.is_file():
        return read_listing(saved)
    base = params.model
    if params.listing is not None:
        listing = read_listing(Path(params.listing))
        name = base.removeprefix("hf:").partition("@")[0] if base.startswith("hf:") else base
        if base.startswith(("hf:", "zoo:")) and name != listing.base:
            raise UsageError(
                f"{params.listing}: lists the family of {listing.base}, not of {base}; give each base its own"
            )
    else:
        listing = zoo_listing(base, store=store) if is_zoo(base) else take_listing(base)
    listing.save(saved)
    return listing


def zoo_listing(base: str, *, store: Store) -> Listing:
    """Return the members of the zoo that descend from ``base``, whose downloads nobody counts.

    Raises:
        CheckpointError: none does.
    """
    members = tuple(_zoo_member(name, store) for name in descendants(base))
    if not members:
        raise CheckpointError(f"{base}: no member of the zoo descends from it; name one with descendants, as zoo:base")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Listing(base=base, taken=now, endpoint="the zoo", members=members)


def _zoo_member(name: str, store: Store) -> Member:
    files = resolve(name, store=store).files
    config = read_json(config_path(files))
    return Member(
        name=name, revision=None, relation="unknown", downloads=None, downloads_all_time=None, created=None, task=None,
        library=None, gated=False, disabled=False, files=tuple(sorted(path.name for path in files.folder.iterdir())),
        architectures=tuple(config["architectures"]), model_type=config["model_type"], quantized_by=None,
    )  # fmt: skip
