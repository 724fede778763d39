"""How far a model that is being trained has moved from a frozen reference, in what it answers and in its weights.

``reference`` is computed once, before the first step; ``measure`` compares answers with it in one forward pass; ``numeric`` and
``snapshot`` say of weights which of them a step can move in their type, and which did. `fingerprints.drift_callback` brings it to anyone's Trainer.
What each number means, and what was tried: docs/methods/drift.md.
"""
