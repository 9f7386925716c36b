"""An upgrade of the operator replaces few controllers at a time."""

from typing import Any

from hypha_contracts.kinds import DEPLOYMENT
from hypha_operator.machinery.kinds import Key
from hypha_operator.workers.rollout import COUNTED_S, MAX_AT_ONCE, Rollouts


def deployment(image: str, *, available: bool = True, seen: bool = True) -> dict[str, Any]:
    return {
        "metadata": {"generation": 2},
        "spec": {"template": {"spec": {"containers": [{"name": "worker", "image": image}]}}},
        "status": {
            "observedGeneration": 2 if seen else 1,
            "conditions": [{"type": "Available", "status": str(available)}],
        },
    }


class Fleet:
    """Controllers with an old image, of which an operator with a new one replaces some."""

    def __init__(self, size: int) -> None:
        self.controllers = {Key(DEPLOYMENT, "ns", f"w{number}"): deployment("old") for number in range(size)}
        self.rollouts = Rollouts()
        self.now_s = 0.0

    def upgrade(self) -> list[str]:
        """Reconcile all workers once; return those whose pod is replaced now."""
        replaced = []
        for key, observed in self.controllers.items():
            if observed != deployment("new") and self.admits(key):
                replaced.append(key.name)
                self.controllers[key] = deployment("new", seen=False)
                self.rollouts.on_applied(key)
        return replaced

    def admits(self, key: Key) -> bool:
        return self.rollouts.admits(key, self.controllers.get(key), self.now_s, self.controllers.get)

    def is_back(self, name: str) -> None:
        self.controllers[Key(DEPLOYMENT, "ns", name)] = deployment("new")


def test_the_next_controller_gets_the_new_image_once_one_is_available_again() -> None:
    fleet = Fleet(MAX_AT_ONCE + 2)
    first = fleet.upgrade()
    assert len(first) == MAX_AT_ONCE
    assert fleet.upgrade() == first, "it is not rolled out further while they are down"
    fleet.is_back(first[0])
    assert fleet.upgrade()[-1] == f"w{MAX_AT_ONCE}"


def test_all_controllers_get_the_new_image_in_the_end() -> None:
    fleet, replaced = Fleet(10), set[str]()
    while more := set(fleet.upgrade()):
        replaced |= more
        for name in more:
            fleet.is_back(name)
    assert len(replaced) == 10


def test_an_image_that_does_not_start_reaches_a_few_controllers_only() -> None:
    fleet = Fleet(10)
    first = fleet.upgrade()
    for name in first:
        fleet.controllers[Key(DEPLOYMENT, "ns", name)] = deployment("new", available=False)
    fleet.now_s = COUNTED_S - 1
    assert set(fleet.upgrade()) <= set(first)


def test_controllers_that_stay_down_do_not_block_the_others_for_ever() -> None:
    fleet = Fleet(10)
    fleet.upgrade()
    fleet.now_s = COUNTED_S + 1
    assert len([name for name in fleet.upgrade() if name not in {f"w{n}" for n in range(MAX_AT_ONCE)}]) == MAX_AT_ONCE


def test_a_controller_that_is_down_and_a_new_one_need_no_turn() -> None:
    fleet = Fleet(MAX_AT_ONCE)
    fleet.upgrade()
    key = Key(DEPLOYMENT, "ns", "another")
    assert fleet.admits(key)
    fleet.controllers[key] = deployment("old", available=False)
    assert fleet.admits(key)
    fleet.controllers[key] = deployment("old")
    assert not fleet.admits(key)


def test_controllers_count_while_their_change_is_applied() -> None:
    fleet = Fleet(MAX_AT_ONCE + 1)
    *first, last = fleet.controllers
    assert all(map(fleet.admits, first))
    assert not fleet.admits(last)
    fleet.rollouts.on_applied(first[0])
    assert fleet.admits(last), "the change did not replace its pod"
