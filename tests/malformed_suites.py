"""One valid suite, and every way to get it wrong.

A case is an edit of ``BASE``. A « in its new text marks where the error must point, so that the expected line and column
come from the text and not from the code under test.
"""

from collections.abc import Iterator
from typing import NamedTuple

BASE = """\
suite: toy-walk
question: Does the walk drift?
image: core
experiment: toy
profiles:
  embedded:
    model: zoo:base
    steps: 8
    eval_every: 2
    note: plain
    verbose: false
    walk:
      drift: 0.5
      bounds: [-1.0, 1.0]
    tags: [a, b]
    weights: {left: 0.5}
  smoke: {model: zoo:child, steps: 2, matrix: {seed: [0, 1]}}
matrix:
  seed: [0, 1]
  rate: [1e-5, 0.5]
  exclude:
    - {seed: 1, rate: 0.5}
  include:
    - {seed: 0, note: first}
    - {seed: 7, rate: 0.25}
  max_cells: 16
claims:
  - id: ends-near
    source: "table 2"
    metric: value[step=8, seed=0]
    published: 0.25
    tolerance: 0.1
    profile: embedded
    derived: {value: 0.2, source: "footnote"}
    counter_evidence:
      - {statement: It does not., value: 0.9, source: "table 3"}
  - id: stays-low
    source: "table 4"
    metric: value
    relation: at_most
    published: 3
    profile: smoke
"""


def cut(start: str, end: str = "") -> str:
    """Return what stands in BASE from ``start`` up to ``end``, or to the end of the file."""
    begin = BASE.index(start)
    return BASE[begin : BASE.index(end, begin) if end else None]


class Case(NamedTuple):
    """Replace ``old``, which stands once in BASE, by ``new``; the error says ``says``."""

    old: str
    new: str
    says: str


NOT_WHOLE = [
    ("eight", "'eight'"), ("8.5", "8.5"), ("8.0", "8.0"), ('"8"', "'8'"), ("8_000", "'8_000'"), ("true", "true"),
    ("[8]", "a list"), ("{n: 8}", "a mapping"), ("null", "nothing"),
]  # fmt: skip
NOT_NUMBER = [
    ("half", "'half'"), ('"0.5"', "'0.5'"), ("yes", "'yes'"), ("false", "false"), ("[0.5]", "a list"), ("~", "nothing"),
]  # fmt: skip
NOT_TEXT = [
    ("5", "5"), ("1e-5", "1e-05"), ("true", "true"), ("[a]", "a list"), ("{a: b}", "a mapping"), ("null", "nothing"),
]  # fmt: skip

WHOLE = [
    ("steps: 8", "steps: @", "profiles.embedded.steps"),
    ("eval_every: 2", "eval_every: @", "profiles.embedded.eval_every"),
    ("steps: 2,", "steps: @,", "profiles.smoke.steps"),
    ("seed: [0, 1]\n  rate", "seed: [0, 1, @]\n  rate", "matrix.seed[2]"),
    ("seed: [0, 1]}}", "seed: [0, 1, @]}}", "profiles.smoke.matrix.seed[2]"),
    ("{seed: 7, rate: 0.25}", "{seed: @, rate: 0.25}", "matrix.include[1].seed"),
    ("max_cells: 16", "max_cells: @", "matrix.max_cells"),
]
NUMBER = [
    ("drift: 0.5", "drift: @", "profiles.embedded.walk.drift"),
    ("[-1.0, 1.0]", "[-1.0, @]", "profiles.embedded.walk.bounds[1]"),
    ("{left: 0.5}", "{left: @}", "profiles.embedded.weights.left"),
    ("[1e-5, 0.5]", "[1e-5, 0.5, @]", "matrix.rate[2]"),
    ("published: 0.25", "published: @", "claims[0].published"),
    ("tolerance: 0.1", "tolerance: @", "claims[0].tolerance"),
]
TEXT = [
    ("question: Does the walk drift?", "question: @", "question"),
    ("note: plain", "note: @", "profiles.embedded.note"),
    ("[a, b]", "[a, @]", "profiles.embedded.tags[1]"),
    ('"table 2"', "@", "claims[0].source"),
]


