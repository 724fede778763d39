"""Evidence about two imagined models, with everything that a document can hold."""

import math

from modelassay.fingerprints.evidence import (
    AgreementTier,
    Among,
    Conclusion,
    Correction,
    Derivation,
    EqualTensors,
    Evidence,
    ExactTest,
    FileHash,
    MethodScore,
    ModelFiles,
    Origin,
    Proposition,
    Requantised,
    SharedTraining,
)
from modelassay.fingerprints.meaning import LIMITS, propositions


def model_files(name: str, *, num_shards: int = 2) -> ModelFiles:
    roles = {"config.json": "configuration", "tokenizer.json": "tokenizer", "tokenizer_config.json": "tokenizer"}
    roles |= {f"model-{shard:05}-of-{num_shards:05}.safetensors": "weights" for shard in range(1, num_shards + 1)}
    files = tuple(
        FileHash(name=file, role=role, bytes=4_976_698_672, sha256=f"{index:064x}", hub_sha256=f"{index:064x}" if role == "weights" else None)
        for index, (file, role) in enumerate(roles.items())
    )  # fmt: skip
    return ModelFiles(
        name=name, reference=f"hf:organisation/{name}", commit="0123456789abcdef0123456789abcdef01234567", files=files
    )


def evidence(
    a: str = "Base-1.0-7B", b: str = "Suspect-1.5-7B-Instruct", *, num_shards: int = 2, num_methods: int = 9
) -> Evidence:
    names = ("hidden dimensions by embeddings", "hidden dimensions by body", "neurons by rows", "neurons by invariants")
    tests = tuple(ExactTest(name=name, statistic="fixed points", count=3 + index, of=1024, expected=1.0, groups=1, log10_p=-8.0 - index,
                            near_count=700, near_of=1024, near_expected=256, all_log10_p=-8.0 - index)
                  for index, name in enumerate(names))  # fmt: skip
    return Evidence(
        a=model_files(a, num_shards=num_shards), b=model_files(b, num_shards=num_shards),
        propositions=tuple(Proposition(label=label, text=text) for label, text in propositions(a, b)),
        verdict=Conclusion(word="inherited", level=1e-6, sentence=f"{a} and {b}: inherited; 6 of 1024 neurons by invariants were matched to "
                           f"their own number (1 expected), p = 1e-09, corrected for 30 candidates, if {b} had been numbered independently of {a}. 62 of 103 tensors are the "
                           "same bits. Either weights were inherited, directly or through steps, or both trainings began from the same initial "
                           "weights, as two runs of one seed do, or one pattern that numbers units (a mask, an identity, sines) was laid into both."),
        tests=tests,
        corrected=Correction(method="Bonferroni", num_tests=4, num_candidates=30, log10_p=-11.0 + math.log10(120), shown="p = 1e-09"),
        agreement=AgreementTier(count=8192, of=8192, expected=5.33, rate=3.0, log10_p=-20000.0, calibration="Calibrated, not exact: how often "
                                "independent pairs agree, and on which models that was measured, stands in docs/methods/independence.md."),
        equal_tensors=EqualTensors(names=tuple(f"model.layers.{layer}.input_layernorm.weight" for layer in range(62)), of=103),
        requantised=Requantised(source=a, quantised=b, matched=200, of=201, share=0.93, formats=("Q8_0", "Q4_1"), not_redone=("Q6_K: no quantiser",),
                                nearly=("model.layers.0.mlp.up_proj.weight: 99.9 % of blocks",)),
        methods=tuple(MethodScore(method=f"method {index}", score=0.9, undefined=None, among=Among(
            num_strangers=147, median=0.057, max=0.086, rank_p=1 / 148, min_p=1 / 148, log10_lr=1.3)) for index in range(num_methods)),
        background="runs/fingerprinting", among_strangers=f"{a} and {b}: closer than all 147 strangers by aligned.", disagreements=(),
        shared_training=SharedTraining(ratio=0.012, num_values=4096, is_shared=True), derivation=Derivation(kind="continued", steps=("continued",), parent=a, evidence="Median cosine 0.99."),
        not_tested=("neurons by rows: no feed-forward network of one width in both could be read",), limits=LIMITS,
        origin=Origin(modelassay="0.1.0", commit="89abcdef" * 5, modified=False, code="0123456789abcdef", python="3.11.2",
                      libraries={"numpy": "2.3.0", "scipy": "1.16.0", "safetensors": "0.6.2", "torch": "2.11.0+cpu", "tokenizers": "0.22.0"},
                      machine="A processor of 2 cores, Linux 6.1", time_utc="2026-11-29T00:21:53.123Z",
                      command=("modelassay", "fingerprint", f"hf:organisation/{a}", f"hf:organisation/{b}", "--evidence", "evidence"),
                      repeat=f"modelassay fingerprint hf:organisation/{a}@0123456789abcdef0123456789abcdef01234567 --evidence evidence",
                      needs="Anybody can who has this version of modelassay and the files with these hashes."),
    )  # fmt: skip
