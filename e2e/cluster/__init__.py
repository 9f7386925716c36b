"""A Kubernetes cluster from its own programs, without virtual machines or containers around it.

`control_plane` is what a test needs of it (etcd and the API server on loopback, as any user); `cluster` adds a node.
"""
