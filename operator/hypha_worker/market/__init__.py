"""From advertisements to leases: arbiter, evaluator, waiting requests, ledger and lease service."""
