"""The base of every reconciler: API client, store, watches, queue, audit and health."""
