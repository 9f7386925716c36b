"""The command line `hypha-operator`."""
