"""Coordinator: takes a job's checkpoints, and brings the job back to the latest when a task fails.

Checkpoints begin at the sources and travel downstream as barriers; see
:class:`~sageruntime.task.mailbox_worker.MailboxWorker`. One is complete when every task has handed
in its state, and is then saved at once or not at all. When a task fails, all are halted, begin the
next *attempt* from the latest complete checkpoint, and ignore what earlier attempts have left in
the queues.

At the end of the job two checkpoints are special. When all sources have been read to their end, one
more is taken before they may finish; so none is needed while tasks come to their ends one by one.
And when every task has processed and sent everything, their last states are saved as a checkpoint
that is *over*: whoever begins from it has nothing to do but to hand out the results.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from sageruntime.errors import CheckpointError, HostReplaced
from sageruntime.recovery.checkpoint import LAST_STATE, Checkpoint, CheckpointOptions
from sageruntime.recovery.policies import RestartPolicy
from sageruntime.recovery.rescaling import states_for
from sageruntime.recovery.restart_budget import RestartBudget
from sageruntime.task.state import TaskState

if TYPE_CHECKING:
    from sageruntime.task.supervised_task import SupervisedTask

# How long a task may take to halt before its process is killed, and before the job is given up.
_KILL_SECONDS = 3.0
_GIVE_UP_SECONDS = 60.0


class Coordinator:
    """The supervisor of all tasks of a job; its decisions are made in a thread of its own.

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
        self._store = options.open_store()
        if not options.resume:
            self._store.clear(job)
        self._tasks: dict[str, SupervisedTask] = {}
        self._sources: list[str] = []
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._attempt = 0
        self._number = 0
        self._pending: dict[str, bytes] | None = None
        self._exhausted: set[str] = set()
        self._last_taken = False
        self._released = False
        self._completed: dict[str, bytes] = {}
        self._due = 0.0
        self._stopped = False
        self._closed = False
        self._halted = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"{job}-coordinator", daemon=True)

    def adopt(self, tasks: Mapping[str, SupervisedTask], sources: list[str]) -> None:
        """Take charge of tasks that have not been started, and let them begin where the job was.

        Args:
            tasks: by ``stage/index``, sources first.
            sources: which of them are sources.

        Raises:
            CheckpointError: the latest checkpoint is of a job with other stages.
        """
        self._tasks = dict(tasks)
        self._sources = list(sources)
        latest = self._store.latest(self._job)
        states: dict[str, bytes] = {}
        if latest is not None:
            states = states_for(self._job, latest, self._tasks)
            self._number = latest.number
            self._logger.warning(
                "job %s goes on from checkpoint %d of %s",
                self._job, latest.number, time.strftime("%F %T", time.localtime(latest.taken_at)),
            )  # fmt: skip
        for key, task in self._tasks.items():
            task.supervisor = self
            task.add_listener(self._notice)
            if latest is not None:
                task.begin_with(states[key], latest.over)

    def start(self) -> None:
        """Begin to take checkpoints."""
        self._due = time.monotonic() + self._options.interval
        self._thread.start()

    def stop(self) -> None:
        """Take no more checkpoints; may be repeated."""
        self._stopped = True
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._tell(lambda: None)
            self._thread.join()

    def close(self, forget: bool) -> None:
        """Give back the store; ``forget`` the checkpoints first, for the job has ended well."""
        self.stop()
        if self._closed:
            return
        self._closed = True
        if forget:
            self._store.clear(self._job)
        self._store.close()

    # The supervisor of every task.

    def failed(self, task: SupervisedTask, error: BaseException) -> None:
        """See :class:`~sageruntime.task.supervisor.Supervisor`."""
        self._tell(partial(self._on_failed, task, error))

    def exhausted(self, task: SupervisedTask) -> None:
        """See :class:`~sageruntime.task.supervisor.Supervisor`."""
        self._tell(partial(self._on_exhausted, _key_of(task)))

    def snapshot_taken(self, task: SupervisedTask, checkpoint: int, state: bytes) -> None:
        """See :class:`~sageruntime.task.supervisor.Supervisor`."""
        self._tell(partial(self._on_snapshot, _key_of(task), checkpoint, state))

    def checkpoint_wanted(self, task: SupervisedTask) -> None:
        """See :class:`~sageruntime.task.supervisor.Supervisor`."""
        self._tell(self._take_checkpoint)

    def completed(self, task: SupervisedTask, state: bytes) -> None:
        """See :class:`~sageruntime.task.supervisor.Supervisor`."""
        self._tell(partial(self._on_completed, _key_of(task), state))

    def _tell(self, event: Callable[[], None]) -> None:
        attempt = self._attempt
        # What an attempt has told that is over by then is ignored.
        self._events.put(lambda: event() if attempt == self._attempt else None)

    def _notice(self, task: SupervisedTask) -> None:
        with self._halted:
            self._halted.notify_all()

    def _run(self) -> None:
        try:
            while not self._stopped:
                try:
                    self._events.get(timeout=max(0.0, self._due - time.monotonic()))()
                except queue.Empty:
                    self._take_checkpoint()
        except Exception as error:  # whatever it is, the job has to learn of it
            self._give_up(error)

    def _take_checkpoint(self) -> None:
        self._due = time.monotonic() + self._options.interval
        if self._pending is not None or self._released:
            return
        self._number += 1
        self._pending = {}
        self._last_taken = len(self._exhausted) == len(self._sources)
        for key in self._sources:
            self._tasks[key].take_checkpoint(self._number)

    def _on_snapshot(self, key: str, number: int, state: bytes) -> None:
        if self._pending is None or number != self._number:
            return
        self._pending[key] = state
        if len(self._pending) < len(self._tasks):
            return
        states, self._pending = self._pending, None
        last = self._last_taken
        try:
            self._save(states)
        except CheckpointError as error:
            if last:
                raise
            self._logger.error("checkpoint %d is lost: %s", self._number, error)
            return
        for task in self._tasks.values():
            task.checkpoint_completed(self._number)
        if last:
            self._released = True
            for source in self._sources:
                self._tasks[source].release()
        elif len(self._exhausted) == len(self._sources):
            self._take_checkpoint()

    def _on_exhausted(self, key: str) -> None:
        self._exhausted.add(key)
        if len(self._exhausted) == len(self._sources):
            self._take_checkpoint()

    def _on_completed(self, key: str, state: bytes) -> None:
        self._completed[key] = state
        if len(self._completed) < len(self._tasks):
            return
        self._number += 1
        self._save(self._completed, over=not self._alone)
        for task in self._tasks.values():
            task.checkpoint_completed(LAST_STATE)
            task.dismiss()

    def _on_failed(self, failed: SupervisedTask, error: BaseException) -> None:
        # what it hung on is dealt with: that is no failure of the job
        delay = 0.0 if isinstance(error, HostReplaced) else self._budget.next_delay()
        if delay is None or isinstance(error, CheckpointError):
            failed.fail(error)
            return
        failed.metrics.restarts += 1
        self._logger.warning(
            "job %s goes back to a checkpoint in %.1f s because %s failed: %s",
            self._job, delay, failed.name, error, exc_info=error,
        )  # fmt: skip
        self._halt_all()
        with self._halted:
            self._halted.wait_for(lambda: self._stopped, delay)
        self._attempt += 1
        self._begin_again()

    def _halt_all(self) -> None:
        """Wait until every task is in RESTARTING, or has ended because the job is closed."""
        for task in self._tasks.values():
            if task.state is not TaskState.RESTARTING:
                task.halt()
        with self._halted:
            if self._halted.wait_for(self._all_halted, _KILL_SECONDS):
                return
        for task in self._tasks.values():
            if task.state is not TaskState.RESTARTING:
                task.kill_host()
        with self._halted:
            if not self._halted.wait_for(self._all_halted, _GIVE_UP_SECONDS):
                late = ", ".join(
                    task.name
                    for task in self._tasks.values()
                    if task.state is not TaskState.RESTARTING
                )
                raise CheckpointError(
                    f"job {self._job} cannot go back to a checkpoint: the operators of {late} did "
                    f"not return within {_GIVE_UP_SECONDS:.0f} s; run them on processes"
                )

    def _all_halted(self) -> bool:
        states = [task.state for task in self._tasks.values()]
        halted = all(state is TaskState.RESTARTING or state.ended for state in states)
        return self._stopped or halted

    def _begin_again(self) -> None:
        if self._stopped:
            return
        latest = self._store.latest(self._job)
        self._pending = None
        self._exhausted = set()
        self._last_taken = self._released = False
        self._completed = {}
        states = {} if latest is None else states_for(self._job, latest, self._tasks)
        over = latest is not None and latest.over
        # The receivers first: they are there when the first packets come.
        for key in reversed(self._tasks):
            self._tasks[key].restore(self._attempt, states.get(key), over)
        self._due = time.monotonic() + self._options.interval

    def _save(self, states: dict[str, bytes], over: bool = False) -> None:
        self._store.save(self._job, Checkpoint(self._number, time.time(), states, over))

    def _give_up(self, error: Exception) -> None:
        for task in self._tasks.values():
            task.fail(error)


def _key_of(task: SupervisedTask) -> str:
    return f"{task.ctx.stage}/{task.ctx.index}"
