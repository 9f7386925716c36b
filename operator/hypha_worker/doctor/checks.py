"""The list of all checks. `docs/troubleshooting.md` shows it."""

from typing import Final

from hypha_worker.doctor import gateways, interpreters, local, market, services
from hypha_worker.doctor.check import Check, blocking

_NO_REQUESTS: Final = "Worker not receiving task advertisements"
_NO_OFFERS: Final = "Offers rejected by scheduler"
_NO_START: Final = "Jobs failing to start"
_NO_BRIDGE: Final = "Job bridge connection failures"
_NO_FETCH: Final = "Resource fetch failures"
_NO_MODULE: Final = '"Module not found" errors'
_NO_TRAINING: Final = "Training doesn't start"
_NO_UV: Final = "uv command not found"
_NO_DEVICE: Final = "PyTorch device mismatch"

_VISIT_S: Final = gateways.CONNECT_S + market.JOIN_S + market.SUBSCRIBE_S + market.LISTEN_S + market.REACH_S + 5
_PYTHON_S: Final = interpreters.ASK_S + 5

CHECKS: Final[tuple[Check, ...]] = (
    Check(
        "configuration.file",
        "Configuration",
        "Can the configuration file be used, and are all keys where they belong?",
        blocking(local.configuration),
        at_start=True,
    ),
    Check(
        "configuration.node",
        "Configuration",
        "Does a node run with this work directory already?",
        blocking(local.running_node),
    ),
    Check("machine.platform", "Machine", "Is this Linux with a kernel that the node needs?", blocking(local.platform)),
    Check(
        "machine.resources",
        "Machine",
        "Does the machine have the cores, memory, storage and GPU memory of `[resources]`?",
        interpreters.resources,
        _NO_OFFERS,
        at_start=True,
    ),
    Check(
        "machine.descriptors",
        "Machine",
        "May this user open enough files for many peers?",
        blocking(local.open_files),
        at_start=True,
    ),
    Check(
        "machine.file_size",
        "Machine",
        "May this user write files as large as the offered storage?",
        blocking(local.file_size),
        _NO_FETCH,
        at_start=True,
    ),
    Check(
        "machine.limits",
        "Machine",
        "Can control groups limit jobs to the memory, cores and processes of their leases?",
        blocking(local.job_limits),
    ),
    Check(
        "machine.clock",
        "Machine",
        "Does a time service keep the clock, and do the collector and the hub agree with it?",
        services.clock,
        _NO_OFFERS,
    ),
    Check(
        "identity.certificate",
        "Identity",
        "Can certificate, key, trust bundle and revocation lists be used, and for how long?",
        blocking(local.certificate),
        at_start=True,
    ),
    Check(
        "identity.trust",
        "Identity",
        "Does the trust bundle lead to the certificate, and are the revocation lists current?",
        blocking(local.trust),
        at_start=True,
    ),
    Check("identity.key", "Identity", "Is the key private?", blocking(local.key), at_start=True),
    Check(
        "network.gateways",
        "Network",
        "Does each gateway accept a connection of this node (name, TCP or QUIC, both certificates, peer id, ping)?",
        gateways.gateways,
        _NO_REQUESTS,
    ),
    Check(
        "network.listen",
        "Network",
        "Can the node listen at its addresses?",
        blocking(gateways.listen_addresses),
        at_start=True,
    ),
    Check(
        "network.join",
        "Network",
        "Can the node join: do gateways answer look-ups and reserve a relay slot?",
        market.join,
        _NO_REQUESTS,
        timeout_s=_VISIT_S,
    ),
    Check(
        "network.reach",
        "Network",
        "Can peers send models to the node: directly, through its NAT, or through a gateway?",
        market.reach,
        timeout_s=_VISIT_S,
    ),
    Check(
        "market.topic",
        "Market",
        "Do peers subscribe to `hypha/worker`, and have they this node in their mesh?",
        market.topic,
        _NO_REQUESTS,
        timeout_s=_VISIT_S,
    ),
    Check(
        "market.terms",
        "Market",
        "Which executors does the worker offer, from which bid on?",
        blocking(local.terms),
        _NO_OFFERS,
    ),
    Check(
        "market.requests",
        "Market",
        "Which of the requests that arrive now would get an offer, and why not the others?",
        market.requests,
        _NO_OFFERS,
        timeout_s=_VISIT_S,
    ),
    Check(
        "executors.programs",
        "Executors",
        "Is the program of each executor in PATH, and are bridge and parameter server installed?",
        blocking(local.programs),
        f"{_NO_START}; {_NO_UV}",
        at_start=True,
    ),
    Check(
        "executors.placeholders",
        "Executors",
        "Are the placeholders in the executors' arguments spelt right, and have the options of uv an effect?",
        blocking(local.placeholders),
        _NO_START,
        at_start=True,
    ),
    Check(
        "executors.files",
        "Executors",
        "Does the Accelerate configuration that an executor names exist?",
        blocking(local.files),
        _NO_TRAINING,
        at_start=True,
    ),
    Check(
        "executors.modules",
        "Executors",
        "Has the Python interpreter of each executor the modules that it runs?",
        interpreters.modules,
        _NO_MODULE,
        timeout_s=_PYTHON_S,
    ),
    Check(
        "executors.wheels",
        "Executors",
        "Do the wheels exist that executors install?",
        services.wheels,
        _NO_MODULE,
    ),
    Check(
        "executors.devices",
        "Executors",
        "Do the PyTorch build, the driver and the Accelerate configuration suit the GPUs?",
        interpreters.devices,
        f"{_NO_DEVICE}; {_NO_TRAINING}",
        timeout_s=_PYTHON_S,
    ),
    Check(
        "work_dir.access",
        "Work directory",
        "Can this user write to the work directory, and nobody else?",
        blocking(local.access),
        _NO_START,
        at_start=True,
    ),
    Check(
        "work_dir.path",
        "Work directory",
        "Is its path short enough for Unix sockets?",
        blocking(local.path_length),
        _NO_BRIDGE,
        at_start=True,
    ),
    Check("work_dir.space", "Work directory", "Has its disk space left?", blocking(local.space), _NO_FETCH),
    Check(
        "work_dir.sockets",
        "Work directory",
        "Do sockets work in it, and are those of node and bridges private (0600)?",
        blocking(local.sockets),
        _NO_BRIDGE,
    ),
    Check(
        "jobs.logs",
        "Jobs",
        "How did the last job end, and where are its logs?",
        blocking(local.job_logs),
        _NO_START,
    ),
    Check(
        "sources.hub",
        "Services",
        "Does the model hub of HF_ENDPOINT answer, and know the token of HF_TOKEN?",
        services.hub,
        _NO_FETCH,
    ),
    Check(
        "sources.hub_token",
        "Services",
        "Can the token that is lent to jobs (`hub_token`) be read, and by nobody else?",
        blocking(local.hub_token),
        _NO_FETCH,
        at_start=True,
    ),
    Check("telemetry.collector", "Services", "Does the telemetry collector take data?", services.collector),
)
