"""What was tested about one pair of models, complete enough to be checked by somebody else: `evidence.json` as a typed document.

The document is sealed with a checksum (`modelassay.storage.sealed`), so that a slip of an editor is noticed; whoever means to forge
one can compute it too, so keep the SHA-256 of the file with somebody whom both sides trust.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modelassay.errors import RecordError, UsageError, printable
from modelassay.fingerprints.independence.result import NUM_TESTS
from modelassay.fingerprints.verdict import PAGE, Word, shown_p
from modelassay.storage.sealed import Unsealed, read_sealed, sealed_json

KIND: Literal["evidence of a pair"] = "evidence of a pair"
"""What tells the document from other JSON."""

SCHEMA: Literal[1] = 1
"""Raised when a field changes its meaning or goes; a reader of one version refuses the others."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
LogP = Annotated[float, Field(le=0, allow_inf_nan=False)]
"""log10 of a p-value."""
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileHash(_Part):
    """A file that was read."""

    name: Text
    """Inside the model's folder."""
    role: Literal["weights", "configuration", "tokenizer"]
    bytes: Count
    sha256: Sha256
    """Of the file's bytes as they lay on this machine, all of them."""
    hub_sha256: Sha256 | None
    """What the Hub says it is (its LFS object); None for folders and for small files, which the Hub keeps otherwise."""


class ModelFiles(_Part):
    """One model of the pair."""

    name: Text
    """What sentences call it."""
    reference: Text
    """What was named on the command line."""
    commit: str | None
    """Commit of the Hub; None for a folder."""
    files: Annotated[tuple[FileHash, ...], Field(min_length=1)]


class Proposition(_Part):
    """One of the explanations that are weighed."""

    label: Text
    text: Text


class ExactTest(_Part):
    """One test of independent numbering with an exact law."""

    name: Text
    statistic: Literal["fixed points", "inversions"]
    count: Count
    of: Count
    expected: Finite
    """Mean of the count under H2."""
    groups: Count
    """Matchings that were counted together."""
    log10_p: LogP
    """Of the test: the larger of its two halves'."""
    near_count: Count
    """The count of the second half, in which blocks of four consecutive numbers are matched within themselves."""
    near_of: Count
    near_expected: Finite
    all_log10_p: LogP
    """Of the first half, over all numbers."""

    @model_validator(mode="after")
    def _counts(self) -> Self:
        for count, of in ((self.count, self.of), (self.near_count, self.near_of)):
            if count > of:
                raise ValueError(f"{self.name}: {count} of {of} cannot be counted")
        if self.log10_p < self.all_log10_p:
            raise ValueError(
                f"{self.name}: log10 p {self.log10_p:g} is below that of its first half, {self.all_log10_p:g}"
            )
        return self


class Correction(_Part):
    """The p-value of the pair over all exact tests."""

    method: Literal["Bonferroni"]
    num_tests: Literal[4]
    """Corrected for, whether or not all could be made."""
    num_candidates: Annotated[int, Field(ge=1)]
    """Models that were compared with one suspect, which p is corrected for too; 1 where a pair was asked for itself."""
    log10_p: LogP
    shown: Text
    """As sentences print it."""


class AgreementTier(_Part):
    """The tier for relabelled and rotated copies; calibrated, not exact."""

    count: Count
    of: Count
    expected: Finite
    """By chance."""
    rate: Finite
    """The p-value is that of so many times the expected count."""
    log10_p: LogP
    calibration: Text
    """What its error was measured to be, and on what."""


class SharedTraining(_Part):
    """Whether more is shared than initial weights could explain: the norms, which no seed draws."""

    ratio: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Their difference, as a share of what training did to them."""
    num_values: Count
    is_shared: bool
    """H1' is excluded."""


class EqualTensors(_Part):
    """Tensors that are the same bits in both models."""

    names: tuple[str, ...]
    of: Count
    """Tensors large and varied enough to say something."""


class Requantised(_Part):
    """Whether quantising one model gives the other's bits."""

    source: Text
    quantised: Text
    matched: Count
    of: Count
    """Tensors that could be redone."""
    share: Annotated[float, Field(ge=0, le=1)]
    """Of the source's weights, in these tensors."""
    formats: tuple[str, ...]
    not_redone: tuple[str, ...]
    """Tensors or formats that could not, and why."""
    nearly: tuple[str, ...]
    """Tensors of which only a part is the same bits, each with its share of equal blocks."""


class Among(_Part):
    """Where a score stands among those of unrelated pairs: description, never a verdict."""

    num_strangers: Annotated[int, Field(ge=1)]
    median: Finite
    max: Finite
    rank_p: Annotated[float, Field(gt=0, le=1)]
    min_p: Annotated[float, Field(gt=0, le=1)]
    """The smallest that so few strangers allow."""
    log10_lr: Finite | None
    """log10 of P(score | one ancestor) / P(score | none) by the background's pairs of known ancestry, never beyond what so few roots
    can show; None where it holds only one kind of pairs."""


class MethodScore(_Part):
    """What another method says of the pair."""

    method: Text
    score: Finite | None
    undefined: str | None
    """Why there is no score."""
    among: Among | None
    """None without a background."""

    @model_validator(mode="after")
    def _score_or_reason(self) -> Self:
        if (self.score is None) == (self.undefined is None):
            raise ValueError(f"{self.method}: has either a score or a reason why not")
        return self


class Derivation(_Part):
    """How one model could have been made of the other, if it was."""

    kind: Text
    steps: tuple[str, ...]
    parent: str | None
    evidence: Text


