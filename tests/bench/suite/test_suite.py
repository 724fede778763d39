"""What valid suites mean: values, layers, cells, ids, claims, and what is stored of them."""

import difflib
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

import modelassay
from modelassay import suite as suites
from modelassay.commands.check import check_files
from modelassay.errors import SuiteError
from modelassay.experiments import Experiment, find_experiment
from modelassay.suite import (
    Suite,
    check_suite,
    load_suite,
    parse_selector,
    shipped_suites,
    suite_from_json,
    suite_schema,
)
from modelassay.suite.cells import SCHEMA_VERSION, cell_id, stored_cell_id
from modelassay.suite.form import SuiteForm
from modelassay.suite.located_yaml import parse
from modelassay.suite.problems import Problems, validate
from support.malformed_suites import BASE
from toy.params import Params

ROOT = Path(__file__).parents[3]


@pytest.fixture
def base(tmp_path: Path) -> str:
    path = tmp_path / "suite.yaml"
    path.write_text(BASE)
    return str(path)


def load(tmp_path: Path, profile: str, *, rest: str = "", overrides: Sequence[str] = ()) -> Suite:
    """Load a suite of one profile written on one line, followed by ``rest``."""
    path = tmp_path / "suite.yaml"
    path.write_text(f"suite: toy\nquestion: q\nexperiment: toy\nprofiles:\n  embedded: {profile}\n{rest}")
    return load_suite(str(path), overrides=overrides)


def params_of(suite: Suite, number: int = 0) -> Params:
    params = suite.cells[number].params
    assert isinstance(params, Params)
    return params


def test_cells_are_the_product_in_the_order_of_the_axes(base: str) -> None:
    suite = load_suite(base)
    assert [cell.label for cell in suite.cells] == [
        "seed=0,rate=1e-05,note=first",
        "seed=0,rate=0.5,note=first",
        "seed=1,rate=1e-05",
        "seed=7,rate=0.25",
    ]
    assert params_of(suite, 0) == Params(
        model="zoo:base", steps=8, eval_every=2, note="first", walk={"drift": 0.5, "bounds": (-1.0, 1.0)},
        tags=[str(Path("a").absolute()), str(Path("b").absolute())], weights={"left": 0.5}, seed=0, rate=1e-5,
    )  # fmt: skip
    assert params_of(suite, 3).note == "plain"
    assert suite.cells[3].axes == {"seed": 7, "rate": 0.25}
    assert suite.profile == "embedded"
    assert suite.experiment == Experiment("toy-walk", "toy")


def test_without_a_matrix_there_is_one_cell(tmp_path: Path) -> None:
    for rest in ("", "matrix: {}\n", "matrix: {max_cells: 1}\n"):
        suite = load(tmp_path, "{model: zoo:base, steps: 1}", rest=rest)
        assert [(cell.label, dict(cell.axes)) for cell in suite.cells] == [("the only cell", {})]


def test_labels_quote_text_that_reads_as_something_else(tmp_path: Path) -> None:
    rest = 'matrix:\n  note: ["5", "true", plain, "1e999"]\n  tags: [[a, b]]\n'
    labels = [cell.label for cell in load(tmp_path, "{model: zoo:base, steps: 1}", rest=rest).cells]
    assert labels == [f'note={note},tags=["a","b"]' for note in ('"5"', '"true"', "plain", '"1e999"')]


def test_axes_reach_into_groups_and_merge_with_the_profile(tmp_path: Path) -> None:
    rest = "matrix:\n  walk.width: [1, 2]\n  weights: [{b: 2.0}]\n"
    suite = load(tmp_path, "{model: zoo:base, steps: 1, walk: {drift: 0.5}, weights: {a: 1.0}}", rest=rest)
    assert [(params_of(suite, n).walk.drift, params_of(suite, n).walk.width) for n in (0, 1)] == [(0.5, 1), (0.5, 2)]
    assert params_of(suite).weights == {"a": 1.0, "b": 2.0}


def test_a_profile_replaces_the_matrix_key_by_key(tmp_path: Path) -> None:
    profile = "{model: zoo:base, steps: 1, matrix: {seed: [5], exclude: [{rate: 0.5}]}}"
    suite = load(tmp_path, profile, rest="matrix:\n  seed: [0, 1]\n  rate: [0.1, 0.5]\n  exclude: [{seed: 1}]\n")
    assert [dict(cell.axes) for cell in suite.cells] == [{"seed": 5, "rate": 0.1}]


