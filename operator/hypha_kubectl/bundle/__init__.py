"""The bundle of `kubectl hypha report`: what helps to find a fault, and nothing secret.

`allowed` lists the fields of each kind that may be in it, and drops all others. `scrub` replaces what may be secret in
the texts of these fields and in logs. `collect` asks the cluster, but never for Secrets or ConfigMaps.
"""
