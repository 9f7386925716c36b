"""The pod of a job: its manifest and the meaning of its state."""
