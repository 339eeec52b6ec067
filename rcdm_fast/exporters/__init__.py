"""Exports: files that other runtimes and tools read; one file per format."""
