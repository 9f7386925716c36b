"""Benchmarks, which compare measured figures with promised ones; see `python -m benchmarks --help`."""