def wrong_types() -> Iterator[Case]:
    """Each kind of field, at each kind of place that can set it, with values of the other kinds."""
    groups = ((WHOLE, NOT_WHOLE, "a whole number"), (NUMBER, NOT_NUMBER, "a number"), (TEXT, NOT_TEXT, "text"))
    for fields, values, must_be in groups:
        for old, new, path in fields:
            for written, got in values:
                yield Case(old, new.replace("@", f"«{written}"), f"{path}: must be {must_be}, got {got}")


TYPES = [
    Case("verbose: false", "verbose: «no", "verbose: must be true or false, got 'no'"),
    Case("verbose: false", "verbose: «0", "verbose: must be true or false, got 0"),
    Case("[a, b]", "«a", "tags: must be a list, got 'a'"),
    Case("[a, b]", "«{a: b}", "tags: must be a list, got a mapping"),
    Case("[-1.0, 1.0]", "«2.0", "walk.bounds: must be a list, got 2.0"),
    Case("{left: 0.5}", "«[0.5]", "weights: must be a mapping, got a list"),
    Case("walk:\n      drift: 0.5\n      bounds: [-1.0, 1.0]", "walk: «fast", "walk: must be a mapping, got 'fast'"),
    Case("smoke: {model: zoo:child, steps: 2, matrix: {seed: [0, 1]}}", "smoke: «2", "smoke: must be a mapping, got 2"),
    Case(
        "smoke: {model: zoo:child, steps: 2, matrix: {seed: [0, 1]}}",
        "«smoke:",
        "smoke: must be a mapping, got nothing",
    ),
    Case("matrix: {seed: [0, 1]}", "matrix: «[0]", "profiles.smoke.matrix: must be a mapping, got a list"),
    Case("- id: ends-near", "- «ends-near\n  - id: b", "claims[0]: must be a mapping, got 'ends-near'"),
    Case(cut("claims:"), "claims: «none\n", "claims: must be a list, got 'none'"),
    Case("value[step=8, seed=0]", "«8", "claims[0].metric: must be text like overlap[step=500]"),
    Case('{value: 0.2, source: "footnote"}', "«0.2", "claims[0].derived: must be a mapping, got 0.2"),
    Case('{statement: It does not., value: 0.9, source: "table 3"}', "«no", "counter_evidence[0]: must be a mapping"),
    Case(
        '\n      - {statement: It does not., value: 0.9, source: "table 3"}', " «no", "counter_evidence: must be a list"
    ),
]

