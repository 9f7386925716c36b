from pathlib import Path

import pytest

from hypha_devnet.config import DataConfig, GatewayConfig, NodeConfig, SchedulerConfig, load
from hypha_messages.job import HuggingFaceReference, ModelType, UriReference
from hypha_network.services.relay_server import BulkLimits
from hypha_worker.config_file import ConfigError

NODE = """
cert_pem = "cert.pem"
key_pem = "key.pem"
trust_pem = "trust.pem"
gateway_addresses = ["/ip4/192.0.2.1/tcp/4001"]
"""
SCHEDULER = (
    NODE
    + """
telemetry_endpoint = "http://collector:4318"  # the reference implementation's, without meaning here
[scheduler.job]
type = "diloco"
[scheduler.job.model]
repository = "hypha-space/lenet"
filenames = ["config.json", "model.safetensors"]
type = "image-classification"
input_names = ["pixel_values", "labels"]
[scheduler.job.preprocessor]
repository = "hypha-space/lenet"
filenames = ["preprocessor_config.json"]
type = "image"
input_names = ["images"]
[scheduler.job.dataset]
dataset = "mnist"
[scheduler.job.rounds]
avg_samples_between_updates = 1200
update_rounds = 100
max_batch_size = 600
[scheduler.job.inner_optimizer]
learning-rate = 0.001
[scheduler.job.outer_optimizer]
learning-rate = 0.7
momentum = 0.9
[scheduler.job.resources]
num_workers = 2
worker = { gpu = 10.0, cpu = 1.0, storage = 0.0, memory = 1.0 }
parameter_server = { gpu = 0.0, cpu = 1.0, storage = 0.0, memory = 1.0 }
worker_price = { bid = 110.0, max = 160.0 }
"""
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(SCHEDULER)
    return path


def test_the_reference_implementations_file_is_understood(file: Path) -> None:
    job = load(SchedulerConfig, file).scheduler.job
    assert job.model.type is ModelType.IMAGE_CLASSIFICATION
    assert isinstance(job.model.artifact(), HuggingFaceReference)
    assert job.inner_optimizer.learning_rate == 0.001
    assert (job.resources.worker_price.max, job.resources.parameter_server_price.max) == (160.0, 100.0)


def test_overrides_are_toml_or_else_text(file: Path) -> None:
    overrides = ["scheduler.job.rounds.update_rounds=3", "scheduler.job.dataset.dataset=digits", "relay_circuit=false"]
    config = load(SchedulerConfig, file, overrides)
    assert config.scheduler.job.rounds.update_rounds == 3
    assert config.scheduler.job.dataset.dataset == "digits"
    assert not config.network().relay_circuit


def test_a_model_may_come_from_a_url(file: Path) -> None:
    file.write_text(
        SCHEDULER.replace(
            'repository = "hypha-space/lenet"\nfilenames = ["config.json", "model.safetensors"]',
            'uri = "https://example.org/model"',
        )
    )
    assert load(SchedulerConfig, file).scheduler.job.model.artifact() == UriReference(value="https://example.org/model")


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("scheduler.job.rounds.update_rounds=0", r"scheduler\.job\.rounds\.update_rounds: .*greater"),
        ("scheduler.job.resources.num_workers=many", r"scheduler\.job\.resources\.num_workers"),
        ("scheduler.job.model.uri=x", "set either repository"),
        ("scheduler.job.model.repositroy=x", "repositroy"),
        ("scheduler.job.outer_optimizer={}", "learning-rate"),
        ("no value", "key=value"),
        ("cert_pem.x=1", "is a value, not a table"),
    ],
)
def test_a_wrong_value_is_named(file: Path, override: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load(SchedulerConfig, file, [override])


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        load(NodeConfig, tmp_path / "nowhere.toml")
    (tmp_path / "bad.toml").write_text("= 1")
    with pytest.raises(ConfigError, match=r"bad\.toml: not TOML"):
        load(NodeConfig, tmp_path / "bad.toml")


def test_a_data_node_takes_one_directory_or_several(file: Path) -> None:
    config = load(DataConfig, file, ["dataset_path=one", 'dataset_paths=["two", "three"]'])
    assert set(config.datasets) == {Path("one"), Path("two"), Path("three")}


@pytest.mark.parametrize(
    ("relay", "limits"),
    [
        ("", None),
        ("[relay]\npeer_mb_per_s = 10", BulkLimits(10_000_000)),
        ("[relay]\npeer_mb_per_s = 10\ntotal_mb_per_s = 0.5", BulkLimits(10_000_000, 500_000)),
    ],
)
def test_a_gateway_relays_bulk_data_at_the_configured_rates(
    relay: str, limits: BulkLimits | None, tmp_path: Path
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f"{NODE}{relay}")
    assert load(GatewayConfig, file).network().relay_bulk == limits


def test_a_rate_of_zero_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f"{NODE}[relay]\npeer_mb_per_s = 0")
    with pytest.raises(ConfigError, match="peer_mb_per_s"):
        load(GatewayConfig, file)
