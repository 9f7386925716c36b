"""A data node: announces each directory as a dataset and streams its files, the slices, to the peers that pull them."""

import logging
from pathlib import Path

import trio

from hypha_devnet.config import DataConfig
from hypha_devnet.events import Events
from hypha_devnet.roles.node import join
from hypha_messages.cbor import DecodeError
from hypha_messages.job import DataRecord
from hypha_messages.streams import PULL, PULL_LENGTH_BYTES, decode_pull_header, decode_pull_length
from hypha_network.errors import NetworkError
from hypha_network.network import Network
from hypha_network.wire.streams import Stream
from hypha_worker.config_file import ConfigError

logger = logging.getLogger(__name__)

READ_BYTES = 1024 * 1024
MAX_PULLS = 64
HEADER_TIMEOUT_S = 10.0
ANNOUNCE_RETRY_S = 1.0


class DataNode:
    """Serves datasets: by name, the files of their slices."""

    def __init__(self, datasets: dict[str, list[Path]], events: Events) -> None:
        self._datasets = datasets
        self._events = events
        self._pulls = trio.CapacityLimiter(MAX_PULLS)

    async def pull(self, peer_id: str, stream: Stream) -> None:
        """Serve one pull: read its header and stream the slice, or nothing if the slice is unknown."""
        try:
            with trio.fail_after(HEADER_TIMEOUT_S):
                length = decode_pull_length(bytes(await stream.read_exactly(PULL_LENGTH_BYTES)))
                wanted = decode_pull_header(bytes(await stream.read_exactly(length)))
        except (DecodeError, trio.TooSlowError) as error:
            logger.warning("%s sent no valid pull header: %s", peer_id, error or "timed out")
            return
        slices = self._datasets.get(wanted.dataset, [])
        if wanted.index >= len(slices):
            logger.warning("%s asks for slice %d of %r, which is unknown", peer_id, wanted.index, wanted.dataset)
            return
        async with self._pulls:
            size_bytes = await _send_file(slices[wanted.index], stream)
        self._events.emit("pulled", peer=peer_id, dataset=wanted.dataset, index=wanted.index, bytes=size_bytes)

    async def announce(self, network: Network) -> None:
        """Put a record for every dataset into the DHT, as soon as there is a peer that stores it."""
        await network.wait_ready()
        for name, slices in self._datasets.items():
            record = DataRecord(num_slices=len(slices)).model_dump_json().encode()
            while True:
                try:
                    await network.put_record(name, record)
                    break
                except NetworkError as error:
                    logger.warning("cannot announce %s yet: %s", name, error)
                    await trio.sleep(ANNOUNCE_RETRY_S)
            self._events.emit("announced", dataset=name, slices=len(slices))


def find_datasets(directories: tuple[Path, ...]) -> dict[str, list[Path]]:
    """Return by directory name the files of each directory; ConfigError if a directory has none."""
    if not directories:
        raise ConfigError("dataset_path: name at least one directory of slices")
    datasets = {}
    for directory in directories:
        try:
            slices = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
        except OSError as error:
            raise ConfigError(f"dataset_path: {directory}: {error.strerror}") from error
        name = directory.resolve().name
        if not slices or name in datasets:
            raise ConfigError(f"dataset_path: {directory} " + ("holds no files" if not slices else f"repeats {name!r}"))
        datasets[name] = slices
    return datasets


async def run_data_node(config: DataConfig, events: Events) -> int:
    """Serve until cancelled."""
    node = DataNode(find_datasets(config.datasets), events)
    async with join(config) as network:
        network.handle_stream(PULL, node.pull)
        events.emit("listening", peer_id=network.peer_id, addresses=network.addresses())
        await node.announce(network)
        await trio.sleep_forever()
    return 0


async def _send_file(path: Path, stream: Stream) -> int:
    """Stream a file to its end; return its size."""
    size_bytes = 0
    async with await trio.open_file(path, "rb", buffering=0) as file:
        piece = await file.read(READ_BYTES)
        while piece:
            size_bytes += len(piece)
            await stream.send_all(piece)
            piece = await file.read(READ_BYTES)
    await stream.send_eof()
    return size_bytes
