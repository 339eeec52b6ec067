"""Results of experiments as one self-contained HTML page that reads on a phone and prints, and as JSON beside it.

Knows nothing about how anything was measured (`analysis/`).
"""
