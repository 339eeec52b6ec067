"""The version of this package, as `pyproject.toml` has it; for whatever writes it down."""

__version__ = "0.1.0"
