"""Job: the tasks of a pipeline while they run."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagequeue import create_queue
from sagequeue.closing import Closing
from sageruntime.communication.router import Connection
from sageruntime.context import Services, TaskContext
from sageruntime.core.scope import Scope
from sageruntime.dead_letters.collector import DeadLetterCollector
from sageruntime.doctor import can_share_memory, require
from sageruntime.errors import JobFailed, PacketError, TaskStateError, describe_error
from sageruntime.factory.task_factory import TaskType, choose_codec, choose_scope, create_task
from sageruntime.job_result import JobResult, StageSummary, summarize_progress, summarize_stage
from sageruntime.metrics import JobMetrics, StageMetrics
from sageruntime.observation import Observation, Observer
from sageruntime.recovery import CheckpointOptions, RestartPolicy
from sageruntime.service import ServiceClient, ServiceTask
from sageruntime.service.recipe import ServiceRecipe
from sageruntime.stage import Stage
from sageruntime.task import BaseTask, TaskState
from sageruntime.task.coordinator import Coordinator

if TYPE_CHECKING:
    from typing_extensions import Self

# How long operators may take to return when a job is abandoned.
_GRACE_SECONDS = 1.0


class Job(Closing):
    """A running pipeline. Use it as a context manager: whatever happens, nothing stays behind.

    Args:
        name: the job's name.
        stages: source first, sink last.
        ray_options: what :class:`~sageruntime.task.ray_task.RayTask` takes beside its options.
        restart: with checkpoints, how often the job may go back to the latest; without, each task
            is restarted by the policy of its own options.
        checkpoint: whether and where checkpoints are kept.
        observation: how it is watched.
        dead_letters: a SQLite file for them; without one they are in the result only.
        services: what its tasks can call; each can call those before it.
        plugins: of all its tasks.
    """

    def __init__(
        self,
        name: str,
        stages: Sequence[Stage],
        ray_options: Mapping[str, Any] | None = None,
        *,
        restart: RestartPolicy | None = None,
        checkpoint: CheckpointOptions | None = None,
        observation: Observation | None = None,
        dead_letters: Path | str | None = None,
        services: Sequence[ServiceRecipe] = (),
        plugins: Sequence[Any] = (),
    ) -> None:
        self.name = name
        self._restart = restart or RestartPolicy()
        self._checkpoint = checkpoint
        self._coordinator: Coordinator | None = None
        self._pid = os.getpid()
        self._is_closing = False
        self.stages = list(stages)
        self._ray_options = dict(ray_options or {})
        self._observation = observation or Observation()
        interval = min(stage.options.monitoring_interval for stage in self.stages)
        self._observer = Observer(name, self._observation, self.measure, interval)
        self._prefix = f"{name}-{secrets.token_hex(4)}"
        self.tasks: list[list[BaseTask]] = []
        """The tasks of each stage, source first."""
        self._recipes = list(services)
        self._plugins = tuple(plugins)
        self._clients: dict[str, ServiceClient] = {}
        self.services: dict[str, ServiceTask] = {}
        """The services while the job runs, by name."""
        self._changed = threading.Condition()
        self._started_at = 0.0
        self._ended_at = 0.0
        self._started_ray = False
        self._ray_reach: Scope = "cluster"
        self._abandoned = False
        self._dead_letter_file = dead_letters
        self._dead_letters: DeadLetterCollector | None = None

    def start(self) -> Self:
        """Create, connect and start the tasks.

        Raises:
            DependencyError: this machine lacks what a host needs.
            DeadLetterStoreError: the file for dead letters cannot be used.
            MonitoringError: the job cannot be watched as it was asked for.
            TaskStartError: a host cannot take its task.
            Exception: what an operator's constructor raises on a thread.
        """
        self._started_at = time.monotonic()
        hosts = [stage.host for stage in self.stages for _ in range(stage.parallelism)]
        hosts += [recipe.host for recipe in self._recipes for _ in range(recipe.instances)]
        require(set(hosts), sum(host != "thread" for host in hosts))
        try:
            self._observer.start({stage.host for stage in self.stages})
            if "ray" in hosts:
                from sageruntime.task.ray_task import connect, is_one_machine

                self._started_ray = connect()
                if can_share_memory() and is_one_machine(self._ray_options):
                    self._ray_reach = "machine"
            if "process" in hosts or self._ray_reach == "machine":
                from sagequeue import prune_queues  # needs the extension, as such hosts do

                # left by a run of this job that was killed with all its processes
                prune_queues(f"{self.name}-")
            if any(stage.options.writes_dead_letters for stage in self.stages):
                self._dead_letters = self._collect_dead_letters()
            for recipe in self._recipes:
                self._start_service(recipe)
            for position, stage in enumerate(self.stages):
                self.tasks.append([])
                for index in range(stage.parallelism):
                    self.tasks[-1].append(self._create(position, index))
            for senders, stage, receivers in zip(
                self.tasks, self.stages[1:], self.tasks[1:], strict=False
            ):
                for sender in senders:
                    _connect(sender, stage, receivers)
            if self._checkpoint is not None:
                self._coordinate(self._checkpoint)
            for tasks in reversed(self.tasks):
                for task in tasks:
                    task.start_running()
            if self._coordinator is not None:
                self._coordinator.start()
        except BaseException:
            self.close()
            raise
        return self

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every task has ended or one has failed; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(self._has_ended, timeout)

    def stop(self) -> None:
        """End the sources; the job ends when what they have read is worked off.

        A task that is paused goes on.
        """
        for source in self.tasks[0]:
            source.stop(timeout=0)
        for task in self._all_tasks():
            with suppress(TaskStateError):  # it has ended
                task.resume()

    def progress(self) -> list[StageSummary]:
        """What each stage has done so far, without latencies."""
        return [summarize_progress(stage, tasks) for stage, tasks in zip(self.stages, self.tasks)]

    @property
    def prometheus_port(self) -> int | None:
        """Where metrics are served for Prometheus, while they are."""
        return self._observer.prometheus_port

    def add_metrics_listener(self, listener: Callable[[JobMetrics], object]) -> None:
        """Call ``listener(metrics)`` every ``monitoring_interval``, and a last time at the end.

        It is called in a thread of its own. One that raises is logged and not called again.
        """
        self._observer.add_listener(listener)

    def measure(self) -> JobMetrics:
        """What is measured of the job, as it is now; it may be asked for at any time."""
        stages = [
            StageMetrics.of(stage.name, stage.host, [task.measure() for task in tasks])
            for stage, tasks in zip(self.stages, self.tasks)
        ]
        services = [
            StageMetrics.of(recipe.name, recipe.host, self.services[recipe.name].measure())
            for recipe in self._recipes
            if recipe.name in self.services
        ]
        seconds = (self._ended_at or time.monotonic()) - self._started_at
        return JobMetrics.of(self.name, time.time_ns(), seconds, stages, services)

    def result(self) -> JobResult:
        """Wait for the end and return what the job leaves.

        Raises:
            JobFailed: a task failed, and its error is the cause; or the job was closed before
                its end.
        """
        self.wait()
        self._ended_at = self._ended_at or time.monotonic()
        self.close()
        self._raise_failure()
        metrics = self.measure()
        return JobResult(
            name=self.name,
            seconds=self._ended_at - self._started_at,
            stages=[
                summarize_stage(stage, tasks, measured.latency)
                for stage, tasks, measured in zip(self.stages, self.tasks, metrics.stages)
            ],
            sink_results=[task.get_report().result for task in self.tasks[-1]],
            dead_letters=self._dead_letters.letters if self._dead_letters else [],
            metrics=metrics,
        )

    def close(self) -> None:
        """Give back everything; a job that has not ended is abandoned.

        In a forked child of the job's process it does nothing.
        """
        if os.getpid() != self._pid:
            return
        tasks = self._all_tasks()
        self._abandoned = self._abandoned or any(not task.state.ended for task in tasks)
        self._is_closing = True
        if self._coordinator is not None:
            self._coordinator.stop()
        deadline = time.monotonic() + _GRACE_SECONDS
        for stage in self.tasks:  # the senders first: to them an end downstream is an error
            running = [task for task in stage if not task.state.ended]
            for task in running:
                task.stop(drain=False, timeout=0)
            for task in running:
                task.join(max(0.0, deadline - time.monotonic()))
        for task in tasks:
            task.cleanup(grace=0)
        self._close_services()
        if self._dead_letters is not None:
            self._dead_letters.close()
        self._observer.close(tasks)
        if self._started_ray:
            from sageruntime.task.ray_task import disconnect

            disconnect()
            self._started_ray = False
        if self._coordinator is not None:
            # last: if it is killed before this, a new start only finishes the job
            failed = any(task.state is TaskState.FAILED for task in tasks)
            self._coordinator.close(forget=not (failed or self._abandoned))

    def _all_tasks(self) -> list[BaseTask]:
        return [task for tasks in self.tasks for task in tasks]

    def _has_ended(self) -> bool:
        states = [task.state for task in self._all_tasks()]
        if any(service.state is TaskState.FAILED for service in self.services.values()):
            return True
        return TaskState.FAILED in states or all(state.ended for state in states)

    def _start_service(self, recipe: ServiceRecipe) -> None:
        options = {**self._ray_options} if recipe.host == "ray" else {}
        scope = self._choose_scope(*(s.on for s in self.stages), *(r.on for r in self._recipes))
        service = ServiceTask(
            recipe.name,
            recipe.service,
            on=recipe.on,
            scope=scope,
            services=Services(self._clients),
            job=self.name,
            prefix=f"{self._prefix}-",
            plugins=self._plugins,
            **recipe.options,
            **options,
        )
        self.services[recipe.name] = service
        self._clients[recipe.name] = service.client()
        for task in service.tasks:
            task.watch(self._on_state_change)
        service.start_running()

    def _close_services(self) -> None:
        """End the services, from the last: it may call the others."""
        for name, service in reversed(self.services.items()):
            if not self._abandoned:
                service.stop(timeout=_GRACE_SECONDS)
            service.cleanup(grace=_GRACE_SECONDS)
            self._clients[name].close()

    def _create(self, position: int, index: int) -> BaseTask:
        stage = self.stages[position]
        before = self.stages[position - 1] if position else None
        ctx = TaskContext(
            name=f"{self._prefix}-{stage.name}-{index}",
            stage=stage.name,
            index=index,
            parallelism=stage.parallelism,
            upstreams=before.parallelism if before else 0,
            job=self.name,
            profile=self._observation.profile is not None,
            tracing=self._observation.tracing,
            services=Services(self._clients),
        )
        types = (stage.on, before.on if before else stage.on)
        options = stage.options.as_dict()
        if stage.host == "ray":
            options.update(self._ray_options)
        if stage.options.writes_dead_letters and self._dead_letters is not None:
            options["dead_letters"] = self._dead_letters.queue
        task = create_task(
            stage.on,
            ctx,
            stage.operator_factory,
            coordinated=self._checkpoint is not None,
            queue_scope=self._choose_scope(*types),
            queue_codec=choose_codec(*types),
            plugins=self._plugins,
            **options,
        )
        task.watch(partial(self._on_task_state, position, task))
        return task

    def _choose_scope(self, *types: TaskType) -> Scope:
        return choose_scope(*types, ray=self._ray_reach)

    def _collect_dead_letters(self) -> DeadLetterCollector:
        store = None
        if self._dead_letter_file is not None:
            from sageruntime.dead_letters.store import DeadLetterStore

            store = DeadLetterStore(self._dead_letter_file, create=True)
        types = [stage.on for stage in self.stages]
        queue = create_queue(
            name=f"{self._prefix}-dead-letters",
            scope=self._choose_scope(*types),
            codec=choose_codec(*types),
        )
        return DeadLetterCollector(queue, self.name, store)

    def _coordinate(self, options: CheckpointOptions) -> None:
        self._coordinator = Coordinator(
            self.name, options, self._restart, logging.getLogger(f"sageruntime.{self.name}")
        )
        keyed = {f"{task.ctx.stage}/{task.ctx.index}": task for task in self._all_tasks()}
        sources = [f"{task.ctx.stage}/{task.ctx.index}" for task in self.tasks[0]]
        self._coordinator.adopt(keyed, sources)

    def _on_task_state(self, position: int, task: BaseTask, state: TaskState) -> None:
        """A task has changed its state; called in the driver's loop."""
        if state is TaskState.STOPPED and task.is_cancelled and not self._is_closing:
            if self._coordinator is not None:
                self._coordinator.on_stopped(task)
            for receivers in self.tasks[position + 1 : position + 2]:
                for receiver in receivers:
                    receiver.sender_ended(task.name)
        self._on_state_change(state)

    def _on_state_change(self, state: TaskState) -> None:
        with self._changed:
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        tasks = [task for service in self.services.values() for task in service.tasks]
        tasks += self._all_tasks()
        failed = [task for task in tasks if task.state is TaskState.FAILED]
        reports = [(task, task.get_report().error) for task in failed]
        errors = [(task, error) for task, error in reports if error is not None]
        causes = [
            (task, error)
            for task, error in errors
            if not (isinstance(error, PacketError) and error.is_consequence)
        ] or errors
        if causes:
            task, error = causes[0]
            if isinstance(error, PacketError):  # which names the task
                raise JobFailed(f"job {self.name} failed: {error}") from error
            raise JobFailed(
                f"job {self.name} failed in {task.name}: {describe_error(error)}"
            ) from error
        if self._abandoned:
            raise JobFailed(f"job {self.name} was closed before its end")


def _connect(sender: BaseTask, stage: Stage, receivers: Sequence[BaseTask]) -> None:
    for receiver in receivers:
        connection = Connection(
            receiver.name,
            receiver.input_buffer,
            group=stage.name,
            batch_size=sender.options.packets_per_batch,
        )
        sender.router.add_connection(connection)
    sender.router.set_partitioner(stage.name, stage.partitioner())