TYPOS = [
    Case("suite:", "«sutie:", "sutie: unknown key; did you mean 'suite'?"),
    Case("question:", "«qestion:", "qestion: unknown key; did you mean 'question'?"),
    Case("image:", "«imgae:", "imgae: unknown key; did you mean 'image'?"),
    Case("experiment:", "«experimnt:", "experimnt: unknown key; did you mean 'experiment'?"),
    Case("profiles:", "«profile:", "profile: unknown key; did you mean 'profiles'?"),
    Case("\nmatrix:", "\n«matirx:", "matirx: unknown key; did you mean 'matrix'?"),
    Case("claims:", "«claim:", "claim: unknown key; did you mean 'claims'?"),
    Case("image: core", "image: core\n«x-notes: {a: 1}", "x-notes: unknown key"),
    Case("model: zoo:base", "«modell: zoo:base", "profiles.embedded.modell: unknown key; did you mean 'model'?"),
    Case("steps: 8", "«step: 8", "profiles.embedded.step: unknown key; did you mean 'steps'?"),
    Case("eval_every:", "«evry:", "profiles.embedded.evry: unknown key; did you mean 'eval_every'?"),
    Case("verbose:", "«Verbose:", "profiles.embedded.Verbose: unknown key; did you mean 'verbose'?"),
    Case("drift:", "«drfit:", "profiles.embedded.walk.drfit: unknown key; did you mean 'drift'?"),
    Case("bounds:", "«bound:", "profiles.embedded.walk.bound: unknown key; did you mean 'bounds'?"),
    Case("tags:", "«tag:", "profiles.embedded.tag: unknown key; did you mean 'tags'?"),
    Case("note: plain", "«width: 3", "profiles.embedded.width: unknown key; did you mean 'walk.width'?"),
    Case("note: plain", "«walk.drift: 3", "profiles.embedded.walk.drift: unknown key; did you mean 'walk.drift'?"),
    Case("note: plain", "«qqqq: 3", "profiles.embedded.qqqq: unknown key; known: model, steps"),
    Case("note: plain", "«include: [{seed: 3}]", "profiles.embedded.include: unknown key"),
    Case("note: plain", '«"no te": x', "profiles.embedded.\"no te\": unknown key; did you mean 'note'?"),
    Case("note: plain", '«"a\\nb": x', 'profiles.embedded."a\\nb": unknown key'),
    Case("steps: 2,", "«stesp: 2,", "profiles.smoke.stesp: unknown key; did you mean 'steps'?"),
    Case("rate: [1e-5", "«ratte: [1e-5", "matrix.ratte: not a parameter; did you mean 'rate'?"),
    Case("rate: [1e-5", "«walk.widht: [1e-5", "matrix.walk.widht: not a parameter; did you mean 'walk.width'?"),
    Case("rate: [1e-5", "«walk.drift.x: [1e-5", "matrix.walk.drift.x: not a parameter"),
    Case("exclude:", "«exlude:", "matrix.exlude: not a parameter; did you mean 'exclude'?"),
    Case("include:", "«includes:", "matrix.includes: not a parameter; did you mean 'include'?"),
    Case("max_cells: 16", "«maxcells: [16]", "matrix.maxcells: not a parameter; did you mean 'max_cells'?"),
    Case("max_cells: 16", "maxcells: «16", "matrix.maxcells: must be a list, got 16"),
    Case("{seed: 1, rate: 0.5}", "{seed: 1, «rte: 0.5}", "matrix.exclude[0].rte: not an axis; did you mean 'rate'?"),
    Case(
        "{seed: 1, rate: 0.5}", "{seed: 1, «steps: 8}", "matrix.exclude[0].steps: not an axis; the axes are seed, rate"
    ),
    Case("note: first", "«notes: first", "matrix.include[0].notes: not a parameter; did you mean 'note'?"),
    Case("{seed: [0, 1]}}", "{seed: [0, 1], «sead: [3]}}", "profiles.smoke.matrix.sead: not a parameter"),
    Case("- id: ends-near", "- id: ends-near\n    «name: x", "claims[0].name: unknown key; known: id, statement"),
    Case('source: "table 2"', '«sources: "table 2"', "claims[0].sources: unknown key; did you mean 'source'?"),
    Case("metric: value[", "«metrics: value[", "claims[0].metrics: unknown key; did you mean 'metric'?"),
    Case("published: 0.25", "«publish: 0.25", "claims[0].publish: unknown key; did you mean 'published'?"),
    Case("tolerance: 0.1", "«tolerence: 0.1", "claims[0].tolerence: unknown key; did you mean 'tolerance'?"),
    Case("profile: embedded", "«profiles: embedded", "claims[0].profiles: unknown key; did you mean 'profile'?"),
    Case("derived:", "«derive:", "claims[0].derive: unknown key; did you mean 'derived'?"),
    Case("{value: 0.2,", "{«vale: 0.2,", "claims[0].derived.vale: unknown key; did you mean 'value'?"),
    Case("counter_evidence:", "«counterevidence:", "counterevidence: unknown key; did you mean 'counter_evidence'?"),
    Case("value: 0.9,", "«number: 0.9,", "claims[0].counter_evidence[0].number: unknown key"),
    Case("relation: at_most", "«relations: at_most", "claims[1].relations: unknown key; did you mean 'relation'?"),
]

