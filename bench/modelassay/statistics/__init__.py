"""Intervals, tests and accuracies; nothing here knows an experiment."""
