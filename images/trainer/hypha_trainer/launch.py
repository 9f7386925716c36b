"""Start the processes of a trainer: `python -m hypha_trainer.launch`, then the arguments of `accelerate launch`.

The processes of `accelerate launch` find each other through a TCP server that listens on every network and asks for no
password. Here they find each other through files that only this user can open.
"""

import os
import tempfile

from accelerate.commands.launch import launch_command, launch_command_parser

from hypha_trainer.processes import STORE_VARIABLE


def main() -> None:
    """Run accelerate's launcher until all processes have ended."""
    options = launch_command_parser().parse_args()
    with tempfile.TemporaryDirectory() as directory:
        options.rdzv_backend, options.rdzv_conf = "c10d", "store_type=file"
        options.rdzv_endpoint = f"{directory}/launcher"
        options.main_process_port = 0  # unused, but accelerate checks that the port is free
        os.environ.update({STORE_VARIABLE: f"{directory}/trainer", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
        launch_command(options)


if __name__ == "__main__":
    main()
