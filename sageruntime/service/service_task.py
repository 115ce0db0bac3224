"""ServiceTask: a service and the tasks that answer its requests."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sagequeue import create_queue
from sagequeue.protocol import Queue
from sageruntime.context import Services, TaskContext
from sageruntime.core.scope import Scope
from sageruntime.core.state import TaskState
from sageruntime.factory.task_factory import TaskType, choose_scope, create_task
from sageruntime.metrics import MetricsSnapshot
from sageruntime.operator.operator_factory import OperatorFactory
from sageruntime.runner.status import TaskStatus
from sageruntime.service.caller import MOST_UNSENT
from sageruntime.service.client import ServiceClient
from sageruntime.service.liveness_token import MAX_PARTICIPANTS, LivenessToken
from sageruntime.service.options import OPTION_NAMES, service_options
from sageruntime.service.service import MakeService, find_methods, find_service_class
from sageruntime.service.service_operator import ServiceOperator
from sageruntime.task.base_task import BaseTask

if TYPE_CHECKING:
    from typing_extensions import Self


_STATE_ORDER = (
    TaskState.FAILED,
    TaskState.CREATED,
    TaskState.STARTING,
    TaskState.RESTARTING,
    TaskState.RUNNING,
    TaskState.DRAINING,
    TaskState.STOPPED,
)


class ServiceTask:
    """A service that runs on threads, in processes or in Ray actors, and is called by its clients.

    Its instances share one queue of requests: an idle one takes the next. Each is a task, with a
    task's states, metrics and restarts. When one of them has failed for good, the service has.

    As a context manager it is started at the beginning of the block, and drained and cleaned up at
    the end.

    Args:
        name: letters, digits, ``_`` and ``-``; unique among running tasks.
        service: a service class, or a function without arguments that makes a service where it is
            to run, such as ``functools.partial(Embedder, model="small")``.
        on: the host of each instance: ``"thread"``, ``"process"``, ``"ray"``, or another task type.
        scope: how far away callers may be; by default as far as ``on`` can be.
        services: the services that this one calls.
        job: the job it is part of, if it is; its tasks and queues begin with ``prefix`` then.
        options: those of :class:`~sageruntime.service.options.ServiceOptions`. A request is
            executed at most three times if the service is ``idempotent``; otherwise, when the
            process that executes it dies, its caller gets ``ServiceLost``. Requests that nobody
            has taken yet wait for the restarted instance in any case. Any others are of the
            tasks, such as ``resources`` on Ray.

    Raises:
        InvalidOption: an option is out of range, or ``service`` makes no service.
    """

    def __init__(
        self,
        name: str,
        service: MakeService,
        *,
        on: TaskType = "thread",
        scope: Scope | None = None,
        services: Services | None = None,
        job: str = "",
        prefix: str = "",
        **options: Any,
    ) -> None:
        own = service_options(options)
        of_tasks = {name: value for name, value in options.items() if name not in OPTION_NAMES}
        made = find_service_class(service)
        self.name = name
        self._methods = None if made is None else find_methods(made)
        self._scope: Scope = scope or choose_scope(on)
        # Leases, of which a queue has as many as slots: of the requests that are being answered,
        # and of those whose replies wait for callers that take none.
        in_hand = own.instances * (own.worker_threads + own.max_concurrency)
        self._requests: Queue[Any] = create_queue(
            name=f"{prefix}{name}",
            maxsize=own.queue_maxsize,
            capacity=own.queue_maxsize + max(own.queue_maxsize // 4, in_hand + 2 * MOST_UNSENT),
            scope=self._scope,
            max_participants=MAX_PARTICIPANTS,
        )
        self._token = LivenessToken(f"{self._requests.name}-liveness", self._scope)
        self._cleaned_up = False
        operator_factory = OperatorFactory(
            ServiceOperator, service, own.worker_threads, own.max_concurrency, own.idempotent
        )
        self.tasks: list[BaseTask] = [
            create_task(
                on,
                TaskContext(
                    f"{self._requests.name}-{index}",
                    stage=name,
                    index=index,
                    parallelism=own.instances,
                    job=job,
                    services=services or Services(),
                ),
                operator_factory,
                input_buffer=self._requests,
                restart=own.restart,
                **of_tasks,
            )
            for index in range(own.instances)
        ]
        for task in self.tasks:
            task.add_listener(self._on_state_change)

    @property
    def state(self) -> TaskState:
        """That of the instance that has come least far; failed if any has."""
        states = [task.state for task in self.tasks]
        return min(states, key=_STATE_ORDER.index)

    def start_running(self) -> None:
        """Start the instances and return. Calls may be made from now on, or even before.

        Raises:
            TaskStateError: the service was started before.
            TaskStartError: the host cannot take a task.
        """
        for task in self.tasks:
            task.start_running()

    def stop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """End the service and wait for it.

        Args:
            drain: answer every request that was made before; otherwise only those in hand, and
                the others' callers get ``ServiceLost``.
            timeout: seconds to wait at most; 0 only asks.

        Returns:
            Whether the service has ended.
        """
        if self.join(0):
            return True
        if drain:
            self._requests.shutdown()
        for task in self.tasks:
            if not drain or task.state is TaskState.CREATED:
                task.stop(drain=False, timeout=0)
        return self.join(timeout)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until every instance has ended; return whether all have."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return all(
            task.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            for task in self.tasks
        )

    def cleanup(self, grace: float = 1.0) -> None:
        """Give back everything; may be repeated. A service that runs is stopped, not drained."""
        for task in self.tasks:
            task.stop(drain=False, timeout=0)
        self.join(grace)  # all of them, before the first closes the queue they share
        for task in self.tasks:
            task.cleanup(grace=0)
        if not self._cleaned_up:
            self._cleaned_up = True
            self._token.end()
            self._token.close()
            self._requests.close()
            if self._requests.backend == "sage":
                from sagequeue import prune_queues

                prune_queues(f"{self._requests.name}-replies-")  # of callers that were killed

    def measure(self) -> list[MetricsSnapshot]:
        """What is measured of each instance, as it is now; a packet of theirs is a call."""
        return [task.measure() for task in self.tasks]

    def get_status(self) -> list[TaskStatus]:
        """A snapshot of each instance; its ``processed`` are calls answered without an error."""
        return [task.get_status() for task in self.tasks]

    def __enter__(self) -> Self:
        self.start_running()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None:
            self.stop()
        self.cleanup()

    def client(self) -> ServiceClient:
        """A client, for any thread; it may be sent to any process within the scope."""
        return ServiceClient(self.name, self._requests, self._scope, self._token, self._methods)

    def _on_state_change(self, task: BaseTask) -> None:
        states = [task.state for task in self.tasks]
        if TaskState.FAILED in states or all(state.ended for state in states):
            self._token.end()
