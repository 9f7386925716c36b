"""Shows the state of the node to people: as a page for browsers, and at a socket for the command line."""
