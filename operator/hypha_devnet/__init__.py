"""A Hypha network of our own, for trying things out and for tests: gateway, scheduler, data node, hub, certificates, demo."""
