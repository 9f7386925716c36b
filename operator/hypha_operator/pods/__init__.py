"""The pod of a job: how it is built, and what its state means."""
