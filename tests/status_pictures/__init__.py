"""The pictures of the status page in the documentation."""
