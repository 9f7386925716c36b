"""`python -m hypha_kubectl` is `kubectl hypha`."""

from hypha_kubectl.cli import main

if __name__ == "__main__":
    main()
