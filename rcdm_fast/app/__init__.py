"""The playground: a local page on which a photograph's representation is drawn from, bent and mixed.

`playground.py` does it, `page.py` shows it.
"""
