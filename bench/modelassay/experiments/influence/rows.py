"""Stage ``prepare``: rows and queries as tokens."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelassay.data.facts import Line, make_world
from modelassay.errors import UsageError
from modelassay.experiments.influence.params import Params
from modelassay.models.reference import Model
from modelassay.recording.context import Recorder
from modelassay.training.rows import Row

ROWS = "rows.json"


@dataclass(frozen=True, kw_only=True)
class Text:
    """One row or query: its words and its tokens."""

    prompt: str
    answer: str
    kind: str
    fact: int | None
    row: Row
    num_prompt: int
    """Tokens of the prompt."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the other stages read."""

    rows: tuple[Text, ...]
    queries: tuple[Text, ...]
    held_out: tuple[Text, ...]

    def planted(self) -> dict[int, set[int]]:
        """Return each query's planted rows."""
        return {query: {number for number, text in enumerate(self.rows) if text.kind == "planted" and text.fact == asked.fact}
                for query, asked in enumerate(self.queries) if asked.fact is not None}  # fmt: skip

    def groups(self) -> list[list[int]]:
        """Return the rows that are the same to the token, as groups of their numbers."""
        by_ids: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for number, text in enumerate(self.rows):
            by_ids.setdefault((text.row.ids, text.row.labels), []).append(number)
        return [group for group in by_ids.values() if len(group) > 1]


def prepare(stage: Recorder, *, params: Params, model: Model) -> None:
    """Write rows, queries and held-out rows; record how many there are of each kind, how many answers were empty, rows cut, rows that stand twice."""
    setting, tokenizer = params.setting, model.tokenizer()
    if params.data is None:
        world = make_world(seed=params.seed, num_rows=setting.num_rows, num_facts=setting.num_facts, num_paraphrases=setting.num_paraphrases,
                           num_decoys=setting.num_decoys, num_others=setting.num_others, num_duplicates=setting.num_duplicates)  # fmt: skip
        lines, asked = world.rows, world.queries
    else:
        assert params.queries is not None
        lines = read_lines(Path(params.data), params, kind="own")
        asked = read_lines(Path(params.queries), params, kind="query", answers_wanted=False)
    filled = [line for line in lines if line.answer]
    stage.metric("empty_answers", len(lines) - len(filled))
    wanted = setting.num_rows + setting.num_held_out
    if len(filled) < wanted:
        raise UsageError(
            f"influence: {params.data or 'facts'} has {len(filled)} rows with an answer, {wanted} are wanted; take fewer rows"
        )
    texts = [as_text(line, tokenizer, setting.max_length) for line in filled[:wanted]]
    queries = [as_text(line, tokenizer, setting.max_length) for line in asked]
    stage.metric("cut_rows", sum(cut for _, cut in texts))
    document = {"rows": [_json(text) for text, _ in texts[: setting.num_rows]], "held_out": [_json(text) for text, _ in texts[setting.num_rows :]],
                "queries": [_json(text) for text, _ in queries]}  # fmt: skip
    (stage.folder / ROWS).write_text(json.dumps(document))
    prepared = load_rows(stage.folder)
    for kind, count in Counter(text.kind for text in prepared.rows).items():
        stage.metric("rows", count, kind=kind)
    stage.metric("queries", len(prepared.queries))
    stage.metric("duplicate_rows", sum(len(group) - 1 for group in prepared.groups()))
    stage.metric("tokens", sum(len(text.row.ids) for text in prepared.rows))


def read_lines(path: Path, params: Params, *, kind: Any, answers_wanted: bool = True) -> tuple[Line, ...]:
    """Return the lines of a ``.jsonl`` file, normalised: Unicode NFC, runs of white space as one space.

    Raises:
        UsageError: a line that is no JSON object with the columns, named by its number.
    """
    lines = []
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not raw.strip():
            continue
        try:
            record = json.loads(raw)
        except ValueError:
            record = None
        needed = [params.input_column, *([params.output_column] if answers_wanted else [])]
        if not isinstance(record, dict) or not all(isinstance(record.get(column), str) for column in needed):
            raise UsageError(
                f"{path}:{number}: no JSON object with text in {' and '.join(map(repr, needed))}; say input_column and output_column"
            )
        answer = record.get(params.output_column)
        lines.append(
            Line(
                prompt=normalised(record[params.input_column]),
                answer=normalised(answer) if isinstance(answer, str) else "",
                kind=kind,
            )
        )
    return tuple(lines)


def normalised(text: str) -> str:
    r"""Return text in NFC with each run of white space as one space.

    >>> normalised(" a\n\tb ")
    'a b'
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def as_text(line: Line, tokenizer: Any, max_length: int) -> tuple[Text, bool]:
    """Return a line as tokens, its answer alone with loss, and whether it was cut."""
    prompt = tokenizer.encode(line.prompt, add_special_tokens=False)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    answer = [*tokenizer.encode(f" {line.answer}", add_special_tokens=False), *end] if line.answer else []
    cut = len(prompt) + len(answer) > max_length
    answer = answer[: max_length - 1]
    prompt = prompt[max(0, len(prompt) + len(answer) - max_length) :]
    row = Row(ids=(*prompt, *answer), loss=(*[False] * len(prompt), *[True] * len(answer)))
    return Text(
        prompt=line.prompt, answer=line.answer, kind=line.kind, fact=line.fact, row=row, num_prompt=len(prompt)
    ), cut


def answered(text: Text, ids: Sequence[int]) -> Text:
    """Return a query with the answer ``ids`` in place of its own."""
    prompt = text.row.ids[: text.num_prompt]
    row = Row(ids=(*prompt, *ids), loss=(*[False] * len(prompt), *[True] * len(ids)))
    return Text(
        prompt=text.prompt, answer=text.answer, kind=text.kind, fact=text.fact, row=row, num_prompt=text.num_prompt
    )


def _json(text: Text) -> dict[str, Any]:
    return {
        "prompt": text.prompt,
        "answer": text.answer,
        "kind": text.kind,
        "fact": text.fact,
        "ids": text.row.ids,
        "num_prompt": text.num_prompt,
    }


def _text(record: Mapping[str, Any]) -> Text:
    ids, num_prompt = tuple(record["ids"]), record["num_prompt"]
    row = Row(ids=ids, loss=tuple(place >= num_prompt for place in range(len(ids))))
    return Text(
        prompt=record["prompt"],
        answer=record["answer"],
        kind=record["kind"],
        fact=record["fact"],
        row=row,
        num_prompt=num_prompt,
    )


def load_rows(folder: Path) -> Prepared:
    """Return what `prepare` wrote into ``folder``."""
    document = json.loads((folder / ROWS).read_text())
    parts = {name: tuple(_text(record) for record in document[name]) for name in ("rows", "queries", "held_out")}
    return Prepared(**parts)
