"""The sections of `benchmarks/gpu.py`: modules whose functions `ours` and `theirs` run in processes of their own."""
