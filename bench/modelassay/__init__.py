"""Forensic experiments on language models, as declarative suites."""

__version__ = "0.1.0"