def test_keys_and_profiles_that_only_hold_anchors_are_no_scales(tmp_path: Path) -> None:
    text = (
        "suite: toy-walk\nexperiment: toy\nquestion: q\nx-seeds: &seeds [4, 5]\nx-lr: &lr 0.25\nprofiles:\n"
        "  x-shared: &shared\n    model: zoo:base\n    rate: *lr\n  x-list: [1]\n"
        "  smoke: {<<: *shared, steps: 1}\n  paper: {<<: *shared, steps: 2, rate: 0.5}\nmatrix: {seed: *seeds}\n"
    )
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    assert check_suite(path) == [("smoke", 2), ("paper", 2)]
    suite = load_suite(str(path), profile="smoke")
    assert (params_of(suite).rate, params_of(suite).steps, dict(suite.cells[1].axes)) == (0.25, 1, {"seed": 5})
    with pytest.raises(SuiteError, match="no profile 'x-shared'.*choose one of smoke, paper"):
        load_suite(str(path), profile="x-shared")
    path.write_text(text.replace("smoke:", "x-smoke:").replace("paper:", "x-paper:"))
    with pytest.raises(SuiteError, match="profiles: needs at least 1 entry"):
        check_suite(path)


def test_a_suites_exclude_may_miss_a_profiles_axis(base: str) -> None:
    assert len(load_suite(base, overrides=["matrix.seed=[4, 5]"]).cells) == 6


def test_overrides_are_the_top_layer(base: str) -> None:
    overrides = ["steps=9", "steps=0x10", "walk.width=5", "weights.right=1e-5", "tags=[x]", "note=no", "exit_at=null"]
    suite = load_suite(base, overrides=overrides)
    for params in (params_of(suite, number) for number in range(4)):
        assert (params.steps, params.walk.width, params.walk.drift, params.tags) == (
            16,
            5,
            0.5,
            [str(Path("x").absolute())],
        )
        assert (params.weights, params.note, params.exit_at) == ({"left": 0.5, "right": 1e-5}, "no", None)
    assert suite.overrides == tuple(overrides)
    assert {cell.id for cell in suite.cells}.isdisjoint(cell.id for cell in load_suite(base).cells)


def test_overrides_replace_and_add_axes(base: str) -> None:
    axes = ["matrix.seed=[3]", "matrix.walk.width=[1, 2]", "matrix.include=[{seed: 9}]"]
    suite = load_suite(base, overrides=axes)
    assert [dict(cell.axes) for cell in suite.cells] == [
        {"seed": 3, "rate": rate, "walk.width": width} for rate in (1e-5, 0.5) for width in (1, 2)
    ] + [{"seed": 9}]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evry=3", "-o evry=3: evry: unknown parameter; did you mean 'eval_every'?"),
        ("walk.widht=3", "-o walk.widht=3: walk.widht: unknown parameter; did you mean 'walk.width'?"),
        ("width=3", "-o width=3: width: unknown parameter; did you mean 'walk.width'?"),
        ("steps.x=3", "-o steps.x=3: steps.x: unknown parameter"),
        ("matrix.sed=[1]", "-o matrix.sed=[1]: matrix.sed: unknown parameter; did you mean 'matrix.seed'?"),
        ("matrix=[1]", "-o matrix=[1]: matrix: unknown parameter"),
        ("steps=abc", "-o steps=abc: steps: must be a whole number, got 'abc'"),
        ("steps=", "-o steps=: steps: has no value; write null"),
        ("steps=0", "-o steps=0: steps: must be at least 1, got 0"),
        ("walk=fast", "-o walk=fast: walk: must be a mapping, got 'fast'"),
        ("walk={widht: 3}", "-o walk={widht: 3}: walk.widht: unknown key; did you mean 'width'?"),
        ("tags=[a, 5]", "-o tags=[a, 5]: tags[1]: must be text, got 5"),
        ("seed=3", "-o seed=3: seed: is an axis of the matrix; give its values with -o 'matrix.seed=[...]'"),
        ("matrix.seed=3", "-o matrix.seed=3: matrix.seed: must be a list, got 3"),
        ("matrix.seed=[]", "-o matrix.seed=[]: matrix.seed: needs at least 1 item, has 0"),
        ("matrix.seed=[1, 1]", "-o matrix.seed=[1, 1]: matrix.seed[1]: given twice in this axis"),
        ("matrix.seed=[-1]", "-o matrix.seed=[-1]: matrix.seed[0]: must be at least 0, got -1"),
        ("matrix.max_cells=2", "-o matrix.max_cells=2: matrix.max_cells: the matrix has 4 cells, max_cells is 2"),
        (
            "matrix.exclude=[{sed: 1}]",
            "-o matrix.exclude=[{sed: 1}]: matrix.exclude[0].sed: not an axis; did you mean 'seed'?",
        ),
        ("steps", "-o steps: must be PATH=VALUE"),
        ("=3", "-o =3: must be PATH=VALUE"),
        ("", "-o : must be PATH=VALUE"),
        ("a b=3", "-o a b=3: must be PATH=VALUE"),
        ("steps=[", "-o steps=[: steps: not valid YAML"),
        ("note=[a: b: c]", "-o note=[a: b: c]: note: not valid YAML"),
        ("note=\0", "-o note=\\x00: note: character U+0000 is not allowed in YAML"),
        ("note=@", "-o note=@: note: . cannot be read as a list of lines"),
        (
            "tags=@/nowhere/list",
            "-o tags=@/nowhere/list: tags: /nowhere/list cannot be read as a list of lines: No such file",
        ),
        ("note=*x", "-o note=*x: note: begins with '*', which YAML reserves; quote text"),
        ("steps=.nan", "-o steps=.nan: steps: .nan is not a finite number"),
        ("no\nte=x", "-o no\\nte=x: must be PATH=VALUE"),
    ],
)
def test_override_mistakes(base: str, override: str, message: str) -> None:
    with pytest.raises(SuiteError) as caught:
        load_suite(base, overrides=[override])
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()
    assert caught.value.line is None


