"""The playground: a local page on which a photograph's representation is drawn from, bent and mixed.

`playground.py` does it, `directions.py` knows where h can be moved to, `page.py` shows it.
"""
