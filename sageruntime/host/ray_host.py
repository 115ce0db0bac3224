"""RayHost: the runner in a Ray actor, on any node of the cluster."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import cloudpickle
import psutil
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sageruntime.errors import TaskLost, TaskStartError
from sageruntime.host import wire
from sageruntime.host.blueprint import Blueprint
from sageruntime.host.driver_loop import DriverLoop
from sageruntime.host.host import Receive
from sageruntime.host.hosted_task import HostedTask
from sageruntime.host.last_status import LastStatus
from sageruntime.logs import RecordSender
from sageruntime.metrics import MetricsSnapshot
from sageruntime.runner import commands as do
from sageruntime.runner import events as told
from sageruntime.runner.status import TaskStatus

# How long Ray may take to find a place for an actor.
_START_SECONDS = 60.0

# How long a process that was told to end may take.
_END_SECONDS = 10.0

# Seconds that one call waits in the actor for an event.
_POLL_SECONDS = 1.0


class RayHost:
    """See :class:`~sageruntime.host.host.Host`.

    A thread follows the actor: its calls wait for events there.

    Args:
        name: the task's.
        blueprint: what is to run, pickled.
        options: of the actor.
        shares_memory: whether the actor has to be on this machine, and its process has to be gone
            before what it had taken can be given back.
        loop: the driver's.
        receive: takes events.
    """

    def __init__(
        self,
        name: str,
        blueprint: bytes,
        options: Mapping[str, Any],
        shares_memory: bool,
        loop: DriverLoop,
        receive: Receive,
    ) -> None:
        self.name = name
        self._last = LastStatus()
        self._blueprint = blueprint
        self._options = dict(options)
        self._shares_memory = shares_memory
        self._loop = loop
        self._receive = receive
        self._actor: Any = None
        self._process: psutil.Process | None = None
        self._unsent: list[bytes] = []
        self._follower: threading.Thread | None = None
        self._has_ended = False
        self._is_closed = threading.Event()

    def start(self) -> None:
        try:
            remote: Any = ray.remote
            actor_class = remote(concurrency_groups={"commands": 1})(_TaskActor)
            level = logging.getLogger().getEffectiveLevel()
            options = {**self._options, **self._place()}
            actor = actor_class.options(**options).remote(self._blueprint, level)
        except (RayError, ValueError, TypeError) as error:
            raise TaskStartError(f"{self.name}: Ray does not take its actor: {error}") from error
        self._follower = threading.Thread(
            target=self._follow, args=(actor,), name=f"{self.name}-follow", daemon=True
        )
        self._loop.call(self._adopt, actor)
        self._follower.start()

    def send(self, command: do.Command) -> None:
        data = wire.encode_command(command)
        if self._is_closed.is_set():
            return
        if self._actor is None:
            self._unsent.append(data)
        else:
            self._actor.take_command.remote(data)

    def kill(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)

    def close(self) -> None:
        self._is_closed.set()
        self.kill()

    def wait(self) -> None:
        """Wait until the actor has given back its queues, and its process is gone if it shares
        memory. For any thread.

        The last one out of a queue removes it, which a process that is killed cannot do.
        """
        follower, self._follower = self._follower, None
        if follower is not None:
            if self._has_ended:
                follower.join(_END_SECONDS)
            self._is_closed.set()
            self._loop.call(self.kill)
            follower.join()
            self._loop.call(self._forget)
        self._await_end_of_process()

    def get_status(self) -> TaskStatus | None:
        """What the actor told last."""
        return self._last.status

    def measure(self) -> MetricsSnapshot | None:
        """What was measured last."""
        return self._last.metrics

    def _forget(self) -> None:
        self._actor = None  # to use it after ray.shutdown() would start another Ray

    def _adopt(self, actor: Any) -> None:
        self._actor = actor
        for data in self._unsent:
            actor.take_command.remote(data)
        self._unsent.clear()

    def _place(self) -> dict[str, Any]:
        """Where the actor has to be, if it cannot be anywhere."""
        if not self._shares_memory:
            return {}
        here = ray.get_runtime_context().get_node_id()
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}

    def _await_end_of_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(psutil.TimeoutExpired):
                process.wait(_END_SECONDS)

    # In the thread that follows the actor.

    def _follow(self, actor: Any) -> None:
        try:
            pid = ray.get(actor.pid.remote(), timeout=_START_SECONDS)
            if self._shares_memory:
                with suppress(psutil.NoSuchProcess):
                    self._process = psutil.Process(pid)
            actor.start.remote()  # only now: what it takes can be told from what others take
            while not self._has_ended and not self._is_closed.is_set():
                for data in ray.get(actor.poll.remote(_POLL_SECONDS)):
                    event = wire.decode_event(data)
                    self._has_ended |= isinstance(event, told.Ended | told.StartFailed)
                    self._loop.post(self._take, event)
            with suppress(RayError):  # it is killed when it takes too long
                ray.get(actor.join.remote())
        except GetTimeoutError:
            self._lose(TaskStartError(
                f"{self.name}: Ray has found no place for its actor in {_START_SECONDS:.0f} s; "
                f"it asks for {self._options}, the cluster has {_cluster_resources()}"
            ), told.StartFailed)  # fmt: skip
        except RayActorError as error:
            if self._is_closed.is_set():
                return
            with suppress(RayError):
                ray.kill(actor)  # it may only be out of reach, and is not to come back
            self._await_end_of_process()  # what it had taken is given back when it is gone
            lost = TaskLost(f"the actor of {self.name} died without a report: {error}")
            self._lose(lost, told.HostLost)
        except Exception as error:  # whatever it is, the job has to learn of it
            self._lose(error, told.StartFailed)

    def _lose(self, error: Exception, event: type[told.StartFailed] | type[told.HostLost]) -> None:
        self._loop.post(self._take, event(error=error))

    def _take(self, event: told.Event) -> None:
        self._last.note(event)
        self._receive(self, event)


def _cluster_resources() -> Any:
    resources: Any = ray.cluster_resources
    return resources()


class _TaskActor:
    """Holds a task in a Ray worker. Its methods run side by side, each in a thread."""

    def __init__(self, blueprint: bytes, log_level: int) -> None:
        self._events: SimpleQueue[bytes] = SimpleQueue()
        # How many events were told, handed out, and are known to the driver.
        self._telling = threading.Condition()
        self._told = 0
        self._handed_out = 0
        self._received = 0
        logging.basicConfig(handlers=[RecordSender(self._log)], level=log_level, force=True)
        self._task: HostedTask | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        try:
            made: Blueprint = cloudpickle.loads(blueprint)
            self._task = made.build(self._tell)
        except Exception as error:
            self._tell(told.StartFailed(error=error))

    def pid(self) -> int:
        """The process that it is."""
        return os.getpid()

    def start(self) -> None:
        """Let the task run."""
        if self._task is not None:
            task = self._task
            self._thread = threading.Thread(target=task.run, name=task.name, daemon=True)
            self._thread.start()
        self._started.set()

    def join(self) -> None:
        """Wait until the task has ended and given back its queues."""
        if self._thread is not None:
            self._thread.join()

    def poll(self, seconds: float) -> list[bytes]:
        """The events that have come, waiting for the first. Those of the call before have come."""
        with self._telling:
            self._received = self._handed_out
            self._telling.notify_all()
        try:
            events = [self._events.get(timeout=seconds)]
        except Empty:
            return []
        while not self._events.empty():
            events.append(self._events.get())
        self._handed_out += len(events)
        return events

    @ray.method(concurrency_group="commands")  # one after the other
    def take_command(self, command: bytes) -> None:
        """Carry out a command, once the task has been started."""
        self._started.wait()
        if self._task is not None:
            self._task.take_command(wire.decode_command(command))

    def _log(self, record: logging.LogRecord) -> None:
        self._tell(told.LogEmitted(record=record))

    def _tell(self, event: told.Event) -> None:
        data = wire.encode_event(event)
        with self._telling:
            self._events.put(data)
            self._told += 1
            if isinstance(event, told.Attempting | told.Finished):  # if it dies now, it matters
                number = self._told
                self._telling.wait_for(lambda: self._received >= number)
