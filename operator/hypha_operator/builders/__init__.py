"""Manifests of children, as pure functions of their owners."""
