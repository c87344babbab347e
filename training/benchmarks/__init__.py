"""Measurements of the whole: detection beside its peers, repair, coverage, ablations; their results lie in `results/`."""
