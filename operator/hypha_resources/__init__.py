"""The two custom resources of `hypha.space/v1alpha1` as pydantic models: what users write and what they read back."""
