"""ProcessHost: the runner in a process of its own."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import select
import signal
import socket
import threading
from contextlib import suppress
from multiprocessing.context import ForkServerProcess

import cloudpickle

from sageruntime.errors import TaskLost, TaskStartError
from sageruntime.host import fork_server, wire
from sageruntime.host.blueprint import Blueprint
from sageruntime.host.driver_loop import DriverLoop
from sageruntime.host.host import Receive
from sageruntime.host.hosted_task import HostedTask
from sageruntime.host.last_status import LastStatus
from sageruntime.host.surroundings import Surroundings
from sageruntime.logs import RecordSender
from sageruntime.metrics import MetricsSnapshot
from sageruntime.runner import commands as do
from sageruntime.runner import events as told
from sageruntime.runner.status import TaskStatus

# How long a host that has told its last event may take to exit before it is killed.
_EXIT_SECONDS = 5.0

_CHUNK = 1 << 16


class ProcessHost:
    """See :class:`~sageruntime.host.host.Host`.

    The process comes from a fork server that has imported the runtime. Commands and events go by a
    socket; the end of the process is told by its sentinel, which no grandchild can hold open.

    Args:
        name: the task's.
        blueprint: what is to run, pickled.
        loop: the driver's.
        receive: takes events.
    """

    def __init__(self, name: str, blueprint: bytes, loop: DriverLoop, receive: Receive) -> None:
        self.name = name
        self._last = LastStatus()
        self._blueprint = blueprint
        self._loop = loop
        self._receive = receive
        self._process: ForkServerProcess | None = None
        self._pid: int | None = None
        self._socket: socket.socket | None = None
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._frames = wire.FrameBuffer()
        self._is_killed = False
        self._is_running = False
        self._is_connected = True
        self._exit_code: int | None = None
        self._exited = threading.Event()

    @property
    def pid(self) -> int | None:
        """The process's id, once there is one."""
        return self._pid

    def start(self) -> None:
        near, far = socket.socketpair()
        level = logging.getLogger().getEffectiveLevel()
        process = multiprocessing.get_context("forkserver").Process(
            target=host_task,
            args=(far, os.getpid(), self._blueprint, level, Surroundings.here()),
            name=self.name,
            daemon=True,
        )
        try:
            fork_server.start(process)
        except Exception as error:
            near.close()
            self._exited.set()
            raise TaskStartError(f"{self.name}: its process cannot be started: {error}") from error
        finally:
            far.close()
        self._loop.call(self._follow, process, near)

    def send(self, command: do.Command) -> None:
        data = wire.frame(wire.encode_command(command))
        if self._transport is None:
            self._unsent.append(data)
        else:
            self._transport.write(data)

    def kill(self) -> None:
        self._is_killed = True
        if self._process is not None and not self._exited.is_set():
            with suppress(ValueError):  # it has just exited
                self._process.kill()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def wait(self) -> None:
        """Wait until the process has exited; one that does not is killed. For any thread."""
        if self._process is None:
            return
        if not self._exited.wait(_EXIT_SECONDS):
            self._loop.call(self.kill)
            self._exited.wait()

    # In the loop.

    def _follow(self, process: ForkServerProcess, near: socket.socket) -> None:
        self._process, self._socket, self._pid = process, near, process.pid
        self._loop.asyncio_loop.add_reader(process.sentinel, self._on_exit)
        near.setblocking(False)
        self._loop.asyncio_loop.create_task(self._connect(near))
        if self._is_killed:
            process.kill()

    async def _connect(self, near: socket.socket) -> None:
        transport, _ = await self._loop.asyncio_loop.create_connection(
            lambda: _Protocol(self), sock=near
        )
        self._transport = transport
        for data in self._unsent:
            transport.write(data)
        self._unsent.clear()

    def on_data(self, data: bytes) -> None:
        """Bytes have come from the process."""
        for frame in self._frames.feed(data):
            try:
                event = wire.decode_event(frame)
            except Exception as error:  # a record of a class that is not here, most likely
                logging.getLogger("sageruntime").warning(
                    "%s: something that its process told cannot be rebuilt: %s", self.name, error
                )
                continue
            self._last.note(event)
            self._is_running = True
            self._receive(self, event)

    def on_disconnect(self) -> None:
        """The process has closed its end, or is gone."""
        self._is_connected = False
        self._tell_loss()

    def _on_exit(self) -> None:
        assert self._process is not None
        self._loop.asyncio_loop.remove_reader(self._process.sentinel)
        # In another thread: where a process is being started, the code has to be waited for.
        if not self._loop.run_elsewhere(self._reap, self._on_reaped, self._on_reaped):
            self._on_reaped(self._reap())

    def _reap(self) -> int | None:
        assert self._process is not None
        return fork_server.take_exit_code(self._process)

    def _on_reaped(self, code: int | Exception | None) -> None:
        self._exit_code = code if isinstance(code, int) else None
        self._exited.set()
        if self._transport is not None and self._is_connected:
            # what it sent before it died has been received first, if it was sent at all
            self._loop.call_later(0, self._disconnect)
        else:
            self._tell_loss()

    def _disconnect(self) -> None:
        # A grandchild may hold the other end open: read what is there, then hang up.
        transport = self._transport
        if transport is not None and self._is_connected:
            assert self._socket is not None
            with suppress(OSError):
                while data := self._socket.recv(_CHUNK):
                    self.on_data(data)
            transport.abort()

    def _tell_loss(self) -> None:
        if self._exited.is_set():
            self._receive(self, told.HostLost(error=TaskLost(self._describe_exit())))

    def _describe_exit(self) -> str:
        code = self._exit_code
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"exited with code {code}"
        if not self._is_running:
            return (
                f"the process of {self.name} {how} before it ran its task; see its output above. "
                "A script that starts processes keeps its main part under "
                'if __name__ == "__main__":'
            )
        return f"the process of {self.name} {how} without a report"

    def get_status(self) -> TaskStatus | None:
        """What the process told last."""
        return self._last.status

    def measure(self) -> MetricsSnapshot | None:
        """What was measured last."""
        return self._last.metrics


