"""Every matrix of many architectures is what the model's own projections compute; what is refused is refused with its reason."""

import shutil
from pathlib import Path

import pytest

from modelassay.errors import CheckpointError
from modelassay.models.checkpoints import open_checkpoint
from modelassay.models.checkpoints.layers import layer_spans, network_matrices, read_embedding
from support.architecture_cases import CASES, Outcome, build, compare

PAGE = Path(__file__).parents[4] / "docs" / "methods" / "architectures.md"
START = "<!-- written by tests/bench/models/checkpoints/test_architectures.py --update-messages -->\n"

DAILY = (
    "afmoe", "albert", "bart", "bert", "codegen", "deberta", "deepseek_v2", "falcon-40b-new", "gemma4_text", "gpt_bigcode-mha", "gpt_oss",
    "granitemoehybrid", "idefics3", "llama4_text", "longcat_flash", "mamba2", "mobilebert", "modernbert", "mt5", "nemotron_h", "olmo2",
    "qwen3_next", "squeezebert", "vit", "xlnet",
)  # fmt: skip
"""One of each kind, in every run of the tests; all of them nightly."""


def examine(name: str, folder: Path) -> tuple[str, Outcome | None]:
    """Return the line of a case for the table, and how its matrices compare; no comparison where it is refused or cannot be made."""
    try:
        model = build(name)
    except Exception as error:  # noqa: BLE001 - whatever a version of transformers refuses of its own settings
        return (
            f"| {name} | not made | {type(error).__name__}: transformers cannot make so small a model of it | | |",
            None,
        )
    model.save_pretrained(folder)  # type: ignore[operator]
    try:
        checkpoint = open_checkpoint(folder)
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{folder}: ").replace(f"{folder}/", "").replace("|", "/")
        return f"| {name} | **refused** | {reason} | | |", None
    networks = [matrix for layer in network_matrices(checkpoint) for matrices in layer.values() for matrix in matrices]
    outcome = compare(model, folder, checkpoint, networks)
    spans = layer_spans(checkpoint)
    parts = [
        role
        for role in ("norm-1", "norm-2", "post-norm-1", "post-norm-2", "gate", "up", "down")
        if all(role in layer for layer in spans)
    ]
    parts += ["embedding"] if read_embedding(checkpoint, 4) is not None else []
    roles = ", ".join(checkpoint.roles)
    notes = "; ".join(checkpoint.notes)
    attention = len(checkpoint.matrices)
    return (
        f"| {name} | {checkpoint.num_layers} layers, {attention} projections | {roles} | {', '.join(parts)} | {notes} |",
        outcome,
    )


@pytest.mark.parametrize("name", DAILY)
def test_every_matrix_is_what_the_model_computes(name: str, tmp_path: Path) -> None:
    line, outcome = examine(name, tmp_path)
    assert line in PAGE.read_text(encoding="utf-8")
    if outcome is not None:
        assert outcome.wrong == []
        assert outcome.num_equal
        assert all(
            "(" in text and text.split(": ")[1].split(" ")[0] in {"gate", "up", "down"} for text in outcome.unknown
        )


@pytest.mark.nightly
def test_all_architectures_are_read_or_refused_as_the_page_says(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    lines, counts, wrong = [], {"read": 0, "projections": 0, "networks": 0, "unknown": 0}, []
    for name in CASES:
        line, outcome = examine(name, tmp_path / "model")
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        lines.append(line)
        if outcome is not None:
            wrong += [f"{name}: {text}" for text in outcome.wrong]
            counts["read"] += 1
            counts["projections"] += outcome.num_equal - outcome.num_networks
            counts["networks"] += outcome.num_networks
            counts["unknown"] += len(outcome.unknown)
    assert wrong == []
    assert counts["read"] >= 130
    head, _, _ = PAGE.read_text(encoding="utf-8").partition(START)
    summary = (
        f"{counts['read']} of {len(CASES)} are read. {counts['projections']:,} projections of attention and {counts['networks']:,} matrices of "
        f"feed-forward networks are what the models' own modules compute on random input; {counts['unknown']:,} matrices of experts, which the "
        "models hold in one parameter without a module, were not computed.\n\n"
        "| architecture | read | projections, or why it is refused | what else every layer has | said of it |\n|---|---|---|---|---|\n"
    )
    page = head + START + summary + "\n".join(lines) + "\n"
    if pytestconfig.getoption("--update-messages"):
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page
