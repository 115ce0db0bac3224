"""RayTask: the worker loop in a Ray actor, on any node of the cluster."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from queue import Empty, Queue
from typing import Any

import cloudpickle
import psutil
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.client import ray as client_of_ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sageruntime.errors import TaskLost, TaskStartError
from sageruntime.factory.import_path import carried_by_value
from sageruntime.logs import RecordSender
from sageruntime.task.base_task import BaseTask
from sageruntime.task.hosted_task import HostedTask
from sageruntime.task.packed_error import PackedError
from sageruntime.task.remote_task import RemoteReport, RemoteTask

# How long Ray may take to find a place for an actor.
_START_SECONDS = 60.0

# How long a process that was told to end may take.
_END_SECONDS = 10.0


class RayTask(RemoteTask):
    """A task hosted by an actor; see :class:`~sageruntime.task.base_task.BaseTask`.

    One with a queue of shared memory before or behind it stays on this machine; so a job makes
    them where the cluster is no more than this machine. ``queue_scope="machine"`` asks for one.

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
    _process: psutil.Process | None = None
    _follower: threading.Thread | None = None
    _lost = False

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

    def cleanup(self, grace: float = 1.0) -> None:
        """See :class:`BaseTask`."""
        self.stop(drain=False, timeout=grace)
        if self._actor is not None and self._follower is not None:
            self._kill()
            self._follower.join()
            self._actor = None
        self._await_end_of_process()  # the last one out of a queue removes it: that is to be here
        self._monitor.close()
        self.input_buffer.close()

    def _blueprint(self, state: bytes | None, over: bool) -> bytes:
        with carried_by_value():
            return super()._blueprint(state, over)

    def _launch(self, blueprint: bytes) -> None:
        try:
            remote: Any = ray.remote
            actor_class = remote(concurrency_groups={"commands": 1})(_TaskActor)
            level = logging.getLogger().getEffectiveLevel()
            options = {**self._actor_options, **self._place()}
            self._actor = actor_class.options(**options).remote(blueprint, level)
        except (RayError, ValueError, TypeError) as error:
            raise TaskStartError(f"{self.name}: Ray does not take its actor: {error}") from error
        self._lost = False
        self._follower = threading.Thread(
            target=self._follow, args=(self._actor,), name=f"{self.name}-follow", daemon=True
        )
        self._follower.start()

    def _place(self) -> dict[str, Any]:
        """Where the actor has to be, if it cannot be anywhere."""
        if not self._shares_memory():
            return {}
        here = ray.get_runtime_context().get_node_id()
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}

    def _await_end_of_process(self) -> None:
        """Wait until the actor's process, which was told to end, is gone; if it shares memory."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(psutil.TimeoutExpired):
                process.wait(_END_SECONDS)

    def _shares_memory(self) -> bool:
        connected = [connection.queue for connection in self.router.connections]
        queues = [self.input_buffer, self.dead_letters, *connected]
        return any(queue is not None and queue.backend == "sage" for queue in queues)

    def _has_host(self) -> bool:
        return self._actor is not None and not self._lost

    def _send(self, command: str, arguments: tuple[Any, ...]) -> None:
        self._actor.obey.remote(command, arguments)

    def _kill(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)

    def _follow(self, actor: Any) -> None:
        interval = self.options.monitoring_interval
        try:
            pid = ray.get(actor.pid.remote(), timeout=_START_SECONDS)
            if self._shares_memory():
                with suppress(psutil.NoSuchProcess):
                    self._process = psutil.Process(pid)
            actor.start.remote()  # only now: what it takes can be told from what others take
            while not self._state.ended:
                messages = ray.get(actor.poll.remote(interval))
                for message in messages:
                    self._take(cloudpickle.loads(message))
        except GetTimeoutError:
            self.fail(TaskStartError(
                f"{self.name}: Ray has found no place for its actor in {_START_SECONDS:.0f} s; "
                f"it asks for {self._actor_options}, the cluster has {_cluster_resources()}"
            ))  # fmt: skip
        except RayActorError as error:
            self._lost = True
            ray.kill(actor)  # it may only be out of reach, and is not to come back
            self._await_end_of_process()  # what it had taken is given back when it is gone
            self._on_host_lost(TaskLost(f"the actor of {self.name} died without a report: {error}"))
        except Exception as error:  # whatever it is, the job has to learn of it
            self.fail(error)


def _cluster_resources() -> Any:
    resources: Any = ray.cluster_resources
    return resources()


class _TaskActor:
    """Holds a task in a Ray worker. Its methods run side by side, each in a thread."""

    def __init__(self, blueprint: bytes, log_level: int) -> None:
        self._outbox: Queue[bytes] = Queue()
        logging.basicConfig(handlers=[RecordSender(self._tell)], level=log_level, force=True)
        self._task: HostedTask | None = None
        self._started = threading.Event()
        try:
            self._task = cloudpickle.loads(blueprint).build(self._tell)
        except Exception as error:
            self._tell(PackedError.of(error))
        else:
            self._task.add_listener(self._report)

    def pid(self) -> int:
        """The process that it is."""
        return os.getpid()

    def start(self) -> None:
        """Let the task run."""
        if self._task is not None:
            self._task.start_running()
        self._started.set()

    def poll(self, seconds: float) -> list[bytes]:
        """What the task has to tell; its status, when there is nothing for some seconds."""
        try:
            messages = [self._outbox.get(timeout=seconds)]
        except Empty:
            return [cloudpickle.dumps(self._task and self._task.get_status())]
        while not self._outbox.empty():
            messages.append(self._outbox.get())
        return messages

    @ray.method(concurrency_group="commands")  # one after the other
    def obey(self, command: str, arguments: tuple[Any, ...]) -> None:
        """Do what the handle says, once the task has been started."""
        self._started.wait()
        if self._task is not None:
            self._task.obey(command, arguments)

    def _report(self, task: BaseTask) -> None:
        if task.state.ended:
            self._tell(RemoteReport.of(task.get_report()))

    def _tell(self, message: object) -> None:
        self._outbox.put(cloudpickle.dumps(message))


def is_one_machine(asked: Mapping[str, Any]) -> bool:
    """Whether the cluster is no more than this machine, and has what actors will ask for.

    Then they can be here, and need not be elsewhere. A cluster that may grow for what this
    machine does not have is taken as one of several.

    Args:
        asked: ``resources`` and ``memory`` as of :class:`RayTask`.
    """
    all_nodes: Any = ray.nodes
    by_proxy: Any = client_of_ray.is_connected
    nodes = [node for node in all_nodes() if node["Alive"]]
    if len(nodes) != 1 or by_proxy() or not _is_ours_here("raylet"):
        return False
    there = nodes[0]["Resources"]
    wanted = {**(asked.get("resources") or {}), "memory": asked.get("memory") or 0}
    return all(there.get(name, 0) >= amount for name, amount in wanted.items())


def _is_ours_here(name: str) -> bool:
    """Whether a process of this name runs in this pid namespace, for this user."""
    user = os.getuid()
    return any(
        process.info["name"] == name and process.info["uids"].real == user
        for process in psutil.process_iter(["name", "uids"])
    )


def connect() -> bool:
    """Join the cluster of ``RAY_ADDRESS``, or start a local one, unless that has been done.

    Returns:
        Whether it had to be done, so that :func:`disconnect` is up to the caller.
    """
    if ray.is_initialized():
        return False
    # not just any cluster of this machine that Ray has heard of
    address = os.environ.get("RAY_ADDRESS", "local")
    ray.init(address, include_dashboard=False, logging_level=logging.WARNING)
    return True


def disconnect() -> None:
    """Leave the cluster; a local one ends."""
    ray.shutdown()
