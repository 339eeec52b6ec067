"""Damaged and hostile inputs for every reader of the project, each read in a process that is watched.

`kinds` says what inputs there are, how good ones are made and what reads them; `mutate` and `structures` damage them;
`worker` reads them in a process of its own, under `watch`; `run` drives the workers and reports. An input depends on
its kind and its number alone, so that it can be made again: ``python -m tests.fuzz.run --kind KIND --number N``.
"""
