"""Access to the API server of a kubeconfig."""
