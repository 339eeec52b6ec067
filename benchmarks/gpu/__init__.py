"""The parts of `make bench-gpu`, one file each; benchmarks/bench_gpu.py runs them."""
