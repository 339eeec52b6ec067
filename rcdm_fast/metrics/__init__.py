"""Numbers about arrays: intervals, distances, distributions, probes, neighbours, regressions; no models, no files."""
