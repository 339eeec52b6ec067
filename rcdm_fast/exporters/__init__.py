"""Exports: files that other runtimes and tools read; one file per format.

Knows nothing about engines, samplers or the command line.
"""
