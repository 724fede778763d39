"""Multiple-choice questions from WordNet's own data files: which word means this definition?

A noun's definition is asked for; the options are the noun and three of its sisters, nouns right under the same hypernym. What is left out:

- **rare words**: an option is a single word in small letters of which this is the first noun sense, met at least once in WordNet's tagged texts
  (``tagsense_cnt`` of the index), so that the word means what the question says;
- **ambiguous distractors**: a sister with any noun sense that is the answer's, or lies above or below it, or has the same definition;
- **answers that give themselves away**: a definition that holds an option, or a word that begins as one does (five letters);
- **duplicates**: a definition or a right word that was asked for before; and definitions that end within brackets.

The files are Debian's ``wordnet-base`` (WordNet 3.0, Princeton's licence), which ``ci/real-text`` puts into the cache; nothing of them is
in this repository. Formats: wndb(5WN).
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelassay.errors import UsageError
from modelassay.storage.store import cache_root

WORDNET = "wordnet:"
"""What names these questions to a user."""
FILES: Mapping[str, str] = {
    "data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
    "index.noun": "a490d99d93d017bf4822fe2f0ffa51fd73911ce271dc7535fade21f8814b5a04",
}
"""File to SHA-256: wordnet-base 1:3.0-37."""
NUM_OPTIONS = 4
_WORD = re.compile(r"[a-z]{3,14}")
_STEM = 5


def wordnet_folder() -> Path:
    """Return where ``ci/real-text`` puts the files."""
    return cache_root() / "text" / "wordnet"


def check_wordnet() -> Path:
    """Return the folder of the files that are pinned.

    Raises:
        UsageError: one is not there, or is another.
    """
    for name, pinned in FILES.items():
        path = wordnet_folder() / name
        if not path.is_file():
            raise UsageError(
                f"{path} is not there: ci/real-text fetches it from Debian; or leave the questions out (capability: null)"
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != pinned:
            raise UsageError(
                f"{path}: its SHA-256 is {digest[:16]}..., not the one that is pinned; delete it and run ci/real-text"
            )
    return wordnet_folder()


@dataclass(frozen=True, kw_only=True)
class Synset:
    """A noun's meaning."""

    words: tuple[str, ...]
    hypernyms: tuple[str, ...]
    """Offsets of the meanings right above."""
    definition: str
    """The gloss up to its first semicolon: without examples."""


def read_synsets(path: Path) -> dict[str, Synset]:
    """Return offset to meaning of a ``data.noun``.

    Raises:
        UsageError: it cannot be read, or a line is none of wndb's.
    """
    synsets = {}
    for number, line in _lines(path):
        try:
            head, gloss = line.split(" | ", 1)
            fields = head.split()
            num_words = int(fields[3], 16)
            at = 4 + 2 * num_words
            pointers = [fields[at + 1 + 4 * k : at + 5 + 4 * k] for k in range(int(fields[at]))]
            words = tuple(fields[4:at:2])
            above = tuple(offset for symbol, offset, part, _ in pointers if symbol in {"@", "@i"} and part == "n")
        except (ValueError, IndexError):
            raise UsageError(f"{path}:{number}: not a line of WordNet's data.noun; run ci/real-text") from None
        synsets[fields[0]] = Synset(words=words, hypernyms=above, definition=gloss.partition(";")[0].strip())
    return synsets


def read_senses(path: Path) -> dict[str, tuple[bool, tuple[str, ...]]]:
    """Return a word's senses, the likeliest first, as offsets, and whether its first was met in tagged texts, of an ``index.noun``.

    Raises:
        UsageError: it cannot be read, or a line is none of wndb's.
    """
    senses = {}
    for number, line in _lines(path):
        fields = line.split()
        try:
            num_senses, at = int(fields[2]), 4 + int(fields[3])
            offsets = tuple(fields[at + 2 : at + 2 + num_senses])
            was_met = int(fields[at + 1]) > 0
        except (ValueError, IndexError):
            raise UsageError(f"{path}:{number}: not a line of WordNet's index.noun; run ci/real-text") from None
        senses[fields[0]] = (was_met, offsets)
    return senses


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line below the licence, of which every line begins with two spaces."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}; run ci/real-text") from error
    return (
        (number, line) for number, line in enumerate(text.splitlines(), start=1) if line and not line.startswith("  ")
    )


def wordnet_questions(folder: Path, *, seed: int, count: int) -> list[tuple[str, tuple[str, ...], int]]:
    """Return (question, options, number of the right one), at most ``count``, drawn and shuffled by the seed.

    Raises:
        UsageError: the files cannot be read.
    """
    synsets, senses = read_synsets(folder / "data.noun"), read_senses(folder / "index.noun")
    common = {
        offset: word
        for word, (was_met, offsets) in senses.items()
        if was_met and _WORD.fullmatch(word) and (offset := offsets[0]) in synsets and synsets[offset].words[0] == word
    }
    sisters: dict[str, list[str]] = {}
    for offset in common:
        for above in synsets[offset].hypernyms:
            sisters.setdefault(above, []).append(offset)
    rng = random.Random(seed)  # noqa: S311 - no secret
    order = sorted(common)
    rng.shuffle(order)
    asked: set[str] = set()
    made: list[tuple[str, tuple[str, ...], int]] = []
    for offset in order:
        if len(made) == count:
            break
        definition = synsets[offset].definition
        candidates = sorted({each for above in synsets[offset].hypernyms for each in sisters[above]} - {offset})
        rng.shuffle(candidates)
        apart = (common[each] for each in candidates if _is_apart(synsets, senses[common[each]][1], offset))
        options = [common[offset], *itertools.islice(apart, NUM_OPTIONS - 1)]
        if (
            len(options) < NUM_OPTIONS
            or definition in asked
            or definition.count("(") != definition.count(")")
            or any(_gives_away(definition, word) for word in options)
        ):
            continue
        asked.add(definition)
        rng.shuffle(options)
        made.append((f"Which word means: {definition}?", tuple(options), options.index(common[offset])))
    return made


def _is_apart(synsets: Mapping[str, Synset], senses: Sequence[str], answer: str) -> bool:
    """Whether no sense of a word is the answer's meaning, or lies above or below it, or is defined as it is."""
    above = _above(synsets, answer)
    return not any(
        sense == answer or sense in above or answer in _above(synsets, sense)
        or synsets[sense].definition == synsets[answer].definition
        for sense in senses
    )  # fmt: skip


def _above(synsets: Mapping[str, Synset], offset: str) -> set[str]:
    """Return the meanings above one, up to the top."""
    reached, waiting = set(), list(synsets[offset].hypernyms)
    while waiting:
        if (each := waiting.pop()) not in reached:
            reached.add(each)
            waiting += synsets[each].hypernyms
    return reached


def _gives_away(definition: str, word: str) -> bool:
    return any(each[:_STEM] == word[:_STEM] for each in re.findall(r"[a-z]+", definition.lower()))
