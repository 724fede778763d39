"""The folder for temporary files, which processes of a run meet in: without one no cell can start."""

from __future__ import annotations

import tempfile

from modelassay.errors import HostError


def require_temporary_folder() -> None:
    """Raise HostError where no temporary file can be made, as in an image whose root is read-only and that was given no /tmp."""
    try:
        with tempfile.TemporaryFile():
            return
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise HostError(
            f"no temporary file can be made ({reason}), and a run needs some; set TMPDIR to a folder that can be written, or give"
            " a container one with --tmpfs /tmp:exec"
        ) from error
