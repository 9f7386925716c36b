"""The part of a HyphaWorker that lists its executors."""

from typing import Annotated

from pydantic import ConfigDict, Field

from hypha_contracts.names import QUEUE_LABEL
from hypha_messages.job import ExecutorClass
from hypha_resources.accelerate import Accelerate
from hypha_resources.common import Annotations, Labels, Name, Passthrough, Schema, rules

Argument = Annotated[
    str,
    Field(
        json_schema_extra=rules(
            (
                "!self.contains('{JOB_JSON}')",
                (
                    "the operator cannot read jobs, whose tokens are in Secrets; write {JOB_FILE}, the path of a file "
                    "with the same JSON, or for a program that takes only JSON: "
                    "[sh, -c, 'exec PROGRAM --job \"$(cat {JOB_FILE})\"']"
                ),
            )
        )
    ),
]
"""A part of a command line."""
Arguments = Annotated[list[Argument], Field(max_length=128)]
"""A command line. The API server accepts the rule for its parts only if their number is limited."""


class Executor(Schema):
    """The kinds of jobs that this worker runs, and how.

    Schedulers ask for an executor by class and name, so each pair may occur only once.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "has(self.image) || !has(self.accelerate) || !has(self.accelerate.mixed_precision)"
                    " || self.accelerate.mixed_precision != 'fp8'"
                ),
                (
                    "accelerate.mixed_precision: the operator's trainer image has no library for fp8; "
                    "set image to one with torchao or Transformer Engine, or use bf16"
                ),
            ),
            (
                (
                    "has(self.image) || !has(self.accelerate) || !has(self.accelerate.dynamo_config)"
                    " || !has(self.accelerate.dynamo_config.dynamo_backend)"
                    " || self.accelerate.dynamo_config.dynamo_backend.upperAscii() != 'INDUCTOR'"
                ),
                (
                    "accelerate.dynamo_config.dynamo_backend: the operator's trainer image has no C compiler for "
                    "INDUCTOR; set image to one with gcc, or use another backend"
                ),
            ),
            (
                f"!has(self.labels) || !('{QUEUE_LABEL}' in self.labels)",
                f"labels: name the queue in queueName instead of the label {QUEUE_LABEL}",
            ),
        )
    )

    class_: ExecutorClass = Field(alias="class", description="The kind of job.")
    name: Annotated[str, Field(min_length=1, max_length=253)] = Field(
        description="The name that schedulers request: usually diloco-transformer for train, parameter-server for "
        "aggregate and transformers for inference (docs/inference.md)."
    )
    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        default=None,
        description="Your own image. Default: the operator's trainer image, which also infers, or its parameter-server "
        "image.",
    )
    command: Arguments | None = Field(
        default=None,
        description="The program. The operator replaces {SOCKET_PATH}, {WORK_DIR} and {JOB_FILE} here and in args. "
        "Default: the image's program for the class.",
    )
    args: Arguments = Field(default=[], description="Arguments after the command.")
    env: dict[str, str] = Field(default={}, description="Added to the executor's environment.")
    accelerate: Accelerate = Accelerate()
    trust_remote_code: bool = Field(
        default=False,
        description="Run code that a model brings. Set it only with a sandbox, or for schedulers that you trust.",
    )
    queue_name: Annotated[str, Field(min_length=1, max_length=63)] | None = Field(
        default=None, description="LocalQueue of Kueue."
    )
    labels: Labels = Field(
        default={},
        description="Labels of the Job, such as kueue.x-k8s.io/priority-class. Those of the pod belong into template.",
    )
    annotations: Annotations = Field(default={}, description="Annotations of the Job.")
    runtime_class_name: Name | None = Field(default=None, description="A sandbox such as gvisor or kata.")
    template: Passthrough = Field(
        default={},
        description="Overlay for the pod template (metadata, spec), with lists merged by name: node selectors, "
        "tolerations, topology, priority, volumes, sidecars. It cannot change the fields that isolate the pod or that "
        "the lease determines.",
    )
    allow_privileged_template: bool = Field(
        default=False,
        description="Let the template weaken the isolation of the pod. Without it, the template may hold only fields, "
        "kinds of volumes, labels and annotations that the operator knows to be harmless "
        "(`hypha_operator/pods/harmless.py`); your own labels and annotations need names without / and a dot.",
    )

    @property
    def key(self) -> tuple[str, str]:
        """The class and name, which are unique among the executors of a worker."""
        return self.class_, self.name
