"""The libp2p host of a Hypha node: identity, mutual TLS, muxing, gossip, Kademlia, relays, requests and streams."""