def test_a_list_is_the_lines_of_a_file(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# tags\n /a: b # no comment \n\n/\u00e4'\"\nzoo:1\r\n", encoding="utf-8-sig")
    suite = load_suite(base, overrides=[f"tags=@{path}"])
    assert suite.cells[0].params.model_dump()["tags"] == ["/a: b # no comment", "/\u00e4'\"", "zoo:1"]
    assert load_suite(base, overrides=[f'note="@{path}"']).cells[0].params.model_dump()["note"] == f"@{path}"
    with pytest.raises(SuiteError, match="must be text, got a list"):
        load_suite(base, overrides=[f"note=@{path}"])
    path.write_text("\n# nothing\n")
    with pytest.raises(SuiteError, match="holds no line; write one value a line"):
        load_suite(base, overrides=[f"tags=@{path}"])
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SuiteError, match="cannot be read as a list of lines"):
        load_suite(base, overrides=[f"tags=@{path}"])
    path.write_text("s3cretvalue0123456789abcdef\n")
    monkeypatch.setenv("HF_TOKEN", "s3cretvalue0123456789abcdef")
    with pytest.raises(SuiteError):
        load_suite(base, overrides=[f"tags=@{path}"])


def test_provenance_names_the_layer_of_each_leaf(base: str) -> None:
    suite = load_suite(base, overrides=["steps=9", "matrix.rate=[0.25]", "matrix.walk.width=[2]"])
    assert {
        leaf: suite.provenance[leaf] for leaf in ("model", "steps", "seed", "note", "rate", "walk.width", "pause_ms")
    } == {
        "model": f"profile embedded ({base}:7)",
        "steps": "-o",
        "seed": f"matrix ({base}:19)",
        "note": f"matrix ({base}:24)",
        "rate": "matrix (-o matrix.rate=[0.25])",
        "walk.width": "matrix (-o matrix.walk.width=[2])",
        "pause_ms": "default",
    }
    assert suite.provenance["walk.drift"] == f"profile embedded ({base}:13)"
    assert suite.provenance["weights.left"] == f"profile embedded ({base}:16)"