LOW = cut("id: stays-low")
MISSING = [
    Case("suite: toy-walk\n", "«", "suite: missing"),
    Case("suite: toy-walk\nquestion: Does the walk drift?\n", "«suite: toy-walk\n", "question: missing"),
    Case(cut("profiles:", "\nmatrix:"), "profiles: «{}", "profiles: needs at least 1 entry, has 0"),
    Case(
        "embedded:\n    model: zoo:base\n",
        "«embedded:\n",
        "profiles.embedded.model: missing in cell seed=0,rate=1e-05,note=first; set it in",
    ),
    Case(
        "embedded:\n    model: zoo:base\n    steps: 8\n",
        "«embedded:\n    model: zoo:base\n",
        "profiles.embedded.steps: missing in",
    ),
    Case("smoke: {model: zoo:child, ", "«smoke: {", "profiles.smoke.model: missing in cell seed=0"),
    Case("bounds: [-1.0, 1.0]", "«bounds: [-1.0]", "profiles.embedded.walk.bounds[1]: missing"),
    Case('id: ends-near\n    source: "table 2"\n', "«id: ends-near\n", "claims[0].source: missing"),
    Case("id: ends-near\n    source", "«source", "claims[0].id: missing"),
    Case('id: stays-low\n    source: "table 4"\n', "«id: stays-low\n", "claims[1].source: missing"),
    Case(
        'id: stays-low\n    source: "table 4"\n    metric: value\n',
        '«id: stays-low\n    source: "4"\n',
        "claims[1].metric: missing",
    ),
    Case("derived: {value: 0.2, source:", "derived: «{source:", "claims[0].derived: needs a 'value', a 'table'"),
    Case('derived: {value: 0.2, source: "footnote"}', "«derived: {value: 0.2}", "claims[0].derived.source: missing"),
    Case("{statement: It does not., ", "«{", "claims[0].counter_evidence[0].statement: missing"),
    Case(
        '{statement: It does not., value: 0.9, source: "table 3"}',
        "«{statement: x}",
        "counter_evidence[0].source: missing",
    ),
    Case(LOW, f"«{LOW}".replace("    published: 3\n", ""), "claims[1].published: missing"),
    Case(
        LOW, f"«{LOW}".replace("    relation: at_most\n", ""), "claims[1]: relation 'equal' needs a tolerance above 0"
    ),
]

BOUNDS = [
    Case("steps: 8", "steps: «0", "steps: must be at least 1, got 0"),
    Case("steps: 8", "steps: «-8", "steps: must be at least 1, got -8"),
    Case("steps: 8", "steps: «10001", "steps: must be at most 10000, got 10001"),
    Case("eval_every: 2", "eval_every: «0", "eval_every: must be at least 1, got 0"),
    Case("steps: 2,", "steps: «0,", "profiles.smoke.steps: must be at least 1, got 0"),
    Case("drift: 0.5", "width: «65", "walk.width: must be at most 64, got 65"),
    Case("[1e-5, 0.5]", "[1e-5, 0.5, «0.0]", "matrix.rate[2]: must be above 0.0, got 0.0"),
    Case("[1e-5, 0.5]", "[1e-5, 0.5, «1]", "matrix.rate[2]: must be below 1.0, got 1"),
    Case("[1e-5, 0.5]", "[1e-5, 0.5, «-1e-5]", "matrix.rate[2]: must be above 0.0, got -1e-05"),
    Case("{seed: 7, rate: 0.25}", "{seed: «-7, rate: 0.25}", "matrix.include[1].seed: must be at least 0, got -7"),
    Case("{seed: 7, rate: 0.25}", "{seed: 7, rate: «25}", "matrix.include[1].rate: must be below 1.0, got 25"),
    Case("max_cells: 16", "max_cells: «0", "matrix.max_cells: must be at least 1, got 0"),
    Case("max_cells: 16", "max_cells: «5000", "matrix.max_cells: must be at most 4096, got 5000"),
    Case("tolerance: 0.1", "tolerance: «-0.1", "claims[0].tolerance: must be at least 0.0, got -0.1"),
    Case("tolerance: 0.1", "tolerance: «0", "claims[0].tolerance: relation 'equal' needs a tolerance above 0"),
    Case("[a, b]", "«[a, b, c, d, e]", "tags: needs at most 4 items, has 5"),
    Case("[-1.0, 1.0]", "«[-1.0, 0.0, 1.0]", "walk.bounds: needs at most 2 items, has 3"),
    Case(
        "model: zoo:base", "model: «zoo:bass", "'zoo:child' or 'zoo:stranger', got 'zoo:bass'; did you mean 'zoo:base'?"
    ),
    Case("model: zoo:base", "model: «null", "profiles.embedded.model: must be 'zoo:base'"),
    Case(
        "model: zoo:child",
        "model: «5",
        "profiles.smoke.model: must be 'zoo:base', 'zoo:child' or 'zoo:stranger', got 5",
    ),
    Case(
        "relation: at_most",
        "relation: «atmost",
        "'equal', 'at_least' or 'at_most', got 'atmost'; did you mean 'at_most'?",
    ),
    Case(
        "relation: at_most", "relation: «<=", "claims[1].relation: must be 'equal', 'at_least' or 'at_most', got '<='"
    ),
]

