"""Which members of a family can be loaded for their logits: said from metadata, then from headers, then by trying."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from modelassay.errors import CheckpointError
from modelassay.models.hub import Files, hub_errors, open_files
from modelassay.models.listing import Member
from modelassay.models.safetensors_index import read_json

VISION_TASKS: Final = frozenset({
    "any-to-any", "depth-estimation", "document-question-answering", "image-classification", "image-feature-extraction",
    "image-segmentation", "image-text-to-text", "image-to-3d", "image-to-image", "image-to-text", "image-to-video",
    "keypoint-detection", "mask-generation", "object-detection", "text-to-3d", "text-to-image", "text-to-video",
    "unconditional-image-generation", "video-classification", "video-text-to-text", "video-to-video",
    "visual-document-retrieval", "visual-question-answering", "zero-shot-image-classification",
    "zero-shot-object-detection",
})  # fmt: skip
"""The Hub's tasks of computer vision, and those that also take or give images: the published filter leaves them out."""

WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")
"""Where transformers looks for weights; pickled ones are not fetched."""

_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json")
_SMALL: Final = (*_TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt",
                 "generation_config.json")  # fmt: skip
_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})


def why_excluded(member: Member) -> str | None:
    """Return why a member cannot be loaded for its logits as far as the listing tells; None where nothing speaks against it.

    Gated members pass: whether this user may read them is seen when they are fetched.
    """
    files, known = set(member.files), _causal_architectures()
    adapter = member.relation == "adapter" or "adapter_config.json" in files
    rules = (
        ("disabled on the Hub", member.disabled),
        ("task of computer vision", member.task in VISION_TASKS),
        ("adapter, not a whole model", adapter and not files.intersection(WEIGHTS)),
        ("GGUF only", not files.intersection(WEIGHTS) and any(name.endswith(".gguf") for name in files)),
        ("no safetensors", not files.intersection(WEIGHTS)),
        ("no config.json", "config.json" not in files),
        ("no tokenizer", not files.intersection(_TOKENIZERS)),
        ("packed by a quantiser", member.quantized_by is not None),
        ("no architecture named", not member.architectures),
        ("architecture is no causal language model", not known.intersection(member.architectures)),
    )
    return next((reason for reason, holds in rules if holds), None)


def _causal_architectures() -> frozenset[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


def why_refused(member: Member) -> str | None:
    """Return why a member's config.json and safetensors headers rule it out; None where they do not, or offline.

    Costs config.json and the headers, fetched by range: no weight.

    Raises:
        CheckpointError: it is gone or gated.
        HostError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, is_offline_mode
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    path = _required(open_files(member.reference), "config.json")
    try:
        config = read_json(path)
    except CheckpointError:
        return "damaged config.json"
    if config.get("quantization_config") is not None:
        return "packed by a quantiser"
    if is_offline_mode():
        return None
    try:
        with hub_errors(member.reference, "its safetensors headers"):
            dtypes = set(HfApi().get_safetensors_metadata(member.name, revision=member.revision).parameter_count)
    except (NotASafetensorsRepoError, SafetensorsParsingError, ValueError, KeyError):  # the last two: a damaged index
        return "damaged safetensors header"
    return f"weights stored as {', '.join(sorted(dtypes - _FLOATS))}" if dtypes - _FLOATS else None


def fetch(member: Member) -> Path:
    """Return the folder of a member with its configuration, tokenizer and weights, fetched into the Hub's cache if need be.

    Raises:
        CheckpointError: it is gone, gated, or lacks a file that its index names.
        HostError: the Hub cannot be reached, or the cache cannot be written.
    """
    files = open_files(member.reference)
    for name in _SMALL:
        if name in member.files:
            files.get(name)
    if WEIGHTS[0] in member.files:
        _required(files, WEIGHTS[0])
    else:
        shards = read_json(_required(files, WEIGHTS[1])).get("weight_map")
        if not isinstance(shards, dict):
            raise CheckpointError(f"{member.reference}: {WEIGHTS[1]} maps no tensors to files; the upload is broken")
        for name in sorted(set(shards.values())):
            _required(files, name)
    return files.folder


def _required(files: Files, name: str) -> Path:
    path = files.get(name, required=True)
    if path is None:
        raise CheckpointError(f"{files.reference}: the repository has no {name}; it is incomplete")
    return path
