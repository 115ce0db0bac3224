"""RayTask: the worker loop in a Ray actor, on any node of the cluster."""

from __future__ import annotations

import logging
import threading
from typing import Any

import cloudpickle
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from sageruntime.errors import TaskLost, TaskStartError
from sageruntime.task.blueprint import TaskBlueprint
from sageruntime.task.local_task import LocalTask
from sageruntime.task.packed_error import PackedError
from sageruntime.task.remote_task import RemoteReport, RemoteTask
from sageruntime.task.state import TaskState

# How long Ray may take to find a place for an actor.
_START_SECONDS = 60.0


class RayTask(RemoteTask):
    """A task hosted by an actor; see :class:`~sageruntime.task.base_task.BaseTask`.

    Args:
        lifetime: ``"detached"`` makes an actor that outlives the driver, until :meth:`cleanup`.
        resources: what the actor occupies, such as ``{"CPU": 1}``; by default nothing, so that a
            job always finds room.
        memory: bytes of memory the actor occupies.
        options: as of :class:`~sageruntime.task.base_task.BaseTask`.
    """

    host = "ray"
    default_scope = "cluster"
    _actor: Any = None
    _follower: threading.Thread | None = None

    def __init__(
        self,
        *args: Any,
        lifetime: str | None = None,
        resources: dict[str, float] | None = None,
        memory: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        rest = dict(resources or {})
        self._actor_options: dict[str, Any] = {
            "name": self.name if lifetime == "detached" else None,
            "lifetime": lifetime,
            "num_cpus": rest.pop("CPU", 0),
            "num_gpus": rest.pop("GPU", 0),
            "resources": rest,
            "memory": memory,
            "max_concurrency": 4,
        }

    def start_running(self) -> None:
        """See :class:`BaseTask`."""
        blueprint = TaskBlueprint.of(self).dumps()
        self._begin()
        try:
            actor_class: Any = ray.remote(_TaskActor)
            self._actor = actor_class.options(**self._actor_options).remote(blueprint)
        except (RayError, ValueError, TypeError) as error:
            failure = TaskStartError(f"{self.name}: Ray does not take its actor: {error}")
            self._fail(failure)
            raise failure from error
        self._follower = threading.Thread(
            target=self._follow, name=f"{self.name}-follow", daemon=True
        )
        self._follower.start()

    def stop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """See :class:`BaseTask`."""
        if self._state is TaskState.CREATED:
            self._advance(TaskState.STOPPED)
        if not self._state.ended and self._actor is not None:
            self._actor.stop.remote(drain)
        return self.join(timeout)

    def cleanup(self, grace: float = 1.0) -> None:
        """See :class:`BaseTask`."""
        self.stop(drain=False, timeout=grace)
        if self._actor is not None and self._follower is not None:
            ray.kill(self._actor)
            self._follower.join()
            self._actor = None
        self.input_buffer.close()

    def _follow(self) -> None:
        interval = self.options.monitoring_interval
        patience: float | None = _START_SECONDS
        try:
            while not self._state.ended:
                message = ray.get(self._actor.poll.remote(interval), timeout=patience)
                patience = None
                self._take(cloudpickle.loads(message))
        except GetTimeoutError:
            self._fail(TaskStartError(
                f"{self.name}: Ray has found no place for its actor in {_START_SECONDS:.0f} s; "
                f"it asks for {self._actor_options}, the cluster has {_cluster_resources()}"
            ))  # fmt: skip
        except RayActorError as error:
            self._fail(TaskLost(f"the actor of {self.name} died without a report: {error}"))
        except Exception as error:  # whatever it is, the job has to learn of it
            self._fail(error)


def _cluster_resources() -> Any:
    resources: Any = ray.cluster_resources
    return resources()


class _TaskActor:
    """Holds a task in a Ray worker. Its methods run side by side, each in a thread."""

    def __init__(self, blueprint: bytes) -> None:
        self._failure: PackedError | None = None
        try:
            self._task: LocalTask = cloudpickle.loads(blueprint).build()
        except Exception as error:
            self._failure = PackedError.of(error)
        else:
            self._task.start_running()

    def poll(self, seconds: float) -> bytes:
        """The task's report if it ends within some seconds, else its status."""
        message: object = self._failure
        if message is None and self._task.join(seconds):
            message = RemoteReport.of(self._task.get_report())
            self._task.cleanup()
        elif message is None:
            message = self._task.get_status()
        data: bytes = cloudpickle.dumps(message)
        return data

    def stop(self, drain: bool) -> None:
        """Ask the task to stop."""
        if self._failure is None:
            self._task.stop(drain, timeout=0)


def connect() -> bool:
    """Join the cluster of ``RAY_ADDRESS``, or start a local one, unless that has been done.

    Returns:
        Whether it had to be done, so that :func:`disconnect` is up to the caller.
    """
    if ray.is_initialized():
        return False
    ray.init(include_dashboard=False, logging_level=logging.WARNING)
    return True


def disconnect() -> None:
    """Leave the cluster; a local one ends."""
    ray.shutdown()
