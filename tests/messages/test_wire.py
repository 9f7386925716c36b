"""Our bytes are the reference implementation's bytes.

`encoded.json` holds messages as the reference implementation's own serialisers write them, one of every variant;
`recorded.json` holds what its running nodes sent to each other and to us, in both directions.
"""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_messages import advertisement, cbor
from hypha_messages.advertisement import RequestWorker
from hypha_messages.api import API, DispatchJob, RequestData
from hypha_messages.health import HEALTH
from hypha_messages.job import DataRecord, DataSlice, ExecutorDescriptor, JobSpec, ModelType, PreprocessorType
from hypha_messages.progress import PROGRESS, Metrics, Progress, ProgressResponse, ReportProgress
from hypha_messages.protocol import Body
from hypha_messages.streams import decode_pull_header, decode_pull_length, encode_pull_header
from hypha_messages.types import Resources, SystemTime, peer_id_from_bytes, peer_id_to_bytes

HERE = Path(__file__).parent
PEER = "12D3KooWF8o9cA532TjN4kByfuKUEnX4BdZzxUh1z7TUEfzk23Ne"
BODIES: dict[str, Body] = {
    "api-request": API.request,
    "api-response": API.response,
    "health-request": HEALTH.request,
    "health-response": HEALTH.response,
    "progress-request": PROGRESS.request,
    "progress-response": PROGRESS.response,
}


class Advertisement(Body):
    """The gossip message, through the same two functions as everyone's."""

    def encode(self, message: Any) -> bytes:
        return advertisement.encode(message)

    def decode(self, data: bytes) -> Any:
        return advertisement.decode(data)


BODIES["request-worker"] = Advertisement()


def encoded(prefix: str = "") -> list[dict[str, Any]]:
    return [v for v in json.loads((HERE / "encoded.json").read_text()) if v["name"].startswith(prefix)]


def recorded() -> list[dict[str, Any]]:
    return json.loads((HERE / "recorded.json").read_text())


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "vector", [v for v in encoded() if v["name"].split()[0] in BODIES], ids=lambda v: v["name"].replace(" ", "_")
)
def test_a_message_decodes_from_the_reference_bytes_and_encodes_to_them(vector: dict[str, Any]) -> None:
    body = BODIES[vector["name"].split()[0]]
    wire = bytes.fromhex(vector["cbor"])
    assert body.encode(body.decode(wire)) == wire


@pytest.mark.parametrize("vector", encoded("api-request dispatch-job"), ids=lambda v: v["name"].replace(" ", "_"))
def test_a_job_file_is_the_reference_json(vector: dict[str, Any]) -> None:
    dispatch = API.request.decode(bytes.fromhex(vector["cbor"]))
    expected = vector["json"]["DispatchJob"]["spec"]
    assert json.loads(dispatch.spec.model_dump_json()) == expected
    assert type(dispatch.spec).model_validate(expected) == dispatch.spec


@pytest.mark.parametrize("vector", encoded("progress"), ids=lambda v: v["cbor"][-12:])
def test_progress_has_the_json_of_the_reference(vector: dict[str, Any]) -> None:
    message = BODIES[vector["name"]].decode(bytes.fromhex(vector["cbor"]))
    ours = json.loads(message.model_dump_json())
    if isinstance(message, ProgressResponse):
        assert ours == vector["json"]
        return
    theirs = vector["json"]["progress"]
    if isinstance(theirs, dict) and "metrics" in theirs:
        assert ours["progress"]["metrics"]["metrics"] == pytest.approx(theirs["metrics"]["metrics"], rel=1e-6)
    else:
        assert ours["progress"] == theirs


@pytest.mark.parametrize("message", recorded(), ids=lambda m: f"{m['by']}_{m['body']}_{m['kind']}".replace(" ", "_"))
def test_recorded_messages_decode_and_encode_to_the_same_bytes(message: dict[str, Any]) -> None:
    body = BODIES[message["body"]]
    wire = bytes.fromhex(message["cbor"])
    assert body.encode(body.decode(wire)) == wire


def test_every_model_and_preprocessor_type_has_the_reference_spelling() -> None:
    assert [m.value for m in ModelType] == encoded("model-types")[0]["json"]
    assert [p.value for p in PreprocessorType] == encoded("preprocessor-types")[0]["json"]


def test_slices_and_records_are_the_reference_json() -> None:
    slice_text = encoded("data-slice")[0]["text"]
    assert DataSlice.model_validate_json(slice_text).model_dump_json() == slice_text
    record_text = encoded("data-record")[0]["text"]
    assert DataRecord.model_validate_json(record_text).model_dump_json() == record_text


def test_a_pull_begins_with_the_length_of_its_json_in_eight_little_endian_bytes() -> None:
    header = encode_pull_header(DataSlice(dataset="digits", index=3))
    assert header[:8] == (30).to_bytes(8, "little")
    assert decode_pull_length(header[:8]) == 30
    assert decode_pull_header(header[8:]) == DataSlice(dataset="digits", index=3)


def test_an_over_long_pull_header_is_refused_by_its_length_alone() -> None:
    with pytest.raises(cbor.DecodeError, match="shorter than 16384"):
        decode_pull_length((1 << 20).to_bytes(8, "little"))


def test_a_job_names_its_senders_and_receivers() -> None:
    train = API.request.decode(bytes.fromhex(encoded("api-request dispatch-job train bare")[0]["cbor"])).spec
    aggregate = API.request.decode(bytes.fromhex(encoded("api-request dispatch-job aggregate")[0]["cbor"])).spec
    assert train.senders == train.receivers < aggregate.senders
    assert str(train.descriptor) == "train/diloco-transformer"


