"""Pipeline: a job described stage by stage."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sageruntime.communication.router import (
    Broadcast,
    KeyHash,
    LeastLoaded,
    Packet,
    Partitioner,
    PartitionFunction,
    RoundRobin,
)
from sageruntime.core.task_options import TaskKeywords, TaskOptions, task_options
from sageruntime.errors import InvalidOption, PipelineError
from sageruntime.factory.task_factory import TaskType, check_task_type
from sageruntime.job import Job
from sageruntime.job_result import JobResult
from sageruntime.observation import Observation, ObserveOptions
from sageruntime.operator import (
    AsyncFilterOperator,
    AsyncFlatMapOperator,
    AsyncFunctionSink,
    AsyncMapOperator,
    BaseOperator,
    CollectSink,
    FilterOperator,
    FlatMapOperator,
    FunctionSink,
    IterableSource,
    KeyByOperator,
    MapOperator,
    SinkOperator,
    SourceOperator,
)
from sageruntime.operator.is_async import is_async
from sageruntime.operator.operator_factory import OperatorFactory
from sageruntime.operator.source import ReadOnce
from sageruntime.plugins.plugin_factory import find_plugin
from sageruntime.recovery import CheckpointOptions
from sageruntime.service.options import ServiceKeywords
from sageruntime.service.recipe import ServiceRecipe
from sageruntime.service.service import MakeService
from sageruntime.stage import Stage

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

# Options of a stage that are none of its tasks'.
_STAGE_ONLY = ("name", "parallelism", "on")

# What takes the place of each operator when its function is async.
_AWAITS: dict[type[BaseOperator], type[BaseOperator]] = {
    MapOperator: AsyncMapOperator,
    FilterOperator: AsyncFilterOperator,
    FlatMapOperator: AsyncFlatMapOperator,
    FunctionSink: AsyncFunctionSink,
}

Operator = Callable[[Any], Any] | type[BaseOperator] | OperatorFactory
"""A function of the payload, an operator class, or a recipe for operators."""


class StageOptions(TaskKeywords, total=False):
    """What every stage can be given.

    Attributes:
        name: unique in the pipeline; by default the kind of stage and its position.
        parallelism: how many tasks share the work; 1 by default.
        on: what hosts each: ``"thread"`` (default), ``"process"``, ``"ray"``, or a task type of
            your own.
        others: the fields of :class:`~sageruntime.core.task_options.TaskOptions`; by default the
            pipeline's.
    """

    name: str
    parallelism: int
    on: TaskType


class Pipeline:
    """A chain of stages from a source to a sink; each method adds one and returns the pipeline.

    Args:
        name: letters, digits, ``_`` and ``-``, at most 64.
        options: how the tasks work, where a stage says nothing else.
        ray_options: ``lifetime``, ``resources`` and ``memory`` of
            :class:`~sageruntime.task.ray_task.RayTask`.
        plugins: of all tasks: objects with hooks, classes of them, or import paths; ``no:NAME``
            leaves out the installed plugin of that name.

    Every method raises :class:`~sageruntime.errors.PipelineError` for a stage that does not fit,
    and :class:`~sageruntime.errors.InvalidOption` for an option out of range.
    """

    def __init__(
        self,
        name: str,
        *,
        options: TaskOptions | None = None,
        ray_options: Mapping[str, Any] | None = None,
        plugins: Sequence[Any] = (),
    ) -> None:
        self.name = _check_name("pipeline", name)
        self.options = options or TaskOptions()
        self.ray_options = dict(ray_options or {})
        self.plugins = [find_plugin(p) if isinstance(p, str) else p for p in plugins]
        self.stages: list[Stage] = []
        self.services: list[ServiceRecipe] = []
        self._has_sink = False
        self._partitioner: Callable[[], Partitioner] | None = None

    def source(
        self,
        origin: Iterable[Any]
        | Callable[[], Iterable[Any]]
        | type[SourceOperator]
        | OperatorFactory,
        **stage: Unpack[StageOptions],
    ) -> Self:
        """Read the items of an iterable, or of what a function returns, or a source operator.

        Of several instances each takes its share: see
        :class:`~sageruntime.operator.IterableSource`. An iterator or a file can be read only once,
        by one instance: it is of no use for a second run, nor after a failure.
        """
        if self.stages:
            raise PipelineError(f"{self.name} has a source already: {self.stages[0].name}")
        if isinstance(origin, Iterator):
            if stage.get("parallelism", 1) != 1:
                raise PipelineError(
                    f"{self.name}: {origin!r} can be read only once, and each instance of a source "
                    "reads all of it; pass a function that returns a new one, or a list"
                )
            origin = ReadOnce(origin)
        return self._add("source", _make_factory(origin, IterableSource, SourceOperator), stage)

    def map(self, operator: Operator, **stage: Unpack[StageOptions]) -> Self:
        """One result for each payload; or any operator that is neither source nor sink.

        The functions of ``map``, ``filter``, ``flat_map`` and ``sink`` may be ``async``: then up to
        ``max_concurrency`` payloads are worked on at a time, and results keep their order.
        """
        return self._add("map", _make_factory(operator, MapOperator), stage)

    def filter(self, operator: Operator, **stage: Unpack[StageOptions]) -> Self:
        """Keep the payloads for which a function is true."""
        return self._add("filter", _make_factory(operator, FilterOperator), stage)

    def flat_map(self, operator: Operator, **stage: Unpack[StageOptions]) -> Self:
        """Any number of results for each payload: the items a function returns."""
        return self._add("flat_map", _make_factory(operator, FlatMapOperator), stage)

    def key_by(
        self,
        function: Callable[[Any], Any],
        *,
        fails_over: bool = False,
        **stage: Unpack[StageOptions],
    ) -> Self:
        """Let the instances of the next stage share the packets by key.

        The function runs in the tasks of the stage before, where its results are routed: a key
        costs no hop. With any stage option it gets tasks of its own.

        Args:
            function: gives the key of a payload.
            fails_over: whether keys may move to other instances when one has ended.
            stage: the options of a stage.
        """
        if not callable(function) or is_async(function):
            raise PipelineError(f"key_by takes a plain function of the payload, not {function!r}")
        if stage:
            self._add("key_by", _make_factory(function, KeyByOperator), stage)
        return self._set_partitioner(partial(KeyHash, None if stage else function, fails_over))

    def round_robin(self) -> Self:
        """Let the instances of the next stage take turns, as they do where nothing is said."""
        return self._set_partitioner(RoundRobin)

    def broadcast(self) -> Self:
        """Let every instance of the next stage have a copy of every packet."""
        return self._set_partitioner(Broadcast)

    def least_loaded(self) -> Self:
        """Let those instances of the next stage have a packet that have the fewest waiting."""
        return self._set_partitioner(LeastLoaded)

    def partition_by(self, partitioner: Partitioner | Callable[[Packet, int], int]) -> Self:
        """Let a partitioner of your own choose among the instances of the next stage.

        Args:
            partitioner: a :class:`~sageruntime.communication.router.Partitioner`, of which every
                sending task gets a copy; or a function that takes a packet and the number of
                instances and returns the index of one.
        """
        if isinstance(partitioner, type) or not (
            isinstance(partitioner, Partitioner)
            or (callable(partitioner) and not is_async(partitioner))
        ):
            raise PipelineError(
                "partition_by takes a plain function (packet, instances) -> index, or a "
                f"Partitioner, which has split() and fails_over; not {partitioner!r}"
            )
        if isinstance(partitioner, Partitioner):
            return self._set_partitioner(partial(deepcopy, partitioner))
        return self._set_partitioner(partial(PartitionFunction, partitioner))

    def sink(
        self,
        operator: Callable[[Any], Any] | type[SinkOperator] | OperatorFactory = CollectSink,
        **stage: Unpack[StageOptions],
    ) -> Self:
        """End here: call a function for each payload, or collect them all in a list."""
        self._add("sink", _make_factory(operator, FunctionSink, SinkOperator), stage)
        self._has_sink = True
        return self

    def service(
        self,
        name: str,
        service: MakeService,
        *,
        on: TaskType = "thread",
        **options: Unpack[ServiceKeywords],
    ) -> Self:
        """Let every task call a service, by ``call_service(name)`` of its operator.

        It may be added before or after the stages. It is started before them and ended after
        them, and may call the services that were added before it.

        Args:
            name: unique in the pipeline.
            service: a :class:`~sageruntime.service.Service` class, or a function without arguments
                that makes a service where it is to run.
            on: what hosts its instances.
            options: see :class:`~sageruntime.service.options.ServiceOptions`.

        Raises:
            InvalidOption: an option is out of range, or ``service`` makes no service.
            PipelineError: there is a service of that name already.
        """
        if any(other.name == name for other in self.services):
            raise PipelineError(f"{self.name} has two services named {name!r}; rename one")
        rest: dict[str, Any] = {"restart": self.options.restart, **options}
        self.services.append(ServiceRecipe(_check_name("service", name), service, on, rest))
        return self

    def start(
        self,
        on: TaskType | None = None,
        *,
        checkpoint: CheckpointOptions | None = None,
        dead_letters: Path | str | None = None,
        **observe: Unpack[ObserveOptions],
    ) -> Job:
        """Start the job and return it running.

        Args:
            on: moves every stage and service to one kind of host.
            checkpoint: keeps the job's state, so that it survives failures of its tasks, as often
                as the pipeline's ``options.restart`` allows, and goes on after it was killed.
            dead_letters: a SQLite file that keeps them, for ``sagert dlq``; without one they are
                in the result only.
            observe: ``prometheus_port``, ``profile`` and ``tracing``: see
                :class:`~sageruntime.observation.ObserveOptions`.

        Raises:
            CheckpointError: the store cannot be used, or its checkpoint is of another pipeline.
            DeadLetterStoreError: the file for dead letters cannot be used.
            DependencyError: this machine lacks what a host needs; the message says the remedy.
            MonitoringError: the job cannot be watched as it was asked for.
            PipelineError: there is no source or no sink.
            TaskStartError: a host cannot take its task.
        """
        if not self._has_sink:
            raise PipelineError(f"{self.name} has no sink; end with .sink(...)")
        stages, services = self.stages, self.services
        if on is not None:
            on = _check_type(on)
            stages = [replace(stage, on=on) for stage in stages]
            services = [replace(service, on=on) for service in services]
        hosts = {stage.host for stage in stages} | {service.host for service in services}
        if services and {"process", "ray"} <= hosts:
            raise PipelineError(
                f"{self.name} has services, and both process and ray among its hosts: no queue "
                "reaches both. Move everything on processes to Ray, or the other way round"
            )
        return Job(
            self.name,
            stages,
            self.ray_options,
            restart=self.options.restart,
            checkpoint=checkpoint,
            dead_letters=dead_letters,
            observation=Observation(**observe),
            services=services,
            plugins=self.plugins,
        ).start()

    def run(
        self,
        on: TaskType | None = None,
        *,
        checkpoint: CheckpointOptions | None = None,
        dead_letters: Path | str | None = None,
        **observe: Unpack[ObserveOptions],
    ) -> JobResult:
        """Run the job to its end; see :meth:`start`.

        Raises:
            JobFailed: a task failed; the first error is the cause.
        """
        with self.start(on, checkpoint=checkpoint, dead_letters=dead_letters, **observe) as job:
            return job.result()

    def _add(self, kind: str, recipe: OperatorFactory, stage: StageOptions) -> Self:
        if not self.stages and kind != "source":
            raise PipelineError(f"{self.name} has no source; begin with .source(...)")
        if self._has_sink:
            raise PipelineError(f"{self.name} ends with {self.stages[-1].name}; nothing follows")
        name = _check_name("stage", stage.get("name", f"{kind}-{len(self.stages)}"))
        if any(other.name == name for other in self.stages):
            raise PipelineError(f"{self.name} has two stages named {name!r}; rename one")
        parallelism = stage.get("parallelism", 1)
        if not isinstance(parallelism, int) or parallelism < 1:
            raise InvalidOption(
                f"{name}: parallelism={parallelism!r} is not allowed; expected an int from 1"
            )
        given = {key: value for key, value in stage.items() if key not in _STAGE_ONLY}
        options = task_options({**self.options.as_dict(), **given})
        self.stages.append(
            Stage(
                name=name,
                operator_factory=recipe,
                parallelism=parallelism,
                on=_check_type(stage.get("on", "thread")),
                options=options,
                partitioner=self._partitioner or RoundRobin,
            )
        )
        self._partitioner = None
        return self

    def _set_partitioner(self, partitioner: Callable[[], Partitioner]) -> Self:
        if not self.stages:
            raise PipelineError(f"{self.name} has no source; begin with .source(...)")
        if self._partitioner is not None:
            raise PipelineError(
                f"{self.name} has two ways to share the packets of {self.stages[-1].name}; "
                "leave one out"
            )
        self._partitioner = partitioner
        return self


def _make_factory(
    operator: Any,
    for_functions: type[BaseOperator],
    expected: type[BaseOperator] | None = None,
) -> OperatorFactory:
    """A factory for what a stage was given: a recipe, an operator class, or something to wrap."""
    if isinstance(operator, OperatorFactory):
        return operator
    if isinstance(operator, BaseOperator):
        raise PipelineError(
            f"{operator!r} is an operator, and every task needs one of its own; pass its class, "
            "or OperatorFactory(class, arguments)"
        )
    if isinstance(operator, type) and issubclass(operator, BaseOperator):
        fits = (
            issubclass(operator, expected)
            if expected is not None
            else not issubclass(operator, (SourceOperator, SinkOperator))
        )
        if not fits:
            raise PipelineError(f"{operator.__qualname__} does not fit this kind of stage")
        return OperatorFactory(operator)
    if not callable(operator) and not (
        for_functions is IterableSource and isinstance(operator, Iterable)
    ):
        raise PipelineError(
            f"{operator!r} is no operator; pass a function, an operator class or an OperatorFactory"
        )
    if is_async(operator):
        if for_functions not in _AWAITS:
            raise PipelineError(
                f"{operator!r} is async, and a source or key_by takes a plain function; an async "
                "map or flat_map behind a source can await"
            )
        for_functions = _AWAITS[for_functions]
    return OperatorFactory(for_functions, operator)


def _check_name(what: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise PipelineError(
            f"{what} name {name!r} is not allowed; expected 1 to 64 of A-Z a-z 0-9 _ -"
        )
    return name


def _check_type(on: TaskType) -> TaskType:
    check_task_type(on)
    return on