NAMES = [
    Case("suite: toy-walk", "suite: «Toy-Walk", "suite: must be lower-case words joined by '-', got 'Toy-Walk'"),
    Case("suite: toy-walk", "suite: «toy_walk", "suite: must be lower-case words"),
    Case("suite: toy-walk", "suite: «../toy", "suite: must be lower-case words"),
    Case("suite: toy-walk", '"suite": «"toy\\n"', "suite: must be lower-case words joined by '-', got 'toy\\n'"),
    Case("suite: toy-walk", "«suite:", "suite: must be text, got nothing"),
    Case("image: core", "image: «Core", "image: must be lower-case words"),
    Case("image: core", "image: «core:latest", "image: must be lower-case words"),
    Case("smoke: {", "«Smoke: {", "profiles.Smoke: must be lower-case words"),
    Case("smoke: {", "«smoke test: {", 'profiles."smoke test": must be lower-case words'),
    Case("question: Does the walk drift?", 'question: «" "', "question: must not be empty, got ' '"),
    Case('"table 2"', '«""', "claims[0].source: must not be empty, got ''"),
    Case('"table 4"', '«"  "', "claims[1].source: must not be empty"),
    Case("id: ends-near", "id: «Ends near", "claims[0].id: must be lower-case words"),
    Case("id: stays-low", "id: «ends-near", "claims[1].id: used already by claims[0]; ids are unique"),
    Case("profile: embedded", "profile: «embeded", "claims[0].profile: no profile 'embeded'; did you mean 'embedded'?"),
    Case("profile: smoke", "profile: «paper", "claims[1].profile: no profile 'paper'; it has embedded, smoke"),
    Case("experiment: toy", "experiment: «tyo", "no experiment 'tyo'"),
    Case("experiment: toy", "experiment: «toy.nothing", "no experiment 'toy.nothing'"),
    Case("experiment: toy", "experiment: «toy.run", "there is no module toy.run.params; an experiment is a package"),
    Case("experiment: toy", "experiment: «toy-walk", "no experiment 'toy-walk'"),
    Case("experiment: toy", "experiment: «__main__", "experiment"),
    Case("experiment: toy", 'experiment: «"."', "no experiment '.'"),
    Case("experiment: toy", "experiment: «json", "there is no module json.params"),
    Case("experiment: toy", "experiment: «[toy]", "experiment: must be text, got a list"),
    Case("suite: toy-walk\nquestion: Does the walk drift?\nimage: core\nexperiment: toy\n",
         "suite: «toy-walk\nquestion: Does the walk drift?\n", "suite: no experiment 'toy-walk'"),
]  # fmt: skip