INFERENCE = {
    "model": {"task": "auto", "artifact": {"type": "uri", "value": "https://example.org/m"}, "input-names": ["x"]},
    "data": {"type": "scheduler", "peer": PEER, "dataset": "digits"},
    "batch_size": 8,
    "results": {"type": "peers", "peers": [PEER], "strategy": {"type": "All"}},
}


def inference_spec(**changes: object) -> JobSpec:
    executor = {"class": "inference", "descriptor": {"name": "transformers"}, "config": INFERENCE | changes}
    return JobSpec.model_validate({"job_id": str(UUID(int=1)), "executor": executor})


def test_an_inference_job_survives_the_wire_and_names_its_receivers() -> None:
    dispatch = DispatchJob(id=UUID(int=2), spec=inference_spec(outputs=["logits"]))
    spec = API.request.decode(API.request.encode(dispatch)).spec
    assert spec == dispatch.spec
    assert (spec.senders, spec.receivers) == (frozenset(), {PEER})
    assert inference_spec(results=None).receivers == frozenset()
    assert str(spec.descriptor) == "inference/transformers"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"data": {"type": "uri", "value": "https://example.org/slice"}}, "data"),
        ({"outputs": []}, "outputs"),
        ({"outputs": ["x"] * 65}, "outputs"),
        ({"results": {"type": "peers", "peers": [PEER] * 1025, "strategy": {"type": "All"}}}, "peers"),
    ],
)
def test_an_inference_job_beyond_its_bounds_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        inference_spec(**changes)


@pytest.mark.parametrize(
    ("classes", "topic"),
    [(["train"], advertisement.TOPIC), (["inference", "inference"], advertisement.INFERENCE_TOPIC)],
)
def test_requests_for_inference_stay_off_the_topic_of_the_reference_nodes(classes: list[str], topic: str) -> None:
    executors = [ExecutorDescriptor(class_=class_, name="x") for class_ in classes]
    spec = advertisement.WorkerSpec(resources=Resources(), executor=executors)
    request = RequestWorker(id=UUID(int=1), spec=spec, timeout=SystemTime.from_timestamp(1), bid=1.0)
    assert advertisement.topic_of(spec) == topic
    for name, decode in advertisement.DECODERS.items():
        if name == topic:
            assert decode(advertisement.encode(request)) == request
        else:
            with pytest.raises(cbor.DecodeError, match="does not belong on"):
                decode(advertisement.encode(request))


def test_a_request_for_both_inference_and_training_belongs_on_no_topic() -> None:
    executors = [ExecutorDescriptor(class_=class_, name="x") for class_ in ("train", "inference")]
    with pytest.raises(cbor.DecodeError, match="names no executors of other classes"):
        advertisement.topic_of(advertisement.WorkerSpec(resources=Resources(), executor=executors))


def test_tokens_do_not_show_in_a_printed_job() -> None:
    dispatch = API.request.decode(bytes.fromhex(encoded("api-request dispatch-job train full")[0]["cbor"]))
    assert "hf_secret" not in repr(dispatch)
    assert "hf_secret" not in str(dispatch)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@given(garbage=st.binary(max_size=200))
def test_garbage_is_refused_with_a_decode_error(body: Body, garbage: bytes) -> None:
    try:
        message = body.decode(garbage)
    except cbor.DecodeError:
        return
    assert body.decode(body.encode(message)) == message


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"", "not CBOR"),
        (b"\xa0\xa0", "1 bytes after"),
        (b"\x81" * 100_000, "not CBOR"),
        (b"\x9b" + b"\xff" * 8, "not CBOR"),
        (b"\x5b\x7f" + b"\xff" * 7 + b"x", "not CBOR"),
        (cbor.dumps({"Nonsense": {}}), "unknown variant 'Nonsense'"),
        (cbor.dumps({"Data": {"dataset": 7}}), "dataset"),
        (cbor.dumps(["Data"]), "text or a map of one entry"),
        (cbor.dumps({"RenewLease": {"id": b"short"}}), "id"),
    ],
)
def test_a_malformed_request_says_what_is_wrong(wire: bytes, reason: str) -> None:
    with pytest.raises(cbor.DecodeError, match=reason):
        API.request.decode(wire)


def test_unknown_keys_are_ignored_as_the_reference_does() -> None:
    assert API.request.decode(cbor.dumps({"Data": {"dataset": "d", "extra": 1}})) == RequestData(dataset="d")


@given(st.floats(width=32))
def test_every_single_precision_metric_survives_the_wire(value: float) -> None:
    report = ReportProgress(job_id=UUID(int=0), progress=Progress(metrics=Metrics(round=1, metrics={"loss": value})))
    decoded = PROGRESS.request.decode(PROGRESS.request.encode(report)).progress.metrics.metrics["loss"]
    assert decoded == value or (decoded != decoded and value != value)


def test_a_metric_too_large_for_single_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 3\.40282e\+38"):
        Metrics(round=1, metrics={"loss": 1e39})


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_survives_text_and_bytes(key: bytes) -> None:
    multihash = b"\x00\x24\x08\x01\x12\x20" + key
    text = peer_id_from_bytes(multihash)
    assert text.startswith("12D3Koo")
    assert peer_id_to_bytes(text) == multihash


@given(st.text(max_size=80))
def test_text_that_is_not_a_peer_id_is_refused(text: str) -> None:
    try:
        multihash = peer_id_to_bytes(text)
    except ValueError:
        return
    assert peer_id_from_bytes(multihash) == text


@given(st.floats(min_value=0, max_value=4e9))
def test_a_time_survives_the_wire_to_the_microsecond(seconds: float) -> None:
    assert SystemTime.from_timestamp(seconds).timestamp == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -1.0])
def test_resources_are_finite_and_not_negative(amount: float) -> None:
    with pytest.raises(ValueError, match="gpu"):
        Resources(gpu=amount)
