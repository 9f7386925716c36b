"""Metrics, traces and logs of our processes: the catalogue of metrics, the settings, and the exporters."""