INCLUDE = cut("    - {seed: 0, note", "  max_cells")
MATRIX = [
    Case("rate: [1e-5, 0.5]", "rate: «[]", "matrix.rate: needs at least 1 item, has 0"),
    Case("rate: [1e-5, 0.5]", "rate: «0.5", "matrix.rate: must be a list, got 0.5"),
    Case("rate: [1e-5, 0.5]", "rate: «{low: 1e-5}", "matrix.rate: must be a list, got a mapping"),
    Case("rate: [1e-5, 0.5]", "«rate:", "matrix.rate: must be a list, got nothing"),
    Case("rate: [1e-5, 0.5]", "rate: [1e-5, 0.5, «0.00001]", "matrix.rate[2]: given twice in this axis"),
    Case("seed: [0, 1]\n  rate", "seed: [0, 1, 2, «1]\n  rate", "matrix.seed[3]: given twice in this axis"),
    Case("seed: [0, 1]}}", "seed: [1, 3, «3]}}", "profiles.smoke.matrix.seed[2]: given twice in this axis"),
    Case("  rate: [1e-5", "  walk: [{drift: 1.0}]\n  «walk.drift: [2.0]\n  rate: [1e-5", "lies within the axis 'walk'"),
    Case("{seed: 1, rate: 0.5}", "«{}", "matrix.exclude[0]: needs at least 1 entry, has 0"),
    Case("{seed: 1, rate: 0.5}", "«{seed: 1, rate: 0.25}", "matrix.exclude[0]: matches no combination"),
    Case("{seed: 1, rate: 0.5}", "«{seed: 2}", "matrix.exclude[0]: matches no combination"),
    Case("{seed: 1, rate: 0.5}", "«{seed: true}", "matrix.exclude[0]: matches no combination"),
    Case("{seed: 1, rate: 0.5}", '«{seed: "1"}', "matrix.exclude[0]: matches no combination"),
    Case("{seed: 1, rate: 0.5}", "«seed", "matrix.exclude[0]: must be a mapping, got 'seed'"),
    Case("    - {seed: 1, rate: 0.5}", "    «seed: [1]", "matrix.exclude: must be a list, got a mapping"),
    Case(cut("exclude:", "  max_cells"), "«exclude:\n    - {seed: 0}\n    - {seed: 1}\n", "matrix.exclude: leaves no cell to run"),
    Case("{seed: 0, note: first}", "«{}", "matrix.include[0]: needs at least 1 entry, has 0"),
    Case("{seed: 0, note: first}", "«first", "matrix.include[0]: must be a mapping, got 'first'"),
    Case("{seed: 0, note: first}", "{seed: 0, note: «1}", "matrix.include[0].note: must be text, got 1"),
    Case(cut("rate: [1e-5", "\n    - {seed: 7"), "walk.drift: [1.0]\n  include:\n    - {seed: 0, «walk: {drift: 1.0}}", "overlaps the axis 'walk.drift'"),
    Case(INCLUDE, "    «seed: 7\n", "matrix.include: must be a list, got a mapping"),
    Case("{seed: 7, rate: 0.25}", "{seed: 7, rate: 0.25}\n    - {seed: «7, rate: 0.25}", "repeats cell seed=7,rate=0.25"),
    Case("{seed: 7, rate: 0.25}", "{seed: 7, rate: 0.25}\n    - {seed: «7, rate: 0.25, eval_every: 2}", "repeats cell seed=7"),
    Case("max_cells: 16", "max_cells: «3", "matrix.max_cells: the matrix has 4 cells, max_cells is 3"),
    Case(cut("matrix:\n", "claims"), f"«matrix:\n  seed: {[*range(257)]}\n", "the matrix has 257 cells, max_cells is 256"),
    Case(cut("matrix:\n", "claims"), f"«matrix:\n  seed: {[*range(2000)]}\n  steps: {[*range(1, 41)]}\n", "80,000 combinations"),
]  # fmt: skip

