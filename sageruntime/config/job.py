"""JobConfig: a whole job file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema

from sageruntime.communication.router import (
    Broadcast,
    KeyHash,
    LeastLoaded,
    Partitioner,
    RoundRobin,
)
from sageruntime.config.options import OptionsSection, given_options, with_options
from sageruntime.config.section import Section
from sageruntime.config.service import ServiceConfig
from sageruntime.config.settings import Settings
from sageruntime.config.task_type import TaskType
from sageruntime.core.options import list_options
from sageruntime.core.task_options import TaskOptions

PARTITIONERS: dict[str, Callable[[], Partitioner]] = {
    "round_robin": RoundRobin,
    "key": KeyHash,
    "broadcast": Broadcast,
    "least_loaded": LeastLoaded,
}

KINDS = ("source", "map", "filter", "flat_map", "key_by", "sink")


def _partition(name: str) -> str:
    if name not in PARTITIONERS and ":" not in name:
        raise ValueError(f"expected one of {', '.join(PARTITIONERS)}, or module:attribute")
    return name


Partition = Annotated[
    str,
    AfterValidator(_partition),
    WithJsonSchema({"anyOf": [{"enum": list(PARTITIONERS)}, {"pattern": ":", "type": "string"}]}),
]
"""How packets are shared: by name, or the import path of a function or partitioner."""


@with_options((), instead=[each for each in list_options(TaskOptions) if each.per_stage])
class StageConfig(OptionsSection):
    """One stage: exactly one of the kinds, and how it runs.

    A kind's value is the name of a registered operator, or an import path `module:attribute`.
    """

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [kind]} for kind in KINDS]},
    )

    source: str | None = None
    """Where packets come from: an iterable, a function that returns one, or a source operator."""
    map: str | None = None
    """One result for each payload; or any operator that is neither source nor sink."""
    filter: str | None = None
    """Keep the payloads for which the function is true."""
    flat_map: str | None = None
    """Any number of results for each payload."""
    key_by: str | None = None
    """Let the instances of the next stage share the packets by key."""
    sink: str | None = None
    """Where packets end: a function to call for each payload, or a sink operator."""
    arguments: dict[str, Any] = Field(default_factory=dict, alias="with")
    """Arguments of the operator."""
    name: str | None = None
    """Unique in the job; by default the kind and the position."""
    on: TaskType | None = None
    """What hosts each task, or a task type of your own by name or import path; `thread`, unless
    given. `--on` overrides all stages."""
    parallelism: int = Field(1, ge=1)
    """How many tasks share the work."""
    partition: Partition | None = None
    """How the tasks share what comes in: in turn (`round_robin`, which is what they do where
    nothing is said), by the `key` that packets have, each a copy (`broadcast`), to those with the
    fewest waiting (`least_loaded`), or as a function or partitioner says, by import path. A stage
    behind `key_by` needs none."""

    @property
    def kind(self) -> str:
        """Which of the kinds it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def operator(self) -> str:
        """The operator's registered name or import path."""
        return str(getattr(self, self.kind))

    def model_post_init(self, context: Any) -> None:
        """Check that it is one kind of stage."""
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a stage has exactly one of {', '.join(KINDS)}; this one has "
                f"{', '.join(given) or 'none'}"
            )


class ResultConfig(Section):
    """What becomes of the sink's result."""

    columns: list[str] = Field(default_factory=list)
    """Show a result that is a list of rows as a table with these columns."""
    rows: int = Field(20, ge=1)
    """Most rows to show."""
    file: str | None = None
    """Where the result goes as JSON; relative to the working directory. `--output` overrides."""


class JobConfig(Settings):
    """A job: its stages and how they run."""

    model_config = ConfigDict(title="sagert job")

    name: str
    """Letters, digits, `_` and `-`, at most 64."""
    stages: list[StageConfig] = Field(min_length=2)
    """From the source to the sink."""
    services: list[ServiceConfig] = Field(default_factory=list)
    """What operators can call; each may call those before it."""
    plugins: list[str] = Field(default_factory=list)
    """Plugins of all tasks, by import path; `no:NAME` leaves out the installed plugin of that
    name."""
    result: ResultConfig = ResultConfig()

    def model_post_init(self, context: Any) -> None:
        """Check what concerns more than one section."""
        super().model_post_init(context)
        options = self.task_options()
        for position, stage in enumerate(self.stages):
            given_options(stage, options, ("stages", position))
        for position, service in enumerate(self.services):
            service.service_options(options, ("services", position))
