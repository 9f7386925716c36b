"""The roles of a network besides the worker: gateway, scheduler, data node and model hub."""
