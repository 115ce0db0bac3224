"""Coordinator: takes a job's checkpoints, and brings the job back to the latest when a task fails.

Checkpoints begin at the sources and travel downstream as barriers; see
:class:`~sageruntime.runner.alignment.Alignment`. One is complete when every task has handed in its
state, and is then saved at once or not at all. One that is late is given up, and the next is taken.
When a task fails, all are halted, begin the next *attempt* from the latest complete checkpoint, and
ignore what earlier attempts have left in the queues.

At the end of the job two checkpoints are special. When all sources have been read to their end, one
more is taken before they may finish; so none is needed while tasks come to their ends one by one.
And when every task has processed and sent everything, their last states are saved as a *final*
checkpoint: a job that begins from it has nothing to do but to hand out the results.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from sageruntime.core.policies import RestartPolicy
from sageruntime.core.state import TaskState
from sageruntime.errors import CheckpointError, HostReplaced, describe_error
from sageruntime.host.driver_loop import driver_loop
from sageruntime.recovery.checkpoint import FINAL_CHECKPOINT, Checkpoint, CheckpointOptions
from sageruntime.recovery.rescaling import assign_states
from sageruntime.recovery.restart_budget import RestartBudget
from sageruntime.recovery.stores import open_store
from sageruntime.runner import events as told

T = TypeVar("T")

# How long a task may take to halt before its process is killed, and before the job is given up.
_KILL_SECONDS = 3.0
_GIVE_UP_SECONDS = 60.0


class Supervisor(Protocol):
    """Who decides about a task: for a job with checkpoints, its coordinator."""

    def on_event(self, task: Any, event: told.Event) -> None:
        """A task tells something, in the driver's loop.

        After ``Failed`` and ``Halted`` it waits for ``restore()`` or ``fail()``.
        """


class CoordinatedTask(Protocol):
    """What the coordinator asks of a task."""

    name: str
    supervisor: Supervisor | None

    @property
    def state(self) -> TaskState: ...
    @property
    def is_halted(self) -> bool: ...
    def watch(self, watcher: Callable[[TaskState], object]) -> None: ...
    def begin_with(self, state: bytes | None, is_final: bool = False) -> None: ...
    def halt(self) -> None: ...
    def restore(self, attempt: int, state: bytes | None = None, is_final: bool = False) -> None: ...
    def take_checkpoint(self, checkpoint: int) -> None: ...
    def abort_checkpoint(self, checkpoint: int) -> None: ...
    def checkpoint_completed(self, checkpoint: int) -> None: ...
    def release(self) -> None: ...
    def dismiss(self) -> None: ...
    def kill_host(self) -> None: ...
    def fail(self, error: BaseException) -> None: ...
    def count_restart(self) -> None: ...


class Coordinator:
    """The supervisor of all tasks of a job. It works in the driver's loop, and waits for nothing.

    Args:
        job: the job's name in the store.
        options: where checkpoints go and how often.
        policy: how often the job may go back to a checkpoint.
        logger: where it says so.
        alone: for a single task in no job, whose last state the next one begins with.

    Raises:
        CheckpointError: the store cannot be used.
    """

    def __init__(
        self,
        job: str,
        options: CheckpointOptions,
        policy: RestartPolicy,
        logger: logging.Logger,
        *,
        alone: bool = False,
    ) -> None:
        self._job = job
        self._alone = alone
        self._options = options
        self._budget = RestartBudget(policy)
        self._logger = logger
        self._store = open_store(options)
        if not options.resume:
            self._store.clear(job)
        self._loop = driver_loop()
        # The store is used by one thread, in order.
        self._io = ThreadPoolExecutor(1, thread_name_prefix=f"{job}-checkpoints")
        self._tasks: dict[str, CoordinatedTask] = {}
        self._keys: dict[str, str] = {}
        self._sources: list[str] = []
        self._attempt = 0
        self._number = 0
        self._pending: dict[str, bytes] | None = None
        self._is_saving = False
        self._exhausted: set[str] = set()
        self._last_taken = False
        self._is_released = False
        self._completed: dict[str, bytes] = {}
        self._next: asyncio.TimerHandle | None = None
        self._late: asyncio.TimerHandle | None = None
        self._rollback: _Rollback | None = None
        # Failures of tasks while others are still being started; None from then on.
        self._early: list[tuple[CoordinatedTask, told.Failed]] | None = []
        self._is_stopped = False
        self._is_closed = False

    def adopt(self, tasks: Mapping[str, CoordinatedTask], sources: list[str]) -> None:
        """Take charge of tasks that have not been started, and let them begin where the job was.

        Args:
            tasks: by ``stage/index``, sources first.
            sources: which of them are sources.

        Raises:
            CheckpointError: the latest checkpoint is of a job with other stages.
        """
        self._tasks = dict(tasks)
        self._keys = {task.name: key for key, task in tasks.items()}
        self._sources = list(sources)
        latest = self._store.latest(self._job)
        states: dict[str, bytes] = {}
        if latest is not None:
            states = assign_states(self._job, latest, self._tasks)
            self._number = latest.number
            self._is_released = latest.is_final
            self._logger.warning("job %s goes on from %s", self._job, latest)
        for key, task in self._tasks.items():
            task.supervisor = self
            task.watch(self._on_transition)
            if latest is not None:
                task.begin_with(states[key], latest.is_final)

    def start(self) -> None:
        """Begin to take checkpoints: all tasks have been started."""
        self._loop.call(self._start)

    def close(self, forget: bool) -> None:
        """Give back the store; ``forget`` the checkpoints first, for the job has ended well.

        May be repeated. It waits for a checkpoint that is being saved.
        """
        self._loop.call(self._stop)
        self._io.shutdown(wait=True)
        self._close_store(forget)

    def close_later(self) -> None:
        """Give back the store without waiting; the checkpoints stay."""
        self._stop()
        self._io.submit(self._close_store, False)
        self._io.shutdown(wait=False)

    def stop(self) -> None:
        """Take no more checkpoints, and bring nothing back; may be repeated."""
        self._loop.call(self._stop)

    # All of this is called in the driver's loop.

    def on_event(self, task: CoordinatedTask, event: told.Event) -> None:
        """See :class:`Supervisor`."""
        # Drop events that belong to an earlier attempt.
        if self._is_stopped or event.attempt < self._attempt:
            return
        key = self._keys[task.name]
        if isinstance(event, told.Failed):
            if self._early is not None:
                self._early.append((task, event))
            else:
                self._on_failed(task, event.error)
        elif isinstance(event, told.Halted):
            self._on_halted()
        elif self._rollback is not None:
            return
        elif isinstance(event, told.SnapshotTaken):
            self._on_snapshot(key, event.checkpoint, event.state)
        elif isinstance(event, told.CheckpointDeclined):
            self._give_up(event.checkpoint, f"{task.name} would have to hold back too much for it")
        elif isinstance(event, told.CheckpointWanted):
            self._take_checkpoint()
        elif isinstance(event, told.Exhausted):
            self._exhausted.add(key)
            if self._all_exhausted():
                self._take_checkpoint()
        elif isinstance(event, told.Completed):
            self._on_completed(task, event.state)

    def _start(self) -> None:
        early, self._early = self._early or [], None
        self._schedule()
        for task, failed in early:
            self.on_event(task, failed)

    def _on_transition(self, state: TaskState) -> None:
        if state.ended and self._rollback is not None:
            self._on_halted()

    def _stop(self) -> None:
        self._is_stopped = True
        for timer in (self._next, self._late):
            if timer is not None:
                timer.cancel()
        if self._rollback is not None:
            self._rollback.cancel()
            self._rollback = None

    def _close_store(self, forget: bool) -> None:
        if not self._is_closed:
            self._is_closed = True
            if forget:
                self._store.clear(self._job)
            self._store.close()

    def _use_store(
        self,
        use: Callable[[], T],
        then: Callable[[T], object],
        on_error: Callable[[Exception], object],
    ) -> None:
        """Use the store in its thread, and go on in the loop unless another attempt has begun."""
        attempt = self._attempt

        def guarded(go_on: Callable[[Any], object]) -> Callable[[Any], None]:
            def go_on_if_wanted(value: Any) -> None:
                if not self._is_stopped and attempt == self._attempt:
                    go_on(value)

            return go_on_if_wanted

        self._loop.run_elsewhere(use, guarded(then), guarded(on_error), self._io)

    # Checkpoints.

    def _schedule(self) -> None:
        if self._next is not None:
            self._next.cancel()
        if not self._is_stopped:
            self._next = self._loop.call_later(self._options.interval, self._take_checkpoint)

    def _take_checkpoint(self) -> None:
        self._schedule()
        if self._pending is not None or self._is_saving or self._is_released:
            return
        if self._rollback is not None or self._is_stopped:
            return
        self._number += 1
        self._pending = {}
        self._last_taken = self._all_exhausted()
        self._late = self._loop.call_later(
            self._options.timeout, self._give_up, self._number,
            f"it was not complete after {self._options.timeout:g} s (its barriers wait behind what "
            "is in the queues: a smaller queue_maxsize or a longer timeout helps a slow operator)",
        )  # fmt: skip
        for key in self._sources:
            self._tasks[key].take_checkpoint(self._number)

    def _give_up(self, number: int, why: str) -> None:
        """Abandon a checkpoint; the next one is taken when it is due."""
        if self._pending is None or number != self._number:
            return
        missing = ", ".join(key for key in self._tasks if key not in self._pending)
        self._logger.warning(
            "checkpoint %d of job %s is given up: %s; missing are the states of %s",
            number, self._job, why, missing,
        )  # fmt: skip
        self._drop_pending()
        for task in self._tasks.values():
            task.abort_checkpoint(number)

    def _drop_pending(self) -> None:
        self._pending = None
        if self._late is not None:
            self._late.cancel()

    def _on_snapshot(self, key: str, number: int, state: bytes) -> None:
        if self._pending is None or number != self._number:
            return
        self._pending[key] = state
        if len(self._pending) < len(self._tasks):
            return
        states = self._pending
        self._drop_pending()
        self._save(states, self._on_saved, self._on_not_saved)

    def _on_saved(self, _: None) -> None:
        self._is_saving = False
        for task in self._tasks.values():
            task.checkpoint_completed(self._number)
        if self._last_taken:
            self._is_released = True
            for source in self._sources:
                self._tasks[source].release()
        elif self._all_exhausted():
            self._take_checkpoint()

    def _on_not_saved(self, error: Exception) -> None:
        self._is_saving = False
        if self._last_taken or not isinstance(error, CheckpointError):
            self._fail_all(error)
            return
        self._logger.error("checkpoint %d is lost: %s", self._number, error)

    def on_stopped(self, task: CoordinatedTask) -> None:
        """One task alone was stopped: without its state no checkpoint can be complete."""
        if not self._is_stopped:
            self._fail_all(CheckpointError(
                f"{task.name} was stopped, and a job with checkpoints cannot go on without one of "
                "its tasks; stop the job instead"
            ))  # fmt: skip

    def _on_completed(self, task: CoordinatedTask, state: bytes) -> None:
        if not (self._is_released or self._alone):
            self.on_stopped(task)
            return
        self._completed[self._keys[task.name]] = state
        left = [key for key, task in self._tasks.items() if not task.state.ended]
        if not set(left) <= self._completed.keys():
            return
        if len(self._completed) < len(self._tasks):
            self._dismiss(None)  # begun from the final checkpoint: nothing is new
            return
        self._number += 1
        self._save(self._completed, self._dismiss, self._fail_all, final=not self._alone)

    def _dismiss(self, _: None) -> None:
        for task in self._tasks.values():
            task.checkpoint_completed(FINAL_CHECKPOINT)
            task.dismiss()

    def _save(
        self,
        states: dict[str, bytes],
        then: Callable[[None], object],
        on_error: Callable[[Exception], object],
        final: bool = False,
    ) -> None:
        self._is_saving = True
        checkpoint = Checkpoint(self._number, time.time(), states, final)
        self._use_store(lambda: self._store.save(self._job, checkpoint), then, on_error)

    def _all_exhausted(self) -> bool:
        return len(self._exhausted) == len(self._sources)

    def _fail_all(self, error: Exception) -> None:
        for task in self._tasks.values():
            task.fail(error)

    # Going back.

    def _on_failed(self, failed: CoordinatedTask, error: BaseException) -> None:
        if self._rollback is not None:
            self._on_halted()  # that will do
            return
        # what it hung on is dealt with: that is no failure of the job
        delay = 0.0 if isinstance(error, HostReplaced) else self._budget.next_delay()
        if delay is None or isinstance(error, CheckpointError):
            failed.fail(error)
            return
        failed.count_restart()
        self._logger.warning(
            "job %s goes back to a checkpoint in %.1f s because %s failed: %s",
            self._job, delay, failed.name, describe_error(error), exc_info=error,
        )  # fmt: skip
        self._drop_pending()
        self._rollback = _Rollback(
            self._loop.call_later(_KILL_SECONDS, self._kill_late),
            self._loop.call_later(_GIVE_UP_SECONDS, self._give_up_rollback),
            self._loop.call_later(delay, self._on_backed_off),
        )
        for task in self._tasks.values():
            if not task.is_halted:
                task.halt()

    def _on_backed_off(self) -> None:
        assert self._rollback is not None
        self._rollback.backed_off = True
        self._on_halted()

    def _on_halted(self) -> None:
        rollback = self._rollback
        if rollback is None or not rollback.backed_off or rollback.is_reading:
            return
        if all(task.is_halted for task in self._tasks.values()):
            rollback.is_reading = True
            self._use_store(
                lambda: self._store.latest(self._job), self._begin_again, self._fail_all
            )

    def _kill_late(self) -> None:
        for task in self._tasks.values():
            if not task.is_halted:
                task.kill_host()

    def _give_up_rollback(self) -> None:
        late = ", ".join(task.name for task in self._tasks.values() if not task.is_halted)
        self._fail_all(CheckpointError(
            f"job {self._job} cannot go back to a checkpoint: the operators of {late} did not "
            f"return within {_GIVE_UP_SECONDS:.0f} s; run them on processes"
        ))  # fmt: skip

    def _begin_again(self, latest: Checkpoint | None) -> None:
        assert self._rollback is not None
        self._rollback.cancel()
        self._rollback = None
        self._attempt += 1
        self._is_saving = False
        self._exhausted = set()
        self._last_taken = False
        self._completed = {}
        try:
            states = {} if latest is None else assign_states(self._job, latest, self._tasks)
        except CheckpointError as error:
            self._fail_all(error)
            return
        is_final = self._is_released = latest is not None and latest.is_final
        # The receivers first: they are there when the first packets come.
        for key in reversed(self._tasks):
            self._tasks[key].restore(self._attempt, states.get(key), is_final)
        self._schedule()


class _Rollback:
    """A way back to a checkpoint.

    Attributes:
        backed_off: whether the pause before it is over.
        is_reading: whether all have halted, and the checkpoint is being read.
    """

    def __init__(self, *timers: asyncio.TimerHandle) -> None:
        self._timers = timers
        self.backed_off = False
        self.is_reading = False

    def cancel(self) -> None:
        """Stop its timers."""
        for timer in self._timers:
            timer.cancel()
