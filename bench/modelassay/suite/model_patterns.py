"""``zoo:mini-*`` in a list of a suite: the models it means, in its place."""

from __future__ import annotations

from dataclasses import replace

from modelassay.suite.located_yaml import Entry, Node
from modelassay.suite.problems import Problems
from modelassay.zoo.patterns import is_pattern, matching


def with_models(tree: Node, problems: Problems) -> Node:
    """Return ``tree`` with the patterns in its lists replaced by the models they mean, in the order of the catalogue.

    A pattern leaves out what its list has before it, and what the list names itself. Every model stands where its pattern
    stands; one that means no model goes to ``problems``.
    """
    if isinstance(tree.value, dict):
        entries = {name: Entry(key, with_models(node, problems)) for name, (key, node) in tree.value.items()}
        return replace(tree, value=entries)
    if not isinstance(tree.value, list):
        return tree
    names = {item.value for item in tree.items if isinstance(item.value, str)}
    items: list[Node] = []
    for item in tree.items:
        if not isinstance(item.value, str) or not is_pattern(item.value):
            items.append(with_models(item, problems))
            continue
        models = matching(item.value)
        if not models:
            problems.add(item, f"{item.value!r} matches no model of the zoo")
        items += [replace(item, value=model, inset=None) for model in models if model not in names]
        names.update(models)
    return replace(tree, value=items)
