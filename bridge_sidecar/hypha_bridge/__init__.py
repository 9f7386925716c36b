"""The job bridge: one job's REST API on a Unix socket, in front of the network that only the node may use."""
