from collections import defaultdict
from itertools import product
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from hypha_messages.types import Resources
from hypha_worker.market.capacity import Capacity, NodeKind, Slot, sum_of
from hypha_worker.market.ledger import Ledger, LedgerState
from hypha_worker.market.rules import LedgerRules
from support.worker import ALICE, TRAIN

CORES_16 = Resources(cpu=16, memory=64, storage=100)
GPU_NODE = Resources(cpu=16, memory=64, storage=100, gpu=80)

amounts = st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0, 4.0, 8.0])
leases = st.builds(Resources, cpu=amounts, memory=amounts, storage=amounts, gpu=amounts)
kinds = st.lists(st.builds(NodeKind, count=st.integers(1, 3), each=leases), min_size=1, max_size=3).map(tuple)


def capacity(*node_kinds: NodeKind) -> Capacity:
    return Capacity(sum_of(kind.each for kind in node_kinds for _ in range(kind.count)), kinds=node_kinds)


def overfull(where: Capacity, placed: list[tuple[Slot, Resources]]) -> list[Slot]:
    on = defaultdict(list)
    for (kind, number), resources in placed:
        assert number < where.kinds[kind].count
        on[kind, number].append(resources)
    return [slot for slot, there in on.items() if not sum_of(there).fits_into(where.kinds[slot[0]].each)]


@given(kinds, st.lists(leases, max_size=8))
def test_no_node_ever_gets_more_than_it_has(node_kinds: tuple[NodeKind, ...], wanted: list[Resources]) -> None:
    where = capacity(*node_kinds)
    placed: list[tuple[Slot, Resources]] = []
    for resources in wanted:
        if slots := where.place(placed, [resources]):
            placed.append((slots[0], resources))
    assert not overfull(where, placed)
    if (slots := where.place((), wanted)) is not None:
        assert not overfull(where, list(zip(slots, wanted, strict=True)))


@given(kinds, st.lists(leases, max_size=8), leases)
def test_what_fits_on_an_empty_node_always_gets_a_place(
    node_kinds: tuple[NodeKind, ...], others: list[Resources], wanted: Resources
) -> None:
    where = capacity(*node_kinds)
    placed: list[tuple[Slot, Resources]] = []
    for resources in others:
        if slots := where.place(placed, [resources]):
            placed.append((slots[0], resources))
    nodes = {(kind, number) for kind, group in enumerate(node_kinds) for number in range(group.count)}
    empty = nodes - {slot for slot, _ in placed}
    if any(wanted.fits_into(node_kinds[kind].each) for kind, _ in empty):
        assert where.place(placed, [wanted])


@given(kinds, st.lists(leases, max_size=8))
def test_the_ledger_leases_only_what_its_nodes_can_hold_before_and_after_a_restart(
    node_kinds: tuple[NodeKind, ...], wanted: list[Resources]
) -> None:
    rules = LedgerRules(capacity(*node_kinds))
    ledger = Ledger(rules, lambda: 0.0)
    for resources in wanted:
        if lease := ledger.offer(ALICE, uuid4(), [TRAIN], resources):
            ledger.renew(lease.id, ALICE)
    granted = [lease.resources for lease in ledger.leases]
    assert can_be_packed(rules.capacity, granted)
    again = Ledger(rules, lambda: 0.0)
    again.restore(LedgerState.model_validate_json(ledger.state().model_dump_json()))
    for resources in wanted:
        again.offer(ALICE, uuid4(), [TRAIN], resources)
    assert can_be_packed(rules.capacity, [lease.resources for lease in again.leases])


def can_be_packed(where: Capacity, wanted: list[Resources]) -> bool:
    """Try every way to put the leases on nodes."""
    slots = [(kind, number) for kind, group in enumerate(where.kinds) for number in range(group.count)]
    if len(slots) ** len(wanted) > 3000:
        return True  # too many ways to try
    ways = product(slots, repeat=len(wanted))
    return any(not overfull(where, list(zip(way, wanted, strict=True))) for way in ways)


def test_four_nodes_of_sixteen_cores_hold_four_leases_of_sixteen_and_none_of_seventeen() -> None:
    ledger = Ledger(LedgerRules(capacity(NodeKind(4, CORES_16))), lambda: 0.0)
    assert not ledger.fits([Resources(cpu=17)])
    assert all(ledger.offer(ALICE, uuid4(), [TRAIN], Resources(cpu=16)) for _ in range(4))
    assert not ledger.fits([Resources(memory=1, cpu=0.1)])


def test_a_lease_without_a_gpu_leaves_the_nodes_with_gpus_free() -> None:
    where = capacity(NodeKind(1, GPU_NODE), NodeKind(1, CORES_16))
    assert where.place((), [Resources(cpu=8)]) == [(1, 0)]
    assert where.place((), [Resources(cpu=8), Resources(cpu=16, gpu=80)]) == [(1, 0), (0, 0)]


def test_a_placed_lease_does_not_move_as_its_pod_does_not() -> None:
    where = capacity(NodeKind(2, CORES_16))
    halves = [((0, 0), Resources(cpu=8)), ((0, 1), Resources(cpu=8))]
    assert where.place(halves, [Resources(cpu=16)]) is None
    assert where.place(halves, [Resources(cpu=8)]) is not None


def test_leases_that_no_longer_fit_end_before_anything_else_gets_a_place() -> None:
    ledger = Ledger(LedgerRules(capacity(NodeKind(2, CORES_16))), lambda: 0.0)
    first, second = (ledger.offer(ALICE, uuid4(), [TRAIN], Resources(cpu=16)) for _ in range(2))
    assert first
    assert second
    ledger.rules = LedgerRules(capacity(NodeKind(1, CORES_16), NodeKind(1, Resources(cpu=4))))
    assert not ledger.fits([Resources(cpu=1)])
    ledger.withdraw(first.id)
    assert ledger.fits([Resources(cpu=1)])


def test_a_job_may_have_what_one_node_has_within_its_own_limit() -> None:
    nodes = capacity(NodeKind(1, GPU_NODE), NodeKind(3, CORES_16))
    assert nodes.shapes == (CORES_16, GPU_NODE)
    limited = Capacity(nodes.total, Resources(cpu=8, memory=8, storage=8, gpu=0), nodes.kinds)
    assert limited.shapes == (Resources(cpu=8, memory=8, storage=8),)
