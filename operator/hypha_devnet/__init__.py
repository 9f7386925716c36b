"""A Hypha network of our own, to try things out and for tests: gateway, scheduler, data node, hub, demo."""
