"""Sigma-curve fingerprints: who descends from whom, judged against strangers of the same stratum."""
