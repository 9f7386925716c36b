"""The libp2p host of a Hypha node: identity, mutual TLS, muxer, gossip, Kademlia, relays, requests and streams."""
