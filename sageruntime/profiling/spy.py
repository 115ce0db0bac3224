"""Spy: py-spy, sampling the stacks of this process's threads."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sageruntime.errors import MonitoringError
from sageruntime.profiling.stack_profile import Frame, Stack, StackProfile

_SAMPLES_PER_SECOND = 200
_STARTED = "Sampling process"
_STOP_SECONDS = 10.0
_PR_SET_PTRACER = 0x59616D61
_THREAD = re.compile(r"thread \((\w+)\)(?:: (.*))?")
_NAMES_SECONDS = 0.01
_FRAME = re.compile(r"(.*) \((.*)\)")


_logger = logging.getLogger(__name__)


class Spy:
    """Samples all threads of this process until a profile is asked for.

    Raises:
        MonitoringError: py-spy is not installed, or may not trace this process.
    """

    def __init__(self) -> None:
        scripts = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
        program = shutil.which("py-spy", path=scripts)
        if program is None:
            raise MonitoringError("profiles need py-spy: pip install 'sagequeue[profile]'")
        with tempfile.NamedTemporaryFile(prefix="sageruntime-profile-", delete=False) as file:
            self._file = Path(file.name)
        command = [
            program, "record", "--pid", str(os.getpid()), "--rate", str(_SAMPLES_PER_SECOND),
            "--format", "raw", "--output", str(self._file), "--threads", "--idle", "--function",
            "--full-filenames", "--nonblocking",
        ]  # fmt: skip
        with _sigint_unblocked():  # py-spy ends on SIGINT
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                start_new_session=True,
            )  # fmt: skip
        _allow_tracing_by(self._process.pid)
        # py-spy reads the names of threads from this process's memory and gets some wrong
        self._names: dict[int, str] = {}
        self._ended = threading.Event()
        threading.Thread(target=self._record_names, name="spy-names", daemon=True).start()
        self._await_start()
        self._started_at = time.monotonic()
        self._profiles: dict[str, StackProfile] | None = None

    def get_profile(self, task: str) -> StackProfile:
        """What was seen of the threads that worked for a task; the first call ends the sampling."""
        if self._profiles is None:
            self._profiles = self._stop()
        of_the_task = re.compile(rf"{re.escape(task)}(_\d+)?")
        return StackProfile.merged(
            profile.under(Frame(thread, "thread"))
            for thread, profile in self._profiles.items()
            if of_the_task.fullmatch(thread)
        )

    def _record_names(self) -> None:
        while not self._ended.wait(_NAMES_SECONDS):
            self._names |= {thread.native_id or 0: thread.name for thread in threading.enumerate()}

    def _await_start(self) -> None:
        assert self._process.stdout is not None
        output = ""
        for line in self._process.stdout:
            output += line
            if _STARTED in line:
                # it writes more later, and must not block on a full pipe
                threading.Thread(target=self._process.stdout.read, daemon=True).start()
                return
        self._process.wait()
        self._file.unlink()
        raise MonitoringError(
            f"py-spy cannot look at process {os.getpid()}: {output.strip()}. It has to be allowed "
            "to trace processes: in a container add the capability SYS_PTRACE"
        )

    def _stop(self) -> dict[str, StackProfile]:
        seconds = time.monotonic() - self._started_at
        self._ended.set()
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _logger.error("py-spy does not end; what it saw of process %d is lost", os.getpid())
        try:
            return _by_thread(self._file.read_text("utf-8"), seconds, self._names)
        finally:
            self._file.unlink()


@contextmanager
def _sigint_unblocked() -> Iterator[None]:
    """A child started in this block receives SIGINT, even if this process blocks it."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _allow_tracing_by(pid: int) -> None:
    """Allow another process to trace this one where Yama allows only parents to."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0)


def _by_thread(raw: str, duration: float, names: Mapping[int, str]) -> dict[str, StackProfile]:
    """Stacks by thread, from py-spy's raw format: ``thread;frame;frame samples``."""
    threads: defaultdict[str, Counter[Stack]] = defaultdict(Counter)
    for line in raw.splitlines():
        stack, _, samples = line.rpartition(" ")
        thread, *frames = stack.split(";")
        told = _THREAD.fullmatch(thread)
        name = told and names.get(int(told[1], 0), told[2])
        if name and frames:
            threads[name][tuple(map(_frame, frames))] += int(samples)
    # the thread seen most often was there for the whole duration; on a busy machine samples are
    # taken less often than asked for
    most = max((sum(stacks.values()) for stacks in threads.values()), default=1)
    return {
        thread: StackProfile(
            {stack: count * duration / most for stack, count in stacks.items()}
        ).without_common_callers()
        for thread, stacks in threads.items()
    }


def _frame(text: str) -> Frame:
    parts = _FRAME.fullmatch(text)
    return Frame(text, "") if parts is None else Frame(parts[1], parts[2])
