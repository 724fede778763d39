"""What the benchmarks of all operations share; ``python -m modelassay_kernels.benchmarking`` runs them.

Needs torch, pytest and pytest-benchmark, and Triton for those of a GPU.
"""