class Tiny(BaseModel):
    """Parameters for a pinned id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float = 1e-5
    name: str = "é"


def test_ids_are_pinned() -> None:
    """The id that runs of earlier versions used; it changes only together with SCHEMA_VERSION."""
    canonical = '{"experiment":"lab.tiny","params":{"name":"é","rate":1e-05},"schema":1}'
    reference = hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()[:12]
    assert cell_id(Experiment("tiny", "lab.tiny"), Tiny()) == reference == "fa1ce90f7754"
    assert SCHEMA_VERSION == 1


def test_ids_depend_on_values_alone(tmp_path: Path) -> None:
    """Key order, notation, the layer that set a value and the file's name change nothing; a value or the package does."""
    one = load(tmp_path, "{model: zoo:base, steps: 10, walk: {drift: 1, width: 2}}", rest="matrix: {seed: [1]}\n")
    other = load(
        tmp_path, "{walk: {width: 2}, seed: 1, model: zoo:base}", rest="matrix: {steps: [0xA], walk.drift: [1.0]}\n"
    )
    over = load(tmp_path, "{model: zoo:base, steps: 1, seed: 1}", overrides=["steps=10", "walk={drift: 1e0, width: 2}"])
    assert one.cells[0].id == other.cells[0].id == over.cells[0].id
    assert re.fullmatch("[0-9a-f]{12}", one.cells[0].id)
    changed = load(tmp_path, "{model: zoo:base, steps: 10, walk: {drift: 1, width: 3}, seed: 1}")
    assert changed.cells[0].id != one.cells[0].id
    assert cell_id(Experiment("toy", "elsewhere"), one.cells[0].params) != one.cells[0].id


def test_ids_are_the_same_in_another_process(base: str) -> None:
    code = f"from modelassay.suite import load_suite; print(*(cell.id for cell in load_suite({base!r}).cells))"
    path = [str(ROOT / "bench"), str(ROOT / "tests"), str(ROOT / "kernels")]
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(path), "PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
    )
    assert out.stdout.decode().split() == [cell.id for cell in load_suite(base).cells]


def test_reading_suites_imports_neither_torch_nor_polars() -> None:
    code = (
        "import sys, modelassay.suite; print(sorted({'torch', 'polars', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "bench")}, capture_output=True, check=True
    )
    assert out.stdout.decode().strip() == "[]"


