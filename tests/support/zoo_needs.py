"""What runs need of the zoo, made in this process: one that has imported torch already needs no two that import it anew."""

from pathlib import Path

from modelassay.storage.needs import in_order
from modelassay.storage.store import Store
from modelassay.zoo.needs import needs_of


def make_needs(store: Store, *names: str) -> None:
    """Make what a run with these members would build first."""
    for artifact in in_order(need for name in names for need in needs_of(name)):
        artifact.make(store)


def store_with_zoo(root: Path) -> Store:
    """A store of its own at ``root``, but for the models of the zoo, which are this user's: they are made once for all tests."""
    ours = Store().root
    root.mkdir(parents=True)
    for kind in ("zoo", "zoo-text"):
        (ours / kind).mkdir(parents=True, exist_ok=True)
        (root / kind).symlink_to(ours / kind)
    return Store(root)
