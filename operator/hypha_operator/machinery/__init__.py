"""What every reconciler stands on: API client, store, watches, queue, audit and health."""
