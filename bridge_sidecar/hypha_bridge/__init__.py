"""The job bridge: serves the REST API of one job on a Unix socket; only the node behind it may use the network."""
