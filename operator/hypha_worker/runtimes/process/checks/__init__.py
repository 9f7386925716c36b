"""Checks of the host: its executors, GPUs and resources.

Functions named `judge_...` decide from facts alone. The others gather these facts.
"""
