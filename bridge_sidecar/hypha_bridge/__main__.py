"""`hypha-bridge [--config FILE]`: serve one job until SIGTERM or SIGINT."""

import asyncio
import gc
import logging
import os
import signal
import sys
from pathlib import Path

from hypha_bridge.config import ConfigError, parse, read
from hypha_bridge.server import BridgeServer
from hypha_contracts import descriptors, logs
from hypha_contracts.bridge_config import CONFIG_VARIABLE, BridgeConfig
from hypha_contracts.text import escaped
from hypha_executor.arguments import Parser, print_error


def main() -> None:
    """Run the bridge.

    It exits with 2 for a wrong configuration, with 1 if it cannot start or if no peer received one of the last files,
    else with 0.
    """
    parser = Parser("hypha-bridge", "Serve the REST API of one job of a Hypha worker.", "hypha-worker")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"Configuration (JSON). Default: the text in ${CONFIG_VARIABLE}.",
    )
    path: Path | None = parser.parse_args().config
    if path is None and not os.environ.get(CONFIG_VARIABLE):
        parser.error(f"no configuration: give --config FILE, or set {CONFIG_VARIABLE} to its text")
    logs.configure("info")
    descriptors.raise_limit()
    os.umask(0o077)
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: None)  # uvicorn raises a caught signal again when it ends
    try:
        text = os.environ.get(CONFIG_VARIABLE, "")
        config = read(BridgeConfig, path) if path else parse(BridgeConfig, text, f"${CONFIG_VARIABLE}")
        gc.freeze()  # a garbage collection that visited every module would stop the bridge for 50 ms
        undelivered = asyncio.run(BridgeServer(config).run_until_stopped())
    except (ConfigError, OSError) as error:
        print_error(escaped(str(error)))
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    if undelivered:
        logging.getLogger(__name__).error("no peer received the last %d files of the job", undelivered)
    logging.shutdown()
    os._exit(undelivered > 0)  # a thread may still wait for a server that never answers


if __name__ == "__main__":
    main()
