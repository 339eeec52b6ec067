"""Numbers about arrays: intervals, distances, distributions, probes, neighbors, regressions; no models, no files."""
