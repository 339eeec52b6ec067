"""Small wrong changes of the code that a test must notice; `python -m tests.mutants.run` tries them."""
