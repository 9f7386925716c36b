"""The other roles of a network: gateway, scheduler, data node and model hub."""
