"""Dashboards and alerts as tables. `make monitoring` writes the chart's files and the table of docs/monitoring.md."""
