"""Numbers of README, docs and model cards, written from results that are committed.

    python -m benchmarks.documents            # make check-docs: do texts and results agree?
    python -m benchmarks.documents --write    # make write-docs: texts as the results have it

What stands between ``<!-- result: NAME -->`` and ``<!-- end -->`` is written from `results.RESULTS`. Every other number
that looks measured has to be in `uncovered.toml`, with the reason. Measures nothing.
"""
