"""Measurements of the project against what it promises; `python -m benchmarks --help`."""
