from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hypha_messages.types import Resources
from hypha_worker.config_file import ConfigError, load
from hypha_worker.market.settings import EVERYTHING, NOTHING, Permit, reload, settings_of
from support.worker import ALICE, BOB, request

TOP = """\
cert_pem = "tls.crt"
key_pem = "tls.key"
trust_pem = "ca.crt"
gateway_addresses = ["/ip4/203.0.113.50/tcp/4001"]
work_dir = "work"
"""
TABLES = """
[resources]
cpu = 64
memory = 256
storage = 400
{resources}
[[executors]]
class = "train"
name = "test"
runtime = "process"
cmd = "uv"
"""
FOUR_NODES = "nodes = [{ count = 4, cpu = 16, memory = 64, storage = 100 }]"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "worker.toml"


def read(file: Path, *, top: str = "", resources: str = "", tables: str = "") -> Any:
    file.write_text(f"{TOP}{top}\n{tables}\n{TABLES.format(resources=resources)}")
    return load(file, {}).config


def test_a_request_for_more_cores_than_any_node_has_is_refused_with_a_reason_that_says_so(file: Path) -> None:
    policy = settings_of(read(file, resources=FOUR_NODES), EVERYTHING).policy
    refusal = policy.refusal(request(Resources(cpu=32)), now=0)
    assert refusal
    assert (refusal.reason, refusal.message) == (
        "MoreThanPerJob",
        "it asks for 32 cores, of which one job may have at most 16",
    )
    assert policy.refusal(request(Resources(cpu=16)), now=0) is None


def test_with_nodes_the_strategy_whole_offers_one_node_to_a_job(file: Path) -> None:
    policy = settings_of(read(file, resources=FOUR_NODES), EVERYTHING).policy
    assert policy.options(request(Resources(cpu=2))) == (Resources(cpu=16, memory=64, storage=100),)


def test_one_job_may_be_limited_without_nodes(file: Path) -> None:
    policy = settings_of(read(file, resources="per_job = { cpu = 8 }"), EVERYTHING).policy
    assert policy.options(request(Resources(cpu=2))) == (Resources(cpu=8, memory=256, storage=400),)
    assert policy.refusal(request(Resources(cpu=9)), now=0)


def test_the_permit_cuts_down_what_was_configured(file: Path) -> None:
    permit = Permit(
        enabled=True,
        proven_at=5.0,
        limit=Resources(cpu=30, memory=300, storage=400),
        per_job=Resources(cpu=10, memory=300, storage=400),
    )
    settings = settings_of(read(file, tables='[offer]\nstrategy = "flexible"'), permit)
    assert settings.rules.capacity.total == Resources(cpu=30, memory=256, storage=400)
    assert settings.policy.refusal(request(Resources(cpu=10)), now=0) is None
    assert settings.policy.refusal(request(Resources(cpu=11)), now=0)
    assert settings.proven_at == 5.0


def test_a_lease_is_never_cut_below_the_minimum(file: Path) -> None:
    permit = Permit(enabled=True, limit=Resources(cpu=0.5, memory=256, storage=400))
    for strategy in ("flexible", "whole"):
        policy = settings_of(read(file, tables=f'[offer]\nstrategy = "{strategy}"'), permit).policy
        assert policy.refusal(request(Resources()), now=0)


def test_the_minimum_of_a_small_worker_is_its_capacity(file: Path) -> None:
    tables = '[offer]\nstrategy = "flexible"\nminimum = { cpu = 100, memory = 1, storage = 1 }'
    policy = settings_of(read(file, tables=tables), EVERYTHING).policy
    assert policy.options(request(Resources())) == (Resources(cpu=64, memory=1, storage=1),)


@pytest.mark.parametrize(
    ("top", "permit", "offers"),
    [("", EVERYTHING, True), ("suspend = true", EVERYTHING, False), ("", NOTHING, False)],
)
def test_a_suspended_worker_or_one_that_may_sell_nothing_makes_no_offers(
    file: Path, top: str, permit: Permit, offers: bool
) -> None:
    assert settings_of(read(file, top=top), permit).offers is offers


def test_the_deadline_of_a_suspended_worker_ends_its_leases_and_otherwise_means_nothing(file: Path) -> None:
    deadline = "suspend_deadline = 2030-01-31T08:00:00Z"
    closes = datetime(2030, 1, 31, 8, tzinfo=UTC).timestamp()
    assert settings_of(read(file, top=f"suspend = true\n{deadline}"), EVERYTHING).rules.closes == closes
    assert settings_of(read(file, top=deadline), EVERYTHING).rules.closes is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tables": "[schedulers]\nmax_share = 0.5"}, "which is more than any share"),
        ({"tables": "[schedulers]\nmax_share = 1.5"}, "schedulers.max_share"),
        ({"tables": '[schedulers]\nblock = ["bob"]'}, "peer id"),
        ({"resources": "nodes = [{ count = 0, cpu = 1, memory = 1, storage = 1 }]"}, "count"),
        ({"top": 'suspend_deadline = "tomorrow"'}, "suspend_deadline"),
        ({"top": 'suspend_deadline = "2030-01-31T08:00:00"'}, "timezone"),
    ],
)
def test_values_that_cannot_work_are_refused(file: Path, arguments: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(file, **arguments)


def test_a_share_needs_leases_that_are_smaller_than_the_worker(file: Path) -> None:
    tables = f'[schedulers]\nmax_share = 0.5\nallow = ["{ALICE}"]\nblock = ["{BOB}"]'
    settings = settings_of(read(file, tables=tables, resources=FOUR_NODES), EVERYTHING)
    assert settings.rules.share == Resources(cpu=32, memory=128, storage=200)
    assert settings.policy.exclusion(ALICE) is None
    assert settings.policy.exclusion(BOB)


def test_a_reload_takes_over_what_a_running_node_can_change_and_names_the_rest(file: Path) -> None:
    running = read(file)
    found = reload(
        running,
        read(
            file,
            top='suspend = true\nrelay_circuit = false\ntelemetry_endpoint = "http://otel:4318"',
            tables="[offer]\nprice = 7\n[jobs]\nmax_duration_s = 60\nread_ahead = 3\n[leases]\nduration_s = 20",
            resources="gpu = 80\ngpu_device = 80",
        ),
    )
    assert found.changed == (
        *("suspend", "resources.gpu", "offer.price", "offer.floor", "leases.duration_s", "jobs.max_duration_s"),
    )
    assert found.left_alone == ("relay_circuit", "resources.gpu_device", "jobs.read_ahead", "telemetry_endpoint")
    config = found.config
    assert (config.suspend, config.offer.price, config.leases.duration_s) == (True, 7, 20)
    assert (config.jobs.max_duration_s, config.resources.gpu) == (60, 80)
    assert (config.jobs.read_ahead, config.relay_circuit, config.resources.gpu_device) == (1, True, 0)


def test_a_reload_of_the_same_file_changes_nothing(file: Path) -> None:
    running = read(file)
    found = reload(running, read(file))
    assert (found.config, found.changed, found.left_alone) == (running, (), ())
