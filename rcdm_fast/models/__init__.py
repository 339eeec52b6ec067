"""The network, what describes it, and files that hold it."""
