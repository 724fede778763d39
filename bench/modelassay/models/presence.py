"""What is not there, where a server answers 404 without saying what of: a mirror that lacks the Hub's X-Error-Code."""

from __future__ import annotations

from modelassay.errors import CheckpointError
from modelassay.models.connection import endpoint

_EVERYWHERE = (".gitattributes", "README.md", "model.safetensors", "model.safetensors.index.json", "tokenizer.json")
"""Files of which nearly every repository of a model has one."""


def serves(repository: str, name: str, revision: str | None) -> bool:
    """Ask whether the Hub has the file ``name`` of ``repository``; costs one HEAD.

    Raises:
        HfHubHTTPError: it refuses to say.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(repository, name, revision=revision))
    except HfHubHTTPError as error:
        if error.response.status_code in (404, 410):
            return False
        raise
    return True


def refuse_repository(reference: str, repository: str, revision: str | None) -> None:
    """Return if ``repository`` is there at ``revision``, and so only its config.json is not.

    Raises:
        CheckpointError: it is not there, or nobody can tell.
        RepositoryNotFoundError: the server says so.
        RevisionNotFoundError: the server says so.
    """
    if _describes(repository, revision) or any(serves(repository, name, revision) for name in _EVERYWHERE):
        return
    if revision is not None and (_describes(repository, None) or serves(repository, "config.json", None)):
        raise CheckpointError(
            f"{reference}: the repository has no such commit, tag or branch; check what follows the @"
        )
    raise CheckpointError(
        f"{reference}: {endpoint()} has no such repository, or nothing that a model needs in it (it answers 404 without saying"
        " what is missing); check the spelling and HF_ENDPOINT"
    )


def _describes(repository: str, revision: str | None) -> bool:
    """Ask the server's interface for programs, which a mirror may lack."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        HfApi().model_info(repository, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except (HfHubHTTPError, ValueError, KeyError, TypeError):  # no such interface, or a page for people in its place
        return False
    return True
