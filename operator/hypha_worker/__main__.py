"""`python -m hypha_worker` is the command line `hypha-worker`."""

from hypha_worker.cli import main

main()