class Conclusion(_Part):
    """The verdict."""

    word: Word
    sentence: Text
    level: Annotated[float, Field(gt=0, lt=1)]
    """p-values at most this are called inherited."""
    explained: Text = PAGE
    """The page of the repository that says what the word means."""


class Origin(_Part):
    """What computed it, and when."""

    modelassay: Text
    commit: str | None
    """Of the repository; None where it was installed without one."""
    modified: bool | None
    """Whether files differ from that commit; None where it is not known."""
    code: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    """BLAKE2b of the modules that decide the numbers."""
    python: Text
    libraries: dict[str, str | None]
    """Versions of those that decide the numbers."""
    machine: Text
    time_utc: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]
    command: tuple[str, ...]
    """As it was called, without secrets."""
    repeat: Text
    """What anybody with these files calls to get the same."""
    needs: Text
    """Who can: what they must have."""


class Evidence(_Part):
    """Everything that was tested about one pair."""

    kind: Literal["evidence of a pair"] = KIND
    schema_version: Literal[1] = SCHEMA
    a: ModelFiles
    b: ModelFiles
    propositions: Annotated[tuple[Proposition, ...], Field(min_length=3)]
    verdict: Conclusion
    tests: tuple[ExactTest, ...]
    corrected: Correction | None
    """None where no exact test could be made."""
    agreement: AgreementTier | None
    shared_training: SharedTraining | None
    """None where the norms do not tell."""
    equal_tensors: EqualTensors
    requantised: Requantised | None
    """None where neither model is the other quantised or cast, as far as their formats tell."""
    methods: tuple[MethodScore, ...]
    background: str | None
    """The run whose strangers the scores were ranked among."""
    among_strangers: Text
    """Where the pair stands among them, in words."""
    disagreements: tuple[str, ...]
    """Where methods say otherwise than the verdict."""
    derivation: Derivation | None
    not_tested: tuple[str, ...]
    limits: Annotated[tuple[str, ...], Field(min_length=1)]
    origin: Origin

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.corrected is None) != (not self.tests):
            raise ValueError("a corrected p stands beside exact tests, and only there")
        if self.corrected is not None:
            least = min(test.log10_p for test in self.tests)
            due = min(0.0, least + math.log10(NUM_TESTS * self.corrected.num_candidates))
            if not math.isclose(self.corrected.log10_p, due, abs_tol=1e-9):
                raise ValueError(
                    f"corrected: log10 p is {self.corrected.log10_p:g}, and the smallest of the tests {least:g}"
                )
            if self.corrected.shown != shown_p(self.corrected.log10_p):
                raise ValueError(f"corrected: shown as {self.corrected.shown!r}, which is not its p")
        if len(self.equal_tensors.names) > self.equal_tensors.of:
            raise ValueError("equal_tensors: more names than tensors")
        self._check_verdict()
        return self

    def _check_verdict(self) -> None:
        """Hold the word against what it stands on."""
        equal, remade = self.equal_tensors, self.requantised
        match self.verdict.word:
            case "identical" if not len(equal.names) == equal.of > 0:
                raise ValueError(f"verdict: identical, but {len(equal.names)} of {equal.of} tensors are the same bits")
            case "re-derived" if remade is None or not remade.matched == remade.of > 0:
                raise ValueError("verdict: re-derived, but not all tensors that could be redone are the same bits")
            case "inherited" if not self._rejects():
                raise ValueError("verdict: inherited, but no p-value is at most its level")
            case "not distinguishable from independent" if self._rejects():
                raise ValueError("verdict: not distinguishable from independent, but a p-value is at most its level")

    def _rejects(self) -> bool:
        candidates = 1 if self.corrected is None else self.corrected.num_candidates
        exact = 0.0 if self.corrected is None else self.corrected.log10_p
        agreed = 0.0 if self.agreement is None else self.agreement.log10_p + math.log10(candidates)
        return min(exact, agreed) <= math.log10(self.verdict.level) + 1e-9


def evidence_json(evidence: Evidence) -> bytes:
    """Return the document as the text of `evidence.json`."""
    return sealed_json(evidence.model_dump(mode="json"), by_lines=True)


def read_evidence(path: Path) -> Evidence:
    """Return the evidence in a file.

    Raises:
        UsageError: there is no such file, or no regular one.
        RecordError: it is not as it was written, not evidence, or of another version.
    """
    where = printable(str(path))
    try:
        document = read_sealed(path)
    except FileNotFoundError:
        raise UsageError(f"{where}: no such file") from None
    except OSError as error:
        raise UsageError(f"{where}: cannot be read ({error.strerror})") from None
    except Unsealed:
        raise RecordError(
            f"{where}: has no checksum in front, so it is not as it was written; ask for the original"
        ) from None
    except ValueError as error:
        raise RecordError(f"{where}: {error}; ask for the original") from None
    if document.get("kind") != KIND:
        raise RecordError(
            f"{where}: expected {KIND!r}, got a document of kind {printable(repr(document.get('kind')))[:80]}"
        )
    if document.get("schema_version") != SCHEMA:
        raise RecordError(f"{where}: schema_version is {printable(repr(document.get('schema_version')))[:40]}, this version of modelassay "
                          f"reads {SCHEMA}; use the version that wrote it")  # fmt: skip
    try:
        return Evidence.model_validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        raise RecordError(
            f"{where}: {printable(place)}: {printable(first['msg'])}; it was not written by modelassay"
        ) from None
