"""What a node does on its connections: identify, requests, gossip, Kademlia, relay, gateways."""
