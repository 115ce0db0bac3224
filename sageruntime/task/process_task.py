"""ProcessTask: the worker loop in a process of its own, over shared-memory queues."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection as Pipe
from multiprocessing.context import ForkServerProcess
from typing import Any

import cloudpickle

from sageruntime.errors import TaskLost, TaskStartError
from sageruntime.logs import RecordSender
from sageruntime.task.blueprint import TaskBlueprint
from sageruntime.task.hosted_task import HostedTask
from sageruntime.task.packed_error import PackedError
from sageruntime.task.remote_task import RemoteReport, RemoteTask
from sageruntime.task.state import TaskState

# How long a child that has reported may take to exit before it is killed.
_EXIT_SECONDS = 5.0


class ProcessTask(RemoteTask):
    """A task hosted by a child process; see :class:`~sageruntime.task.base_task.BaseTask`.

    The child comes from a fork server that has imported the runtime, so a script that starts one
    keeps its main part under ``if __name__ == "__main__":``. It ends with this process, even if
    that is killed.
    """

    host = "process"
    default_scope = "machine"
    _process: ForkServerProcess | None = None
    _control: Pipe | None = None
    _follower: threading.Thread | None = None
    _host_ended = False

    @property
    def pid(self) -> int | None:
        """The host's process id, once there is one."""
        process = self._process
        return None if process is None else process.pid

    def cleanup(self, grace: float = 1.0) -> None:
        """See :class:`BaseTask`."""
        if not self.stop(drain=False, timeout=grace):
            self._kill()
        process, follower, control = self._process, self._follower, self._control
        if process is not None and follower is not None and control is not None:
            follower.join(_EXIT_SECONDS)
            self._kill()
            follower.join()
            with self._commanding:
                control.close()
                process.close()
                self._process = None
        self._monitor.close()
        self.input_buffer.close()

    def _launch(self, blueprint: bytes) -> None:
        forked = multiprocessing.get_context("forkserver")
        forked.set_forkserver_preload(["__main__", __name__])
        near, far = forked.Pipe()
        level = logging.getLogger().getEffectiveLevel()
        process = forked.Process(
            target=host_task, args=(far, blueprint, level), name=self.name, daemon=True
        )
        try:
            with _sigint_blocked():
                process.start()
        except Exception as error:
            near.close()
            raise TaskStartError(f"{self.name}: its process cannot be started: {error}") from error
        finally:
            far.close()
        self._process, self._control, self._host_ended = process, near, False
        self._follower = threading.Thread(
            target=self._follow, args=(process, near), name=f"{self.name}-follow", daemon=True
        )
        self._follower.start()

    def _has_host(self) -> bool:
        return self._process is not None and not self._host_ended

    def _send(self, command: str, arguments: tuple[Any, ...]) -> None:
        with suppress(OSError):  # gone; the follower will say so
            if self._control is not None:
                self._control.send((command, arguments))

    def _kill(self) -> None:
        if self._has_host() and self._process is not None:
            self._process.kill()

    def _follow(self, process: ForkServerProcess, control: Pipe) -> None:
        # the pipe's other end closes with the child, however that ends
        with suppress(EOFError, OSError):
            while True:
                self._receive(control.recv_bytes())
        # only here: two threads cannot wait for one process of the fork server
        process.join()
        self._host_ended = True
        if not self._state.ended:
            self._on_host_lost(TaskLost(_obituary(self.name, self._state, process.exitcode)))

    def _receive(self, data: bytes) -> None:
        try:
            message = pickle.loads(data)
        except Exception as error:  # of a class that only the child can import
            self.fail(error)
            return
        self._take(message)


def _obituary(name: str, state: TaskState, exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        how = f"was killed by {signal.Signals(-exitcode).name}"
    else:
        how = f"exited with code {exitcode}"
    if state is TaskState.STARTING:
        return (
            f"the process of {name} {how} before it ran its task; see its output above. A script "
            'that starts processes keeps its main part under if __name__ == "__main__":'
        )
    return f"the process of {name} {how} without a report"


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """A child started within never sees Ctrl-C, which is for its parent to handle."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Uplink:
    """Sends statuses, log records and the report to the parent."""

    def __init__(self, control: Pipe) -> None:
        self._control = control
        self._sending = threading.Lock()

    def send(self, message: object) -> None:
        """Send anything that pickles."""
        data = cloudpickle.dumps(message)
        with self._sending:
            self._control.send_bytes(data)


def host_task(control: Pipe, blueprint: bytes, log_level: int) -> None:
    """Build a task, run it and report: the main function of the child process."""
    uplink = _Uplink(control)
    logging.basicConfig(handlers=[RecordSender(uplink.send)], level=log_level)
    # the parent is gone when this fails, and so will be this process
    with suppress(BrokenPipeError):
        _run(uplink, control, blueprint)


def _run(uplink: _Uplink, control: Pipe, data: bytes) -> None:
    try:
        blueprint: TaskBlueprint = cloudpickle.loads(data)
        task = blueprint.build(uplink.send)
    except Exception as error:
        uplink.send(PackedError.of(error))
        return
    # started first: the parent may have asked it to drain already
    task.start_running()
    threading.Thread(target=_obey, args=(task, control), daemon=True).start()
    while not task.join(task.options.monitoring_interval):
        uplink.send(task.get_status())
    uplink.send(RemoteReport.of(task.get_report()))
    task.cleanup()


def _obey(task: HostedTask, control: Pipe) -> None:
    try:
        while True:
            task.obey(*control.recv())
    except (EOFError, OSError):
        # The parent has died: nobody waits for what the operator does now.
        task.cleanup()
        os._exit(1)
