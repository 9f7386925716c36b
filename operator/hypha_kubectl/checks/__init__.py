"""`kubectl hypha check`: finds out whether a cluster is ready for Hypha, and what is wrong with an installation."""