def test_default_profile(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    head = "suite: toy\nquestion: q\nexperiment: toy\nprofiles:\n"
    path.write_text(f"{head}  only: {{model: zoo:base, steps: 1}}\n")
    assert load_suite(str(path)).profile == "only"
    path.write_text(f"{head}  one: {{model: zoo:base, steps: 1}}\n  two: {{model: zoo:base, steps: 1}}\n")
    assert load_suite(str(path), profile="two").profile == "two"
    with pytest.raises(SuiteError, match=rf"^{path}:4:1: profiles: choose one of one, two with --profile$"):
        load_suite(str(path))
    with pytest.raises(SuiteError, match=rf"^{path}:4:1: profiles: no profile 'tow'; did you mean 'two'\?"):
        load_suite(str(path), profile="tow")


def test_claims(base: str) -> None:
    first, second = load_suite(base).claims
    assert (first.metric.name, first.metric.labels) == ("value", {"step": 8, "seed": 0})
    assert (first.published, first.tolerance, first.relation, first.profile) == (0.25, 0.1, "equal", "embedded")
    assert first.derived is not None
    assert (first.derived.value, first.derived.source) == (0.2, "footnote")
    assert [(item.statement, item.value) for item in first.counter_evidence] == [("It does not.", 0.9)]
    assert (second.relation, second.tolerance, second.metric.labels, second.statement) == ("at_most", 0.0, {}, None)


@pytest.mark.parametrize(
    ("text", "labels", "canonical"),
    [
        ("a", {}, "a"),
        ("a[b=1]", {"b": 1}, "a[b=1]"),
        ("a[ b = 1 , c = x y ]", {"b": 1, "c": "x y"}, "a[b=1, c=x y]"),
        ("a/b.c[rate=1e-5]", {"rate": 1e-5}, "a/b.c[rate=1e-05]"),
        ("a[b='1', c=\"x, y]\"]", {"b": "1", "c": "x, y]"}, 'a[b="1", c="x, y]"]'),
        ("a[b=true, c='true']", {"b": True, "c": "true"}, 'a[b=true, c="true"]'),
        ("a[model=hf:Org/Name@abc, b='say \"hi\"']", {"model": "hf:Org/Name@abc", "b": 'say "hi"'}, None),
        ("a[b='', c=' x']", {"b": "", "c": " x"}, "a[b=\"\", c=\" x\"]"),
    ],
)  # fmt: skip
def test_selectors(text: str, labels: dict[str, object], canonical: str | None) -> None:
    selector = parse_selector(text)
    assert selector.labels == labels
    assert [type(value) for value in selector.labels.values()] == [type(value) for value in labels.values()]
    assert canonical in {None, str(selector)}
    assert parse_selector(str(selector)) == selector


def test_a_stored_suite_is_the_suite(base: str) -> None:
    suite = load_suite(base, overrides=["steps=9", "walk.bounds=[-2, 2]"])
    stored = json.loads(json.dumps(suite.to_json()))
    assert suite_from_json(stored) == suite
    assert suite_from_json(stored).to_json() == stored


def test_a_stored_suite_that_was_changed_is_refused(base: str) -> None:
    def error(change: object) -> str:
        stored = json.loads(json.dumps(load_suite(base).to_json()))
        change(stored)  # type: ignore[operator]
        with pytest.raises(SuiteError) as caught:
            suite_from_json(stored)
        return str(caught.value)

    assert "changed by hand" in error(lambda stored: stored["cells"][0]["params"].update(steps=4))
    assert error(lambda stored: stored["cells"][0]["params"].update(steps=0)).startswith("run.json: steps: ")
    assert error(lambda stored: stored["cells"][0]["params"].update(evry=1)).startswith("run.json: evry: ")
    assert error(lambda stored: stored.pop("cells")).startswith("run.json: cells: ")
    assert error(lambda stored: stored["claims"][0].update(metric="a[")).startswith("run.json: claims.0.metric: ")
    assert "no experiment 'gone'" in error(lambda stored: stored["experiment"].update(package="gone"))


def test_a_stored_cell_keeps_its_id_when_a_parameter_was_added_since(base: str) -> None:
    suite = load_suite(base)
    stored = suite.to_json()
    before = stored["cells"][0]
    del before["params"]["pause_ms"]
    before["id"] = stored_cell_id(suite.experiment, before["params"])  # as the version without it did
    (restored, *others) = suite_from_json(stored).cells
    assert (restored.id, restored.params) == (before["id"], suite.cells[0].params)
    assert tuple(others) == suite.cells[1:]


def test_a_parameter_that_was_taken_out_by_hand_is_missed(base: str) -> None:
    stored = load_suite(base).to_json()
    stored["cells"][0]["params"].update(steps=4)
    del stored["cells"][0]["params"]["pause_ms"]
    with pytest.raises(SuiteError, match="changed by hand"):
        suite_from_json(stored)


def test_cells_cannot_be_changed(base: str) -> None:
    suite = load_suite(base)
    with pytest.raises(ValueError, match="frozen"):
        params_of(suite).steps = 3
    with pytest.raises(AttributeError):
        suite.profile = "paper"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("lab_empty", "x = 1", "lab_empty.params has no pydantic model named Params"),
        ("lab_plain", "class Params: pass", "lab_plain.params has no pydantic model named Params"),
        (
            "lab_loose",
            "import pydantic\nclass Params(pydantic.BaseModel): pass",
            "needs model_config = ConfigDict(frozen=True",
        ),
    ],
)
def test_packages_that_are_no_experiments(
    name: str, source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "params.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SuiteError, match=re.escape(message)):
        find_experiment("mine", package=name).params()


def test_a_dependency_an_experiment_misses_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab_needy").mkdir()
    (tmp_path / "lab_needy" / "params.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        find_experiment("mine", package="lab_needy").params()


def test_shipped_suites_in_a_checkout_and_in_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shipped_suites() == {path.stem: path for path in sorted((ROOT / "suites").glob("*.yaml"))}
    checkout, wheel = tmp_path / "checkout", tmp_path / "site-packages"
    for folder in (checkout / "suites", wheel / "modelassay" / "suites"):
        folder.mkdir(parents=True)
        for name in ("b-suite", "a-suite"):
            (folder / f"{name}.yaml").write_text(BASE)
    # What lies beside an installed package is not a checkout of it.
    for folder in (checkout, wheel):
        (folder / "pyproject.toml").touch()
    monkeypatch.setattr(modelassay, "__file__", str(checkout / "bench" / "modelassay" / "__init__.py"))
    assert list(shipped_suites().items()) == [
        (name, checkout / "suites" / f"{name}.yaml") for name in ("a-suite", "b-suite")
    ]
    assert load_suite("b-suite").source == checkout / "suites" / "b-suite.yaml"
    monkeypatch.chdir(checkout)
    assert str(load_suite("b-suite").source) == "suites/b-suite.yaml"
    with pytest.raises(SuiteError, match=r"^b-siute: no suite of this name; did you mean 'b-suite'\? \(or give"):
        load_suite("b-siute")
    monkeypatch.setattr(modelassay, "__file__", str(wheel / "modelassay" / "__init__.py"))
    assert shipped_suites()["a-suite"] == wheel / "modelassay" / "suites" / "a-suite.yaml"


def test_shipped_suites_are_valid_under_every_profile() -> None:
    for name, path in shipped_suites().items():
        assert all(num_cells for _, num_cells in check_suite(path))
        assert parse(path.read_text(), name).entries["suite"].node.plain() == name


def test_committed_schema_is_fresh() -> None:
    committed = json.loads((ROOT / "suites" / "schema" / "suite.json").read_text())
    assert committed == suite_schema(), "regenerate it: modelassay show --schema > suites/schema/suite.json"


def test_the_formats_page_shows_a_valid_suite() -> None:
    page = (ROOT / "suites" / "README.md").read_text()
    example = parse(page.split("```yaml\n")[1].split("```")[0], "README.md")
    problems = Problems()
    form = validate(SuiteForm, example, problems)
    problems.raise_first()
    assert form is not None
    assert set(form.profiles) == {"embedded", "smoke", "paper"}
    assert {key for claim in form.claims for key in claim.model_fields_set} == set(type(form.claims[0]).model_fields)


def test_cells_that_share_a_mistake_say_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hint takes as long as a thousand cells; it is looked for once, and an axis value's own mistake is still told."""
    asked = []
    closest = difflib.get_close_matches
    monkeypatch.setattr(difflib, "get_close_matches", lambda *args, **kw: asked.append(args[0]) or closest(*args, **kw))
    rest = f"matrix:\n  max_cells: 400\n  seed: {[*range(100)]}\n  rate: [0.1, 0.2, 0.3, 7]\n"
    with pytest.raises(SuiteError, match=r"stepz: unknown key; did you mean 'steps'\? \(and 1 more\)"):
        load(tmp_path, "{model: zoo:base, stepz: 1}", rest=rest)
    assert 0 < len(asked) < 20


def test_more_than_a_run_can_record_is_refused_before_it_is_made(tmp_path: Path) -> None:
    rest = f"matrix:\n  max_cells: 4096\n  seed: {[*range(2000)]}\n"
    with pytest.raises(SuiteError, match=r"matrix: 2,000 cells of 100,045 characters each, as JSON, are more than"):
        load(tmp_path, f"{{model: zoo:base, steps: 1, note: {'n' * 100_000}}}", rest=rest)
    assert len(load(tmp_path, f"{{model: zoo:base, steps: 1, matrix: {{seed: {[*range(256)]}}}}}").cells) == 256


def test_a_parameter_too_deep_to_be_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="more than 32 levels deep"):
        load(tmp_path, "{model: zoo:base, steps: 1}", rest=f"matrix:\n  {'a.' * 300}a: [1]\n")


def test_a_file_is_read_once_to_check_it(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    read = suites.read_file
    monkeypatch.setattr(suites, "read_file", lambda path: files.append(path) or read(path))
    assert check_files([base]).data[0]["content"] == "embedded: 4 cells, smoke: 4 cells"
    assert files == [Path(base)]


def test_resources_of_a_profile_replace_the_suites_key_by_key(tmp_path: Path) -> None:
    rest = "resources: {gpus: 2, gpu_type: h100, memory: 64g, time: 2d}\n"
    own = "{model: zoo:base, steps: 3, resources: {gpus: 1, memory: 512m}}"
    suite = load(tmp_path, own, rest=rest)
    assert suite.resources.model_dump() == {
        "cpus": None, "gpus": 1, "gpu_type": "h100", "memory": "512m", "time": "2d",
    }  # fmt: skip
    assert (suite.resources.memory_bytes, suite.resources.minutes) == (512 * 2**20, 2 * 24 * 60)
    assert suite_from_json(json.loads(json.dumps(suite.to_json()))) == suite
    none = load(tmp_path, "{model: zoo:base, steps: 3, resources: {gpus: 0}}", rest=rest).resources
    assert (none.gpus, none.gpu_type, none.memory) == (0, None, "64g")
    plain = load(tmp_path, "{model: zoo:base, steps: 3}")
    assert [cell.id for cell in plain.cells] == [
        cell.id for cell in suite.cells
    ]  # where a cell runs is none of its parameters
    stored = plain.to_json()
    del stored["resources"]  # as a run has it that began before suites had any
    assert suite_from_json(stored).resources == plain.resources
