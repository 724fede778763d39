"""Names of several models of the zoo at once, as suites write them."""

from __future__ import annotations

import re
from functools import cache

from modelassay.zoo.ancestry import PREFIX
from modelassay.zoo.catalogue import MEMBERS


def is_pattern(reference: object) -> bool:
    """Whether ``reference`` is ``zoo:`` and a name with a star in it; no model's name has one."""
    return isinstance(reference, str) and reference.startswith(PREFIX) and "*" in reference


@cache
def matching(pattern: str) -> tuple[str, ...]:
    """Return the models that ``pattern`` means as ``zoo:NAME``, in the order of the catalogue: parents before children.

    ``*`` is any part of one step of a name, ``**`` of any number of steps; neither passes a ``/``, so that the two scales
    stay apart.

    >>> matching("zoo:large-*"), matching("zoo:base+cpt-*")
    (('zoo:large-1', 'zoo:large-2', 'zoo:large-3', 'zoo:large-4'), ('zoo:base+cpt-25', 'zoo:base+cpt-100'))
    >>> [len(matching(pattern)) for pattern in ("zoo:**", "zoo:smoke/**", "zoo:mini-1+**", "zoo:nothing-*")]
    [346, 35, 31, 0]
    """
    parts = (re.escape(part) for part in re.split(r"(\*\*|\*)", pattern.removeprefix(PREFIX)))
    expression = "".join({r"\*\*": "[^/]*", r"\*": "[^/+]*"}.get(part, part) for part in parts)
    return tuple(f"{PREFIX}{name}" for name in MEMBERS if re.fullmatch(expression, name))