class _Protocol(asyncio.Protocol):
    """Passes on what comes by the socket."""

    def __init__(self, host: ProcessHost) -> None:
        self._host = host

    def data_received(self, data: bytes) -> None:
        self._host.on_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._host.on_disconnect()


class _Uplink:
    """Sends events to the driver. Any thread may send."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._sending = threading.Lock()

    def tell(self, event: told.Event) -> None:
        """Send an event."""
        data = wire.frame(wire.encode_event(event))
        with self._sending:
            self._control.sendall(data)

    def log(self, record: logging.LogRecord) -> None:
        """Send a log record."""
        self.tell(told.LogEmitted(record=record))


def host_task(
    control: socket.socket,
    driver: int,
    blueprint: bytes,
    log_level: int,
    surroundings: Surroundings,
) -> None:
    """Make a task and run it: the main function of the process."""
    surroundings.adopt()
    fork_server.let_have_children()
    uplink = _Uplink(control)
    logging.basicConfig(handlers=[RecordSender(uplink.log)], level=log_level)
    # the driver is gone when this fails, and so will be this process
    with suppress(BrokenPipeError, ConnectionResetError):
        _run(uplink, control, driver, blueprint)


def _run(uplink: _Uplink, control: socket.socket, driver: int, data: bytes) -> None:
    try:
        blueprint: Blueprint = cloudpickle.loads(data)
        task = blueprint.build(uplink.tell)
    except Exception as error:
        uplink.tell(told.StartFailed(error=error))
        return
    receiving = threading.Thread(
        target=_receive_commands, args=(task, control, driver), daemon=True
    )
    receiving.start()
    threading.current_thread().name = task.name  # profiles tell threads by their names
    task.run()


def _receive_commands(task: HostedTask, control: socket.socket, driver: int) -> None:
    """Take commands, until the driver is gone: then nobody waits for what the operator does."""
    with suppress(OSError):
        frames = wire.FrameBuffer()
        waiting = select.poll()
        waiting.register(control, select.POLLIN)
        waiting.register(os.pidfd_open(driver), select.POLLIN)
        while True:
            ready = {fd for fd, _ in waiting.poll()}
            if control.fileno() not in ready:
                break
            data = control.recv(_CHUNK)
            if not data:
                break
            for frame in frames.feed(data):
                task.take_command(wire.decode_command(frame))
    os._exit(1)
