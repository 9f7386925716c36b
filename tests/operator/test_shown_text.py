"""What kubectl shows of a job whose scheduler, executor and bridge send text that would change a terminal."""

import json
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from hypha_contracts.kinds import POD
from hypha_contracts.node_config import KubernetesConfig
from hypha_worker.runtimes.kubernetes.objects import hypha_job
from support import jobs
from support.api_server import ApiServer
from support.hostile_text import HOSTILE
from support.job_world import open_job_world
from support.resources import PEER, install_definitions

pytestmark = pytest.mark.anyio
TEXT = "".join(letter for letter in HOSTILE if not "\ud800" <= letter <= "\udfff")
CONFIG = KubernetesConfig(namespace="ns", worker="w", worker_uid="uid")
LAYOUT = {"\n", "\t"}
"""What kubectl itself writes between texts."""


async def test_kubectl_shows_no_control_or_hidden_character_of_a_hostile_job(control_plane: ApiServer) -> None:
    install_definitions(control_plane)
    data = {"type": "scheduler", "peer": PEER, "dataset": f"digits{TEXT}"}
    config = hypha_job(jobs.job(jobs.train_spec(data=data)), CONFIG, PEER, uuid4())
    async with open_job_world(control_plane) as world:
        world.make_job(config=config["spec"]["config"])
        await world.until(lambda: world.pods)
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        end = {"exitCode": 1, "reason": "Error", "message": f"died {TEXT}", "startedAt": now, "finishedAt": now}
        executor = {"name": "executor", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
        status = {"phase": "Failed", "containerStatuses": [executor | {"state": {"terminated": end}}]}
        world.call("PATCH", world.path(POD, world.pods[0]["metadata"]["name"], "status"), {"status": status})
        await world.until_phase("Failed")
        assert "died" in json.dumps(world.status)
        namespace = f"--namespace={world.namespace}"
        for command in (
            ("describe", "hyphajob", world.name),
            ("get", "hyphajobs", "-owide"),
            ("get", "hyphajob", world.name, "-oyaml"),
            ("get", "hyphajob", world.name, "-ojsonpath={.status}"),
            ("get", "events"),
            ("get", "events", "-ojsonpath={.items[*].message}"),
        ):
            shown = control_plane.kubectl(*command, namespace)
            assert not (set(shown) - LAYOUT) & set(HOSTILE), (command, ascii(shown))
