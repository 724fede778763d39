"""Do downloads tell how much of its base a model has kept? A base's family, its overlap, and both beside each other.

`run.py` runs a cell, `analyse.py` looks across them; a cell of tables that others measured takes the same path.
"""
