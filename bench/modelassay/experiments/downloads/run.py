"""One cell: a base's family as it is listed now, and how much of the run's bases each of its members overlaps with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import transformers  # noqa: F401 - 4 s, imported once before cells are forked

from modelassay.errors import CheckpointError
from modelassay.experiments.downloads.loadable import why_excluded, why_refused
from modelassay.experiments.downloads.members import Cohorts, choose, family_listing
from modelassay.experiments.downloads.overlap import Answers, Questions
from modelassay.experiments.downloads.params import Measured, Params
from modelassay.experiments.downloads.tables import Row, read_overlaps
from modelassay.models.hub_errors import HubUnavailable
from modelassay.models.listing import Listing, Member
from modelassay.models.reference import Model
from modelassay.recording.context import CellContext
from modelassay.storage.store import content_key
from modelassay.zoo.resolve import resolve

LISTING = "listing.json"
"""Among a cell's artifacts: what was said of the family when the cell began."""


def run(params: Params, cell: CellContext) -> None:
    """Record the fact ``listing``, a fact ``member`` per member of the family, ``overlap`` per method, base and member.

    A member's ``status`` says whether it was ``measured``, ``excluded`` (it cannot be loaded for its logits), ``not drawn`` or
    ``missing`` (gone, gated, or not served), its ``reason`` why; ``downloads`` are None where they are not known. The fact
    ``cannot-ask`` says why another base asks nothing. Goes on after the last checkpointed member, from the listing that the
    first attempt saved.

    Raises:
        HostError: the family cannot be listed, or the Hub cannot be reached: the run can go on from here later.
    """
    if params.measured is not None:
        _record_tables(params.model, params.measured, cell)
        return
    listing = family_listing(params, cell.artifact(LISTING), store=cell.store)
    excluded = {member.name: why_excluded(member) for member in listing.members}
    loadable = [member for member in listing.members if excluded[member.name] is None]
    chosen = choose(loadable, params, seed=listing.base)
    questions = Questions(params.asking, own=params.model, cell=cell)
    saved = cell.restore()
    if saved is None:
        _describe(listing, questions, params.model, cell)
        _record_uncompared(listing, excluded, chosen, cell)
    waiting = [member for member in loadable if member.name in chosen.everyone]
    _compare_all(waiting, 0 if saved is None else int(saved.payload["done"]), chosen, questions, cell)


def _describe(listing: Listing, questions: Questions, base: str, cell: CellContext) -> None:
    """Record where the members come from, and which weights and tokens the base has."""
    source = {
        "members": len(listing.members),
        "taken": listing.taken,
        "digest": listing.digest,
        "endpoint": listing.endpoint,
    }
    keys = {"weights": questions.weights_of(base), "tokenizer": questions.tokenizer_of(base)}
    cell.fact("listing", {**source, **keys})


def _record_uncompared(
    listing: Listing, excluded: Mapping[str, str | None], chosen: Cohorts, cell: CellContext
) -> None:
    """Record the members that the listing alone rules out, and those that were not drawn."""
    for member in listing.members:
        if (reason := excluded[member.name]) is not None:
            _record(cell, member, "excluded", reason)
        elif member.name not in chosen.everyone:
            _record(cell, member, "not drawn")


def _compare_all(
    waiting: Sequence[Member], done: int, chosen: Cohorts, questions: Questions, cell: CellContext
) -> None:
    """Compare the members after the first ``done``."""
    if not waiting[done:]:
        return
    for base, reason in questions.prepare().items():
        if not done:
            cell.fact("cannot-ask", reason, base=base)
    for number, member in enumerate(waiting[done:], start=done + 1):
        _compare(member, chosen, questions, cell)
        cell.progress(number, len(waiting), "members")
        if cell.checkpoint_due():
            cell.checkpoint({"done": number})


def _compare(member: Member, chosen: Cohorts, questions: Questions, cell: CellContext) -> None:
    """Fetch a member, ask it what was asked of the bases, and record its overlap with each; or why that cannot be."""
    cohorts: dict[str, Any] = {
        "random_sample": member.name in chosen.random_sample,
        "most_downloaded": member.name in chosen.most_downloaded,
    }
    try:
        with cell.microbatch("fetch", member=member.name):
            model, refusal = _fetch(member, cell)
    except (CheckpointError, HubUnavailable) as error:  # asked for again already where that can help
        _record(cell, member, "missing", _short(error, member), **cohorts)
        return
    if refusal is not None:
        _record(cell, member, "excluded", refusal, **cohorts)
        return
    try:
        answers = questions.ask(member.name, model)
    except CheckpointError as error:
        print(error, flush=True)  # a stranger's library may have said it: the record holds the kind alone
        unable = str(error).removeprefix(f"{member.name}: ").partition(";")[0]
        _record(cell, member, "excluded", unable if unable.startswith("would not") else "would not load", **cohorts)
        return
    _record_answers(answers, member, cell)
    _record(cell, member, "measured", weights=answers.weights, tokenizer=answers.tokenizer, **cohorts)


def _fetch(member: Member, cell: CellContext) -> tuple[Model, str | None]:
    """Return a member, and why its metadata rule it out; where they do not, all its files are on this machine afterwards."""
    model = resolve(member.reference, store=cell.store)
    refusal = why_refused(member, model.files)
    if refusal is None:
        _ = model.folder
    return model, refusal


def _record_answers(answers: Answers, member: Member, cell: CellContext) -> None:
    for (method, base), overlap in answers.overlaps.items():
        reason = {"reason": overlap.reason} if overlap.reason else {}
        cell.metric("overlap", overlap.value, method=method, base=base, member=member.name, **reason)


def _short(error: Exception, member: Member) -> str:
    """Return what happened, without the name and the advice that a message carries."""
    return str(error).removeprefix(f"{member.reference}: ").partition(";")[0].partition(" (")[0]


def _record(cell: CellContext, member: Member, status: str, reason: str = "", **about: Any) -> None:
    listing = {
        "downloads": member.downloads,
        "relation": member.relation,
        "created": member.created,
        "revision": member.revision,
    }
    cell.fact("member", {"status": status, "reason": reason, **listing, **about}, member=member.name)


def _record_tables(base: str, measured: Measured, cell: CellContext) -> None:
    """Record what others measured as if it had been measured here; tables name no weights, so nothing is known of copies."""
    random_sample, most_downloaded = read_overlaps(measured.random_sample), read_overlaps(measured.most_downloaded)
    names = [{row.name for row in cohort} for cohort in (random_sample, most_downloaded)]
    family = {row.name: row for row in (*most_downloaded, *random_sample)}
    for row in family.values():
        _record_row(row, base, cell, random_sample=row.name in names[0], most_downloaded=row.name in names[1])
    for tokenizer, files in (("same", measured.same_tokenizer), ("other", measured.other_tokenizer)):
        for row in read_overlaps(files):
            if row.name not in family and row.overlap is not None:
                cell.metric("stranger", row.overlap, method="paper-exact", tokenizer=tokenizer, member=row.name)


def _record_row(row: Row, base: str, cell: CellContext, **cohorts: bool) -> None:
    status, reason = ("missing", "no overlap in the table") if row.overlap is None else ("measured", "")
    answers = content_key(row.by_prompt) if row.by_prompt else None
    about = {"downloads": row.downloads, "zero": row.zero, "answers": answers, "relation": "unknown", "created": None}
    cell.fact("member", {"status": status, "reason": reason, **about, **cohorts}, member=row.name)
    if row.overlap is not None:
        cell.metric("overlap", row.overlap, method="paper-exact", base=base, member=row.name)
