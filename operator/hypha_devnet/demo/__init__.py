"""The demo: a whole network on one machine that trains a digit classifier."""
