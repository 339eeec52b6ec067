"""Benchmarks: how fast the library is beside what a user could pick instead. Not part of an install."""
