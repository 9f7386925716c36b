"""The two custom resources of `hypha.space/v1alpha1` as pydantic models."""
