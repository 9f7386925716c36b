"""The worker node: configuration, allocation, jobs, and the command line."""
