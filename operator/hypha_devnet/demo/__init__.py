"""The demo: a complete network on one machine that trains a digit classifier."""
