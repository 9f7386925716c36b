"""The trace of each job: spans of the node, and those that the job reports about itself."""
