"""Which members of a family can be loaded for their logits: said from metadata, then from headers, then by trying."""

from __future__ import annotations

from typing import Final

from modelassay.errors import CheckpointError
from modelassay.models.checkpoints import config_path
from modelassay.models.gate import read_json
from modelassay.models.hub import Files
from modelassay.models.hub_errors import hub_errors
from modelassay.models.listing import Member
from modelassay.models.tokenizer import VOCABULARIES

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

_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})


def why_excluded(member: Member) -> str | None:
    """Return why a member cannot be loaded for its logits as far as the listing tells; None where nothing speaks against it.

    Gated members pass: whether this user may read them is seen when they are fetched.
    """
    files, architectures = set(member.files), _causal_architectures()
    adapter = member.relation == "adapter" or "adapter_config.json" in files
    rules = (
        ("disabled on the Hub", member.disabled),
        ("task of computer vision", member.task in VISION_TASKS),
        ("adapter, not a whole model", adapter and not files.intersection(WEIGHTS)),
        ("GGUF only", not files.intersection(WEIGHTS) and any(name.endswith(".gguf") for name in files)),
        ("no safetensors", not files.intersection(WEIGHTS)),
        ("no config.json", "config.json" not in files),
        ("no tokenizer", not files.intersection(VOCABULARIES)),
        ("packed by a quantiser", member.quantized_by is not None),
        ("no architecture named", not member.architectures),
        ("architecture is no causal language model", not architectures.intersection(member.architectures)),
    )
    return next((reason for reason, holds in rules if holds), None)


def _causal_architectures() -> frozenset[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


def why_refused(member: Member, files: Files) -> str | None:
    """Return why a member's config.json and safetensors headers rule it out; None where they do not, or offline.

    Costs the headers, fetched by range, of a repository: no weight. Those of local files are read when they are loaded.

    Raises:
        CheckpointError: it is gone or gated.
        HostError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, is_offline_mode
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    try:
        config = read_json(config_path(files))
    except CheckpointError:
        return "damaged config.json"
    if config.get("quantization_config") is not None:
        return "packed by a quantiser"
    if files.local or is_offline_mode():
        return None
    try:
        with hub_errors(member.reference, "its safetensors headers"):
            dtypes = set(HfApi().get_safetensors_metadata(member.name, revision=member.revision).parameter_count)
    except (NotASafetensorsRepoError, SafetensorsParsingError, ValueError, KeyError):  # the last two: a damaged index
        return "damaged safetensors header"
    return f"weights stored as {', '.join(sorted(dtypes - _FLOATS))}" if dtypes - _FLOATS else None
