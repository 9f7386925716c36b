"""`hypha-devnet`, also `python -m hypha_devnet`. Ctrl-C ends it without a traceback, even while libraries load."""

import sys
from typing import Final

from hypha_contracts import descriptors

_INTERRUPTED: Final = 130


def main() -> None:
    """Run the command line."""
    descriptors.raise_limit()
    try:
        from hypha_devnet.cli import app  # noqa: PLC0415 - the import takes seconds, and Ctrl-C may come meanwhile

        app(prog_name="hypha-devnet")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
