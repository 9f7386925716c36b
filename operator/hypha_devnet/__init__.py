"""A small Hypha network for trials and tests: gateway, scheduler, data node, model hub, demo."""
