import threading
from pathlib import Path

import pytest

from hypha_trainer.bridge import Answer, Updates
from hypha_trainer.bridge import Bridge as Client
from hypha_trainer.errors import BridgeError
from support.trainer import PEERS, Hub

from .conftest import OpenBridge


def test_a_bridge_that_is_unavailable_for_a_moment_is_asked_again(hub: Hub, open_bridge: OpenBridge) -> None:
    bridge = open_bridge(hub)
    bridge.failures["/status/send"] = 2
    client = Client(bridge.socket, bridge.work_dir)
    assert client.report("update") == Answer("Ok")
    assert hub.reports[0] == ["update"]


def test_a_refusal_is_final_and_says_which_request(hub: Hub, open_bridge: OpenBridge) -> None:
    bridge = open_bridge(hub)
    with pytest.raises(BridgeError, match=r"POST /nowhere: answered 404"):
        Client(bridge.socket, bridge.work_dir)._post("/nowhere", {})


def test_a_bridge_that_stays_away_ends_the_training(hub: Hub, open_bridge: OpenBridge) -> None:
    bridge = open_bridge(hub)
    bridge.failures["/status/send"] = 1000
    with pytest.raises(BridgeError, match="answered 503"):
        Client(bridge.socket, bridge.work_dir, retry_for_s=0.0).report("update")


def test_a_socket_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(BridgeError, match="ConnectError"):
        Client(tmp_path / "bridge.sock", tmp_path).report("update")


def test_paths_outside_the_work_directory_are_refused(tmp_path: Path) -> None:
    client = Client(tmp_path / "bridge.sock", tmp_path)
    assert client.inside("artifacts/x") == tmp_path / "artifacts/x"
    for path in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(BridgeError, match="outside the work directory"):
            client.inside(path)


def test_updates_come_over_a_subscription_that_broke_and_was_taken_up_again(hub: Hub, open_bridge: OpenBridge) -> None:
    bridge = open_bridge(hub)
    bridge.drop_events = 1
    updates = Updates(Client(bridge.socket, bridge.work_dir), PEERS)
    updates.wait_open()
    update = bridge.work_dir / "incoming" / "update"
    update.parent.mkdir()
    update.write_bytes(b"x")
    hub.mailboxes[0].put(update)
    assert updates.next(timeout_s=20) == update
    assert bridge.subscriptions == 2


def test_a_missing_update_is_reported_with_the_remedy(hub: Hub, open_bridge: OpenBridge) -> None:
    bridge = open_bridge(hub)
    updates = Updates(Client(bridge.socket, bridge.work_dir), PEERS)
    with pytest.raises(BridgeError, match=r"is the parameter server alive\? \(--update-timeout-s"):
        updates.next(timeout_s=0.01)


def test_waiting_for_an_update_ends_when_the_bridge_goes(hub: Hub, open_bridge: OpenBridge) -> None:
    bridge = open_bridge(hub)
    updates = Updates(Client(bridge.socket, bridge.work_dir), PEERS)
    updates.wait_open()
    ended = threading.Event()

    def wait() -> None:
        with pytest.raises(BridgeError, match="/resources/receive"):
            updates.next(timeout_s=30)
        ended.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    bridge.close()
    bridge.end_events()
    waiting.join()
    assert ended.is_set()
