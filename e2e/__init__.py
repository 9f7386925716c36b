"""End-to-end cases on a real Kubernetes cluster, and the cluster itself."""
