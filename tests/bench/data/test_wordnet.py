"""Questions made of WordNet's files: what is asked, and what is left out."""

import hashlib
from pathlib import Path

import pytest

from modelassay.data import wordnet
from modelassay.data.wordnet import check_wordnet, read_senses, read_synsets, wordnet_questions
from modelassay.errors import UsageError

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by\n"
DATA = LICENCE + "".join(
    f"{offset:08d} 03 n {len(words):02x} {' '.join(f'{word} 0' for word in words)} {len(above):03d} "
    f"{' '.join(f'@ {each:08d} n 0000' for each in above)} | {gloss}  \n"
    for offset, words, above, gloss in (
        (1, ["animal"], [], "a living thing that moves"),
        (2, ["trout"], [1], 'a fish of cold streams; "they ate a brown one"'),
        (3, ["heron"], [1], "a bird with long legs"),
        (4, ["adder"], [1], "a snake with a zigzag"),
        (5, ["otter"], [1], "a mammal that swims"),
        (6, ["asp", "viper"], [1], "a snake with a zigzag"),  # defined as the adder is
        (
            7,
            ["beast"],
            [1],
            "a large creature",
        ),  # another of its senses is the animal itself: above the others, so never a distractor
        (8, ["Rex"], [1], "a dog's name"),
        (9, ["gnu"], [1], "a gnu"),  # names itself
        (10, ["rarity"], [1], "seldom met"),  # in no tagged text
        (11, ["fry"], [2], "a young one of a trout"),  # below the trout, and a sister by another sense
        (12, ["fry"], [1], "a small swimmer"),
    )
)
INDEX = LICENCE + "".join(
    f"{word} n {len(senses)} 1 @ {len(senses)} {met} {' '.join(f'{each:08d}' for each in senses)}  \n"
    for word, met, senses in (
        ("animal", 1, [1]), ("trout", 1, [2]), ("heron", 1, [3]), ("adder", 1, [4]), ("otter", 1, [5]), ("asp", 1, [6]), ("viper", 0, [6]),
        ("beast", 1, [7, 1]), ("gnu", 1, [9]), ("rarity", 0, [10]), ("fry", 1, [12, 11]), ("rex", 1, [8]),
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("wordnet")
    (made / "data.noun").write_text(DATA)
    (made / "index.noun").write_text(INDEX)
    return made


def test_lines_are_read_as_wndb_defines_them(folder: Path) -> None:
    synsets, senses = read_synsets(folder / "data.noun"), read_senses(folder / "index.noun")
    assert len(synsets) == 12
    assert (synsets["00000002"].words, synsets["00000002"].hypernyms) == (("trout",), ("00000001",))
    assert synsets["00000002"].definition == "a fish of cold streams"
    assert synsets["00000006"].words == ("asp", "viper")
    assert senses["beast"] == (True, ("00000007", "00000001"))
    assert senses["rarity"] == (False, ("00000010",))


def test_questions_leave_out_what_is_rare_ambiguous_or_given_away(folder: Path) -> None:
    for seed in range(30):
        asked = {
            options[right]: (text, options) for text, options, right in wordnet_questions(folder, seed=seed, count=99)
        }
        assert set(asked) <= {"trout", "heron", "adder", "otter", "asp", "beast", "fry"}
        assert {"trout", "heron", "otter"} <= set(asked)
        assert len({text for text, _ in asked.values()}) == len(asked)  # adder and asp are never both asked for
        for right, (_, options) in asked.items():
            assert len(set(options)) == 4
            assert not {"rarity", "rex", "viper", "animal"} & set(options)
            assert right not in {"adder", "asp"} or not {"adder", "asp"} <= set(options)  # one definition
            assert right != "trout" or "fry" not in options  # one of its senses is a young trout
        assert not any("beast" in options for right, (_, options) in asked.items() if right != "beast")
    assert wordnet_questions(folder, seed=1, count=3) == wordnet_questions(folder, seed=1, count=99)[:3]
    assert wordnet_questions(folder, seed=1, count=99) != wordnet_questions(folder, seed=2, count=99)


def test_files_that_are_not_wordnets_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.noun").write_text("00000001 03 n zz\n")
    with pytest.raises(UsageError, match="data.noun:1: not a line of WordNet's data.noun"):
        read_synsets(tmp_path / "data.noun")
    (tmp_path / "index.noun").write_text("word n\n")
    with pytest.raises(UsageError, match="index.noun:1: not a line"):
        read_senses(tmp_path / "index.noun")
    monkeypatch.setattr(wordnet, "wordnet_folder", lambda: tmp_path / "none")
    with pytest.raises(UsageError, match="is not there: ci/real-text fetches it"):
        check_wordnet()
    monkeypatch.setattr(wordnet, "wordnet_folder", lambda: folder)
    with pytest.raises(UsageError, match="not the one that is pinned"):
        check_wordnet()
    pins = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in wordnet.FILES}
    monkeypatch.setattr(wordnet, "FILES", pins)
    assert check_wordnet() == folder
