"""The machine, its code, and what must not leave it."""
