"""Reading, loading and making models."""
