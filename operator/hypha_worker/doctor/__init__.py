"""`hypha-worker doctor`: finds out why a worker does not work, and says what to do about it.

`checks` lists all checks. A check changes nothing, and is safe beside a running node: it takes no lock and no port, and
joins the network only if no node runs with the same identity.
"""
