"""Jobs of nodes behind NATs, in every combination of NATs, gateways, transports and kinds of workers."""
