"""Published tables of similarities: every form gives the same pairs, statistics match a plain reference, mistakes are located."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from modelassay.data.similarities.statistics import compute, summary, summary_lines
from modelassay.data.similarities.table import Similarities, read_similarities
from modelassay.errors import UsageError

NAMES = ("org/root", "org/child", "lab/other", "lab/far")
FAMILY = {"org/root": "r", "org/child": "r", "lab/other": "s", "lab/far": "t"}
SCORES = {(0, 1): 0.99, (0, 2): 0.5, (0, 3): -0.125, (1, 2): 0.25, (1, 3): 0.75}  # (2, 3) has no value

MATRIX = """\
,org/root,org/child,lab/other,lab/far
org/root,1.0,0.99,0.5,-0.125
org/child,0.99,1.0,0.25,0.75
lab/other,0.5,0.25,1.0,
lab/far,-0.125,0.75,,1.0
"""
UPPER = """\
model,org/root,org/child,lab/other,lab/far
lab/far,,,,
org/root,,0.99,0.5,-0.125
lab/other,,,,
org/child,,,0.25,0.75
"""
PAIRS = """\
model_a,note,model_b,Score,related
org/root,x,org/child,0.99,true
lab/other,x,org/root,0.5,false
org/root,x,lab/far,-.125,0
org/child,x,lab/other,2.5e-1,no
org/child,x,lab/far,0.75,False
lab/other,x,lab/far,,
"""
FAMILY_COLUMNS = """\
a,b,value,family_a,family_b
org/root,org/child,0.99,r,r
org/root,lab/other,0.5,r,s
org/root,lab/far,-0.125,r,t
org/child,lab/other,0.25,r,s
org/child,lab/far,0.75,r,t
"""
RECORDS = json.dumps([
    {"name1": NAMES[a], "name2": NAMES[b], "similarity": score, "label": int(FAMILY[NAMES[a]] == FAMILY[NAMES[b]])}
    for (a, b), score in SCORES.items()
])  # fmt: skip
MAPPING = json.dumps({
    NAMES[0]: {NAMES[b]: SCORES[0, b] for b in (1, 2, 3)}, NAMES[1]: {NAMES[2]: 0.25, NAMES[3]: 0.75, NAMES[1]: 1},
    NAMES[3]: {NAMES[2]: None},
})  # fmt: skip
FORMS = {
    "matrix.csv": (MATRIX, True), "upper.csv": (UPPER, True), "pairs.csv": (PAIRS, False), "columns.csv": (FAMILY_COLUMNS, False),
    "records.json": (RECORDS, False), "mapping.json": (MAPPING, True),
}  # fmt: skip
FAMILIES = {
    "families.csv": "name,cluster\n" + "".join(f"{name},{family}\n" for name, family in FAMILY.items()),
    "columns.csv": "Family,card,Model\n" + "".join(f"{family},x,{name}\n" for name, family in FAMILY.items()),
    "names.json": json.dumps(FAMILY),
    "groups.json": json.dumps({"r": NAMES[:2], "s": NAMES[2:3], "t": NAMES[3:]}),
    "lists.json": json.dumps([NAMES[:2], NAMES[2:3], NAMES[3:], ["not/in/the/table"]]),
    "as-file-names.csv": "name,cluster\n" + "".join(f"{n.replace('/', '_')},{f}\n" for n, f in FAMILY.items()),
}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def as_dict(table: Similarities) -> dict[frozenset[str], tuple[float, int]]:
    return {
        frozenset((table.names[a], table.names[b])): (float(score), int(related))
        for (a, b), score, related in zip(table.pairs_P2, table.scores_P, table.related_P, strict=True)
    }


EXPECTED = {
    frozenset((NAMES[a], NAMES[b])): (score, int(FAMILY[NAMES[a]] == FAMILY[NAMES[b]]))
    for (a, b), score in SCORES.items()
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_holds_the_same_pairs(name: str, tmp_path: Path) -> None:
    text, needs_families = FORMS[name]
    families = write(tmp_path, "families.csv", FAMILIES["families.csv"]) if needs_families else None
    table = read_similarities(write(tmp_path, name, text), families=families)
    assert as_dict(table) == EXPECTED
    assert table.num_missing == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_every_form_of_families_says_the_same(name: str, tmp_path: Path) -> None:
    families = tmp_path / "of"
    families.mkdir()
    table = read_similarities(write(tmp_path, "matrix.csv", MATRIX), families=write(families, name, FAMILIES[name]))
    assert as_dict(table) == EXPECTED


def test_directions_are_averaged_and_the_diagonal_ignored(tmp_path: Path) -> None:
    text = "\ufeff" + MATRIX.replace("org/child,0.99,1.0", "org/child,0.9904,1.17")
    table = read_similarities(write(tmp_path, "matrix.csv", text))
    assert as_dict(table)[frozenset(NAMES[:2])] == (pytest.approx(0.9902, abs=1e-12), -1)


def test_unknown_families_leave_pairs_open(tmp_path: Path) -> None:
    families = write(tmp_path, "families.csv", FAMILIES["families.csv"].replace("lab/far,t", "lab/far,"))
    table = read_similarities(write(tmp_path, "matrix.csv", MATRIX), families=families)
    assert {pair for pair, (_, related) in as_dict(table).items() if related == -1} == {
        pair for pair in EXPECTED if "lab/far" in pair
    }
    assert summary(table)["relation_not_known"] == 2


def big_table(folder: Path, *, ties: bool) -> Similarities:
    """60 names in 6 families, 1,770 pairs; related ones lie higher. ``ties`` rounds to one digit."""
    rng = np.random.default_rng(7)
    scores = rng.normal(size=(60, 60)) + 1.5 * (np.arange(60)[:, None] % 6 == np.arange(60)[None, :] % 6)
    scores = np.round((scores + scores.T) / 2, 1 if ties else 12)
    names = [f"m{index}" for index in range(60)]
    rows = [
        ",".join(["", *names]),
        *(",".join([name, *map(repr, row.tolist())]) for name, row in zip(names, scores, strict=True)),
    ]
    families = write(folder, "families.json", json.dumps({name: index % 6 for index, name in enumerate(names)}))
    return read_similarities(write(folder, "big.csv", "\n".join(rows)), families=families)


@pytest.mark.parametrize("ties", [False, True])
def test_statistics_match_their_definitions(ties: bool, tmp_path: Path) -> None:
    table = big_table(tmp_path, ties=ties)
    related, unrelated = table.scores_P[table.related_P == 1], table.scores_P[table.related_P == 0]
    assert (related.size, unrelated.size) == (6 * 45, 1770 - 270)
    assert compute(table, "median")[0] == pytest.approx(float(np.median(unrelated)), abs=1e-12)
    assert compute(table, "max", pairs="related")[0] == related.max()
    assert compute(table, "quantile", at=0.99, pairs="all")[0] == pytest.approx(
        np.quantile(table.scores_P, 0.99), abs=1e-12
    )
    assert compute(table, "share_above", at=0.5) == (sum(score > 0.5 for score in unrelated.tolist()) / 1500, 1500)
    auroc = mannwhitneyu(related, unrelated).statistic / (related.size * unrelated.size)
    assert compute(table, "auroc")[0] == pytest.approx(auroc, abs=1e-12)
    allowed = [t for t in np.unique(table.scores_P) if (unrelated >= t).mean() <= 0.01]
    assert compute(table, "tpr_at_fpr", at=0.01)[0] == max((related >= t).mean() for t in allowed)


def test_rates_that_cannot_be_seen_are_refused(tmp_path: Path) -> None:
    families = write(tmp_path, "families.csv", FAMILIES["families.csv"])
    table = read_similarities(write(tmp_path, "matrix.csv", MATRIX), families=families)
    with pytest.raises(
        UsageError, match="matrix.csv: 4 unrelated pairs cannot show a false-positive rate of 0.01; it takes 100"
    ):
        compute(table, "tpr_at_fpr", at=0.01)
    assert (compute(table, "tpr_at_fpr", at=0.25)[0], compute(table, "auroc")[1]) == (1.0, 5)
    assert "AUROC 1.0000, too few unrelated pairs for a TPR at 1 % FPR" in summary_lines([summary(table)])[0]


def test_summary_names_the_highest_pair_of_each_kind(tmp_path: Path) -> None:
    families = write(tmp_path, "families.csv", FAMILIES["families.csv"])
    result = summary(read_similarities(write(tmp_path, "matrix.csv", MATRIX), families=families))
    assert json.loads(json.dumps(result)) == result
    assert {kind: (group["n"], group["max_pair"]) for kind, group in result["groups"].items()} == {
        "related": (1, ["org/root", "org/child"]), "unrelated": (4, ["org/child", "lab/far"]),
    }  # fmt: skip
    assert result["groups"]["unrelated"]["median"] == 0.375
    assert (result["auroc"], result["tpr_at_fpr_0.01"], result["without_value"]) == (1.0, None, 1)


def test_statistics_that_need_relations_say_so(tmp_path: Path) -> None:
    table = read_similarities(write(tmp_path, "matrix.csv", MATRIX))
    with pytest.raises(
        UsageError, match="matrix.csv: which of its models are related is not known; name a file of families"
    ):
        compute(table, "auroc")
    strangers = PAIRS.replace("true", "")
    with pytest.raises(UsageError, match="pairs.csv: none of its pairs is related"):
        compute(read_similarities(write(tmp_path, "pairs.csv", strangers)), "tpr_at_fpr", at=0.01)


def edit(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


TWO = "a,b,similarity\nx,y,0.5\n"
MALFORMED: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("t.csv", "", ": empty; was it downloaded whole?"),
    "only commas": ("t.csv", ",,,\n,,\n", ": empty; was it downloaded whole?"),
    "not UTF-8": ("t.csv", MATRIX.encode().replace(b"lab/far,-", b"lab/f\xe4r,-"), ":5: byte 0xe4 is not UTF-8; save"),
    "semicolons": ("t.csv", MATRIX.replace(",", ";"), ":1: one column; separate the cells by commas"),
    "tabs": ("t.csv", MATRIX.replace(",", "\t"), ":1: one column; separate the cells by commas"),
    "open quote": ("t.csv", edit(MATRIX, "lab/other,0.5", '"lab/other,0.5'), ":4: not CSV (unexpected end of data); check"),
    "text after a quote": ("t.csv", edit(MATRIX, "lab/other,0.5", '"lab"/other,0.5'), ":4: not CSV ("),
    "no known column": ("t.csv", "first,second,s\nx,y,1\n", ":1: columns 'first', 'second', 's': a matrix has the names"),
    "column twice": ("t.csv", edit(MATRIX, "lab/other,lab/far\n", "org/root,lab/far\n"),
                     ":1: 'org/root' names two columns, 2 and 4; names are unique"),
    "column without name": ("t.csv", edit(MATRIX, "lab/other,lab/far\n", ",lab/far\n"), ":1: a name is missing; every model"),
    "row twice": ("t.csv", edit(MATRIX, "lab/far,-", "lab/other,-"), ":5: row 'lab/other' is already on line 4;"),
    "row unknown": ("t.csv", edit(MATRIX, "lab/far,-", "lab/fat,-"),
                    ":5: row 'lab/fat' is not among the columns; did you mean 'lab/far'?; a matrix is square"),
    "row missing": ("t.csv", edit(MATRIX, "lab/far,-0.125,0.75,,1.0\n", ""), ":4: the last row, and there is none for 'lab/far';"),
    "row too short": ("t.csv", edit(MATRIX, "0.5,0.25,1.0,", "0.5,0.25,1.0"), ":4: row 'lab/other' has 3 values, the first row names 4"),
    "row too long": ("t.csv", edit(MATRIX, "0.5,0.25,1.0,", "0.5,0.25,1.0,,"), ":4: row 'lab/other' has 5 values, the first row"),
    "text for a number": ("t.csv", edit(MATRIX, "0.5,-0.125", "half,-0.125"),
                          ":2: 'org/root' with 'lab/other' is 'half', not a finite number; leave the cell empty"),
    "not a number": ("t.csv", edit(MATRIX, "0.5,-0.125", "nan,-0.125"), ":2: 'org/root' with 'lab/other' is 'nan', not a finite"),
    "infinite": ("t.csv", edit(MATRIX, "0.5,-0.125", "1e999,-0.125"), ":2: 'org/root' with 'lab/other' is '1e999', not a finite"),
    "underscores": ("t.csv", edit(MATRIX, "0.5,-0.125", "1_0,-0.125"), "is '1_0', not a finite number"),
    "percent": ("t.csv", edit(MATRIX, "0.5,-0.125", "50 %,-0.125"), "is '50 %', not a finite number"),
    "bad diagonal": ("t.csv", edit(MATRIX, "org/root,1.0", "org/root,one"), ":2: 'org/root' with 'org/root' is 'one'"),
    "not symmetric": ("t.csv", edit(MATRIX, "lab/other,0.5", "lab/other,0.51"),
                      ":4: 'lab/other' with 'org/root' is 0.51 here and 0.5 the other way round (line 2)"),
    "no values": ("t.csv", ",x,y\nx,1,\ny,,1\n", ": holds no value of two different names"),
    "one name": ("t.csv", ",x\nx,1\n", ": holds no value of two different names"),
    "pair twice": ("t.csv", f"{TWO}x,y,0.5\n", ":3: 'x' with 'y' is already on line 2; keep one of them"),
    "pair both ways": ("t.csv", f"{TWO}y,x,0.6\n", ":3: 'y' with 'x' is 0.6 here and 0.5 the other way round (line 2)"),
    "pair without name": ("t.csv", f"{TWO},z,0.5\n", ":3: a name is missing"),
    "pair too short": ("t.csv", f"{TWO}x,z\n", ":3: 2 cells, the first line has 3"),
    "related is no truth": ("t.csv", edit(PAIRS, "true", "maybe"), ":2: 'maybe' is no truth value; write true, false or nothing"),
    "related disagrees": ("t.csv", "a,b,score,related\nx,y,1,1\ny,x,1,0\n", ":3: 'y' with 'x' is 0 here and 1 the other way round"),
    "two families": ("t.csv", edit(FAMILY_COLUMNS, "lab/far,0.75,r,t", "lab/far,0.75,r,s"),
                     ":6: 'lab/far' is of family 's' here, of 't' above; a model has one"),
    "JSON syntax": ("t.json", '{"x": {"y": 0.5,}}', ":1:17: not JSON: "),
    "JSON text": ("t.json", '"x"', ": must be a list of records or a mapping of mappings, is "),
    "JSON key twice": ("t.json", '{"x": {"y": 0.5, "y": 0.6}}', ": key 'y' given twice in one mapping; names are unique"),
    "JSON NaN": ("t.json", '{"x": {"y": NaN}}', ": NaN is not a finite number; write null where there is no value"),
    "JSON huge": ("t.json", '{"x": {"y": 1e999}}', ": entry 1: 'x' with 'y' is 'Infinity', not a finite number"),
    "JSON huge integer": ("t.json", '{"x": {"y": 1' + 400 * "0" + "}}", ": entry 1: 'x' with 'y' is '1000"),
    "JSON truth": ("t.json", '{"x": {"y": true}}', ": entry 1: 'x' with 'y' is 'true', not a finite number"),
    "JSON text value": ("t.json", '{"x": {"y": "0.5"}}', ": entry 1: 'x' with 'y' is "),
    "JSON not symmetric": ("t.json", '{"x": {"y": 0.5}, "y": {"x": 0.4}}',
                           ": entry 2: 'y' with 'x' is 0.4 here and 0.5 the other way round (entry 1)"),
    "JSON row": ("t.json", '{"x": [0.5]}', ": 'x' must be a mapping, is '[0.5]'"),
    "JSON families": ("t.json", '[["x", "y"]]', ": entry 1 must be a mapping, is "),
    "JSON record": ("t.json", '[{"a": "x", "similarity": 1}]', ": entry 1: keys 'a', 'similarity': a record has a, b and similarity"),
    "JSON name": ("t.json", '[{"a": "x", "b": 5, "similarity": 1}]', ": entry 1: a name is not text; quote it"),
    "JSON deep": ("t.json", "[" * 100_000, ": brackets nested more than 64 deep; keep only the similarities"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_tables_are_located(case: str, tmp_path: Path) -> None:
    name, text, says = MALFORMED[case]
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as caught:
        read_similarities(path)
    assert str(caught.value).startswith(f"{path}{says}" if says.startswith(":") else f"{path}:")
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


MALFORMED_FAMILIES = {
    "no header": ("f.csv", "org/root,r\norg/child,r\n", ":1: columns 'org/root', 'r': the first line must be name,cluster"),
    "name twice": ("f.csv", FAMILIES["families.csv"] + "org/root,s\n", ":6: 'org/root' is listed twice; a model has one family"),
    "name missing": ("f.csv", FAMILIES["families.csv"] + ",s\n", ":6: a name is missing"),
    "row too short": ("f.csv", FAMILIES["families.csv"] + "x\n", ":6: 1 cells, the first line has 2"),
    "model left out": ("f.csv", edit(FAMILIES["families.csv"], "org/child,r\n", ""), ": no family for 'org/child' of "),
    "model misspelt": ("f.json", json.dumps({**FAMILY, "lab/fat": "t"} | {"lab/far": None}).replace("lab/far", "lab/faz"),
                       ": no family for 'lab/far' of "),
    "folded names meet": ("f.csv", "name,cluster\n" + "".join(f"{n.replace('/', sep)},{sep}\n" for n in NAMES for sep in ("_", "/"))
                          .replace("org/root,/\n", "").replace("org_root,_\n", ""), ": no family for 'org/root' of "),
    "JSON members": ("f.json", '{"r": ["org/root"], "s": "lab/far"}', ": family 's' must be a list of names, got "),
    "JSON numbers": ("f.json", '[["org/root", 5]]', ": family '0' must be a list of names, got "),
    "JSON text": ("f.json", '"r"', ": must be a mapping of names to families or a list of lists of names"),
    "JSON twice": ("f.json", '[["org/root"], ["org/root"]]', ": 'org/root' is listed twice; a model has one family"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED_FAMILIES)
def test_malformed_families_are_located(case: str, tmp_path: Path) -> None:
    name, text, says = MALFORMED_FAMILIES[case]
    path = write(tmp_path, name, text)
    with pytest.raises(UsageError) as caught:
        read_similarities(write(tmp_path, "matrix.csv", MATRIX), families=path)
    assert str(caught.value).startswith(f"{path}{says}")


def test_relations_are_said_once(tmp_path: Path) -> None:
    families = write(tmp_path, "families.csv", FAMILIES["families.csv"])
    for text in (PAIRS, FAMILY_COLUMNS):
        with pytest.raises(
            UsageError,
            match="has its own column of families or of related pairs; drop it, or --families .*families.csv",
        ):
            read_similarities(write(tmp_path, "pairs.csv", text), families=families)
    both = write(tmp_path, "both.csv", "a,b,score,related,family_a,family_b\nx,y,1,1,r,r\n")
    with pytest.raises(UsageError, match="has a column of families and a column 'related'"):
        read_similarities(both)


def test_a_form_that_is_named_must_be_the_files(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="matrix.csv:1: columns '', 'org/root', 'org/child', 'lab/other' ...: a matrix has"
    ):
        read_similarities(write(tmp_path, "matrix.csv", MATRIX), form="pairs")
    with pytest.raises(UsageError, match="pairs.csv:2: row 'org/root' is not among the columns; a matrix is square"):
        read_similarities(write(tmp_path, "pairs.csv", PAIRS), form="matrix")
    with pytest.raises(UsageError, match="mapping.json: must be a list of records, is "):
        read_similarities(write(tmp_path, "mapping.json", MAPPING), form="pairs")


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "gone.csv", "cannot be read: No such file"), (tmp_path, "a folder; name a CSV")):
        with pytest.raises(UsageError, match=says):
            read_similarities(path)


def test_too_many_names_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", ",".join(["", *(f"m{index}" for index in range(1201))]) + "\n")
    with pytest.raises(UsageError, match="t.csv:1: more than 1,200 names"):
        read_similarities(path, form="matrix")
