"""Fuzz targets for every decoder of bytes from a peer, a job, a pod or a user; `make fuzz` runs them for long."""
