"""`hypha-devnet`, also as `python -m hypha_devnet`: quiet when interrupted, even while libraries are being loaded."""

import sys
from typing import Final

_INTERRUPTED: Final = 130


def main() -> None:
    """Run the command line."""
    try:
        from hypha_devnet.cli import app  # noqa: PLC0415 - takes seconds, in which Ctrl-C may come

        app(prog_name="hypha-devnet")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
