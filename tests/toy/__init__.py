"""A torch-free experiment for tests of suites and of the runner: a random walk that can go wrong on demand."""
