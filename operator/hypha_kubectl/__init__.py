"""`kubectl hypha`: shows the workers and jobs of a cluster to people, and drains, checks and reports on them."""
