"""What runs inside a measured process, in an environment that need not hold this package: `process`, run as a script by its path.

Nothing here imports modelassay. Base and candidate are measured by these same files, whatever benchmarks they bring along.
"""
