"""Evaluation: what a model is worth, on text and on questions with known answers."""
