"""The wire, from addresses and TCP up to multiplexed streams."""