SELECTORS = [
    Case("value[step=8, seed=0]", f"{selector}", f"claims[0].metric: {says}")
    for selector, says in (
        ('"«"', "must begin with a metric's name"),
        ("«8value", "must begin with a metric's name"),
        ('"« value"', "must begin with a metric's name"),
        ("value«(step=8)", "expected '[' after the metric's name, got '('"),
        ("value« [step=8]", "expected '[' after the metric's name, got ' '"),
        ("value[«]", "expected a label"),
        ("value[step=8,«]", "expected a label"),
        ("value[step=8, «, seed=0]", "expected a label"),
        ("value[«8]", "expected a label"),
        ("value[step«]", "expected '=' and a value after 'step'"),
        ("value[step «> 8]", "expected '=' and a value after 'step'"),
        ('"value[step=«]"', "expected a value for 'step'"),
        ("value[step=«, seed=0]", "expected a value for 'step'"),
        ("value[step=«=8]", "expected a value for 'step'"),
        ("value[step=8«", "expected ',' or ']' after the value"),
        ("value[step=«[8]]", "expected a value for 'step'"),
        ("value[note=«'a b]", "a quote that is never closed"),
        ("value[step=8, «step=9]", "label 'step' given twice"),
        ("value[step=8]«.x", "nothing may follow the ']'"),
        ("value[step=8]«[seed=0]", "nothing may follow the ']'"),
        ("value[step=«.nan]", ".nan is not a finite number"),
        ("value[step=«99999999999999999999]", "99999999999999999999 is an integer beyond 64 bits"),
        ("value[step=«null]", "'step' needs a number or text, not null"),
        ("'value[step=8, seed«:0]'", "expected '=' and a value after 'seed'"),
    )
]


def table_case(says: str, **changes: str) -> Case:
    """A case in which the derived number names a table; a key that is changed to nothing is left out."""
    kept = ", ".join(
        f"{key}: {value}"
        for key, value in {"file": "t.csv", "statistic": "quantile", "at": "0.99", **changes}.items()
        if value
    )
    opened = "{" if "«" in kept else "«{"
    return Case(
        'source: "footnote"}', f'source: "footnote", table: {opened}{kept}}}}}', f"claims[0].derived.table{says}"
    )


TABLES = [
    Case("{value: 0.2, source", "{value: «half, source", "claims[0].derived.value: must be a number, got 'half'"),
    Case("{value: 0.2, source", '{value: «"0.2", source', "claims[0].derived.value: must be a number, got '0.2'"),
    Case("{value: 0.2, source", "«{value: null, source", "claims[0].derived: needs a 'value', a 'table'"),
    Case('source: "footnote"}', 'source: "footnote", table: «t.csv}', "derived.table: must be a mapping, got 't.csv'"),
    table_case(".file: must be text, got 5", file="«5"),
    table_case(".statistic: must be 'quantile', 'median', 'max'", statistic="«quantil"),
    table_case(": statistic 'quantile' needs 'at'", at=""),
    table_case(".at: statistic 'median' has no 'at'; leave it out", statistic="median", at="«0.5"),
    table_case(".at: must be a number, got '0.9'", at='«"0.9"'),
    table_case(".at: must lie between 0 and 1", at="«1.5"),
    table_case(".at: must lie between 0 and 1", at="«-0.5"),
    table_case(".at: must be above 0", statistic="tpr_at_fpr", at="«0"),
    table_case(".format: must be 'matrix' or 'pairs', got 'square'", format="«square"),
    table_case(".pairs: must be 'unrelated', 'related' or 'all', got 'strangers'", pairs="«strangers"),
    table_case(".pairs: statistic 'auroc' sets related", statistic="auroc", at="", pairs="«related"),
    table_case(".cluster: unknown key; known: file, format", **{"«cluster": "c.csv"}),
    Case(
        'source: "footnote"}', 'source: "footnote", «table: {statistic: max}}', "claims[0].derived.table.file: missing"
    ),
    Case('source: "footnote"}', 'source: "footnote", «table: {file: t}}', "claims[0].derived.table.statistic: missing"),
]

ALL = {
    "type": [*wrong_types(), *TYPES],
    "typo": TYPOS,
    "missing": MISSING,
    "bound": BOUNDS,
    "name": NAMES,
    "matrix": MATRIX,
    "selector": SELECTORS,
    "table": TABLES,
}
