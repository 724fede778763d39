"""One cell: a base's family as the Hub lists it now, and how much of the run's bases each of its members overlaps with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelassay.errors import CheckpointError, UsageError
from modelassay.experiments.fingerprinting.downloads.loadable import fetch, why_excluded, why_refused
from modelassay.experiments.fingerprinting.downloads.overlap import Questions
from modelassay.experiments.fingerprinting.downloads.tables import Row, read_overlaps
from modelassay.experiments.fingerprinting.params import Measured, Members, Params
from modelassay.meter import Meter
from modelassay.models.hub import HubUnavailable
from modelassay.models.listing import Listing, Member, read_listing, take_listing
from modelassay.state import State, content_key

LISTING = "listing.json"
"""Among a cell's artifacts: what the Hub said of the family when the cell began."""


@dataclass(frozen=True, kw_only=True)
class Cohorts:
    """Which loadable members are compared with their base, by name."""

    earlier: frozenset[str]
    """Drawn whatever their downloads."""
    popular: frozenset[str]
    """Those with the most downloads."""


def run_family(params: Params, members: Members, meter: Meter, state: State) -> None:
    """Record ``listing`` once, ``member`` per member of the family, ``overlap`` per method, base of the run and member.

    The value of ``member`` is its downloads, NaN where they are not known; its label ``status`` says whether it was
    ``measured``, ``excluded`` (it cannot be loaded for its logits), ``not drawn`` or ``missing`` (gone, gated, or not
    served), ``reason`` why. Goes on after the last checkpointed member, from the listing that the first attempt saved.

    Raises:
        HostError: the family cannot be listed, or the Hub cannot be reached: the run can go on from here later.
    """
    if members.measured is not None:
        _record_tables(members.measured, meter)
        return
    listing = _listing(params.model, members, state)
    excluded = {member.name: why_excluded(member) for member in listing.members}
    loadable = [member for member in listing.members if excluded[member.name] is None]
    chosen = choose(loadable, members, seed=listing.base)
    questions = Questions([cell.model for cell in state.siblings], own=params.model, store=state.store, meter=meter)
    saved = state.restore()
    if saved is None:
        meter.metric("listing", len(listing.members), taken=listing.taken, digest=listing.digest, endpoint=listing.endpoint,
                     weights=questions.weights_of(params.model), tokenizer=questions.tokenizer_of(params.model))  # fmt: skip
        for member in listing.members:
            if (reason := excluded[member.name]) is not None:
                _record(meter, member, "excluded", reason)
            elif member.name not in chosen.earlier | chosen.popular:
                _record(meter, member, "not drawn", "")
        state.checkpoint({"done": 0})
    done = 0 if saved is None else saved.payload["done"]
    waiting = [member for member in loadable if member.name in chosen.earlier | chosen.popular]
    if waiting[done:]:
        questions.prepare()
    for number, member in enumerate(waiting[done:], start=done + 1):
        print(f"member {number} of {len(waiting)}: {member.name}", flush=True)
        _compare(member, chosen, questions, meter)
        state.checkpoint({"done": number})


def _listing(base: str, members: Members, state: State) -> Listing:
    """Return the family's listing: the one given, the one an earlier attempt saved, or a new one; it is saved in any case."""
    saved = state.artifacts / LISTING
    if saved.is_file():
        return read_listing(saved)
    if members.listing is None:
        listing = take_listing(base)
    else:
        listing = read_listing(Path(members.listing))
        if base.startswith("hf:") and base.removeprefix("hf:").partition("@")[0] != listing.base:
            raise UsageError(
                f"{members.listing}: lists the family of {listing.base}, not of {base}; give each base its own"
            )
    listing.save(saved)
    return listing


