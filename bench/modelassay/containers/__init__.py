"""The same command inside a pinned image."""
