"""Ports for programs that cannot choose one themselves."""

import socket

import pytest

from hypha_devnet.ports import free_port


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "0.0.0.0"])
def test_others_do_not_get_a_free_port_at_any_address(address: str) -> None:
    port = free_port()
    with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
        other.bind((address, port))


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_the_program_that_is_told_a_free_port_listens_there(address: str) -> None:
    port = free_port()
    with socket.create_server((address, port)), socket.create_connection(("127.0.0.1", port)):
        pass
