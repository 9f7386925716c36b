"""A Kubernetes cluster from its own programs, without virtual machines or containers around it.

`control_plane` suffices for tests: etcd and the API server on loopback, run by any user. `cluster` adds a node.
"""
