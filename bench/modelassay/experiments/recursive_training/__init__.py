"""A model trained on its own text, generation after generation, beside controls: what goes bad, when, and what tells it beforehand.

Conditions, measures and the analysis that is fixed before a run: docs/methods/recursive-training.md.
"""
