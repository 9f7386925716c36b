import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from hypha_devnet.events import Events
from hypha_devnet.roles import data_node
from hypha_devnet.roles.data_node import DataNode, find_datasets
from hypha_messages.job import DataSlice
from hypha_messages.streams import PULL, encode_pull_header
from hypha_network.errors import StreamReset
from hypha_network.network import Network
from hypha_worker.config_file import ConfigError
from support.certs import Pki
from support.networks import direct_address, gateway, member, node

pytestmark = pytest.mark.anyio
CONTENTS = {"a.safetensors": b"first", "b.safetensors": bytes(range(256)) * 10_000, "c.safetensors": b""}


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    directory = tmp_path / "digits"
    directory.mkdir()
    for name, content in CONTENTS.items():
        (directory / name).write_bytes(content)
    (directory / ".hidden").write_bytes(b"no slice")
    return directory


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[tuple[Network, str]]:
    """A node that pulls, and the peer id of one that serves the directory."""
    pki = Pki()
    async with node(pki, "data") as data, node(pki, "puller") as puller:
        data.handle_stream(PULL, DataNode(find_datasets((directory,)), Events()).pull)
        yield puller, await puller.dial(direct_address(data))


async def pull(network: Network, peer: str, header: bytes) -> bytes:
    """Return the bytes that arrive until the stream ends or breaks."""
    stream = await network.open_stream(peer, PULL)
    received = b""
    with trio.fail_after(10):
        try:
            await stream.send_all(header)
            await stream.send_eof()
            while data := await stream.receive_some():
                received += bytes(data)
        except StreamReset:
            pass
    await stream.aclose()
    return received


def header(dataset: str, index: int) -> bytes:
    return encode_pull_header(DataSlice(dataset=dataset, index=index))


async def test_every_slice_arrives_complete_in_the_order_of_the_names(digits: Path) -> None:
    async with serving(digits) as (network, peer):
        for index, content in enumerate(CONTENTS.values()):
            assert await pull(network, peer, header("digits", index)) == content


@pytest.mark.parametrize(
    "bad",
    [
        header("letters", 0),
        header("digits", 3),
        header("../digits", 0),
        header("", 0),
        struct.pack("<Q", 1 << 40),
        struct.pack("<Q", 1024 * 1024),
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 20) + b"\xff" * 20,
        struct.pack("<Q", 100) + b"cut off",
        b"\x01\x02",
        b"",
    ],
)
async def test_a_pull_of_an_unknown_slice_gets_no_bytes_and_the_next_is_served(digits: Path, bad: bytes) -> None:
    async with serving(digits) as (network, peer):
        assert await pull(network, peer, bad) == b""
        assert await pull(network, peer, header("digits", 0)) == b"first"


async def test_a_peer_that_sends_no_header_is_disconnected(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_node, "HEADER_TIMEOUT_S", 0.2)
    async with serving(digits) as (network, peer):
        stream = await network.open_stream(peer, PULL)
        with trio.fail_after(5):
            with suppress(StreamReset):
                assert not await stream.receive_some()


async def test_many_pulls_at_once_all_get_their_slice(digits: Path) -> None:
    async with serving(digits) as (network, peer):
        received: list[bytes] = []

        async def one() -> None:
            received.append(await pull(network, peer, header("digits", 1)))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
        assert received == [CONTENTS["b.safetensors"]] * 20


async def test_datasets_are_announced_once_a_peer_can_store_the_record(digits: Path) -> None:
    pki = Pki()
    async with gateway(pki) as entrance, member(pki, "data", entrance) as data, member(pki, "other", entrance) as other:
        await DataNode(find_datasets((digits,)), Events()).announce(data)
        record = await other.get_record("digits")
        assert record is not None
        assert (record.value, record.publisher) == (b'{"num_slices":3}', data.peer_id)


class TestFinding:
    def test_no_directory_at_all_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match="dataset_path"):
            find_datasets(())

    def test_a_missing_directory_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="nowhere: No such file"):
            find_datasets((tmp_path / "nowhere",))

    def test_an_empty_directory_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="holds no files"):
            find_datasets((tmp_path,))

    def test_two_directories_of_one_name_are_an_error(self, digits: Path) -> None:
        with pytest.raises(ConfigError, match="repeats 'digits'"):
            find_datasets((digits, digits))