def choose(loadable: Sequence[Member], members: Members, *, seed: str) -> Cohorts:
    """Draw the cohorts by ``seed``; the same members give the same ones.

    A member whose downloads are not known may be drawn, but is never among the popular, nor above or below the filter.
    """
    names = sorted(member.name for member in loadable)
    drawn = names
    if members.earlier is not None and members.earlier < len(names):
        drawn = random.Random(seed).sample(names, members.earlier)
    above = [member for member in loadable if member.downloads is not None and member.downloads > members.more_than]
    ranked = sorted(above, key=lambda member: (-(member.downloads or 0), member.name))
    return Cohorts(earlier=frozenset(drawn), popular=frozenset(member.name for member in ranked[: members.popular]))


def _compare(member: Member, chosen: Cohorts, questions: Questions, meter: Meter) -> None:
    """Fetch a member, ask it what was asked of the bases, and record its overlap with each; or why that cannot be."""
    cohorts = {"earlier": int(member.name in chosen.earlier), "popular": int(member.name in chosen.popular)}
    try:
        with meter.microbatch("fetch", member=member.name):
            refused = why_refused(member)
            folder = None if refused else fetch(member)
    except (CheckpointError, HubUnavailable) as error:  # huggingface_hub tried again five times where that can help
        _record(meter, member, "missing", _short(error, member), **cohorts)
        return
    if folder is None:
        _record(meter, member, "excluded", str(refused), **cohorts)
        return
    try:
        answers = questions.ask(member.name, folder)
    except CheckpointError as error:
        print(error, flush=True)
        unable = str(error).removeprefix(f"{member.name}: ").partition(";")[0]
        _record(meter, member, "excluded", unable if unable.startswith("would not") else "would not load", **cohorts)
        return
    for (method, base), overlap in answers.overlaps.items():
        meter.metric("overlap", overlap.value, method=method, base=base, member=member.name,
                     **({"reason": overlap.reason} if overlap.reason else {}))  # fmt: skip
    _record(meter, member, "measured", "", weights=answers.weights, tokenizer=answers.tokenizer, **cohorts)


def _short(error: Exception, member: Member) -> str:
    """Return what happened, without the name and the advice that a message carries."""
    return str(error).removeprefix(f"{member.reference}: ").partition(";")[0].partition(" (")[0]


def _record(meter: Meter, member: Member, status: str, reason: str, **labels: str | int) -> None:
    downloads = float("nan") if member.downloads is None else member.downloads
    meter.metric(
        "member", downloads, member=member.name, status=status, reason=reason or "none", relation=member.relation,
        created=member.created or "unknown", revision=member.revision or "none", **labels,
    )  # fmt: skip


def _record_tables(measured: Measured, meter: Meter) -> None:
    """Record what others measured as if it had been measured here; tables name no weights, so nothing is known of copies."""
    earlier, popular = read_overlaps(measured.earlier), read_overlaps(measured.popular)
    names = [{row.name for row in cohort} for cohort in (earlier, popular)]
    family = {row.name: row for row in (*popular, *earlier)}
    for row in family.values():
        _record_row(row, meter, earlier=int(row.name in names[0]), popular=int(row.name in names[1]))
    for tokenizer, files in (("same", measured.same_tokenizer), ("other", measured.other_tokenizer)):
        for row in read_overlaps(files):
            if row.name not in family and row.overlap is not None:
                meter.metric("stranger", row.overlap, method="paper-exact", tokenizer=tokenizer, member=row.name)


def _record_row(row: Row, meter: Meter, *, earlier: int, popular: int) -> None:
    measured = row.overlap is not None
    meter.metric(
        "member", float("nan") if row.downloads is None else row.downloads, member=row.name, earlier=earlier, popular=popular,
        status="measured" if measured else "missing", reason="none" if measured else "no overlap in the table",
        relation="unknown", created="unknown", revision="none", zero=int(row.zero), answers=content_key(row.by_prompt) if row.by_prompt else "none",
    )  # fmt: skip
    if row.overlap is not None:
        meter.metric("overlap", row.overlap, method="paper-exact", member=row.name)
