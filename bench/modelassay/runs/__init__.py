"""A run directory: made, planned, executed, analysed."""
