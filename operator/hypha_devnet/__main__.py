"""`hypha-devnet`, also `python -m hypha_devnet`. Ctrl-C ends it without a traceback, even while libraries load."""

import sys
from typing import Final

_INTERRUPTED: Final = 130


def main() -> None:
    """Run the command line."""
    try:
        from hypha_devnet.cli import main as run  # noqa: PLC0415 - the import takes long, and Ctrl-C may come meanwhile

        run()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
