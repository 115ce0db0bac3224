"""The fork server that the processes of hosts come from: one that has imported the runtime.

It is multiprocessing's own, which other code of the process may use, too. What stands in the way of
hosts is put right here.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, process, resource_tracker
from multiprocessing.context import ForkServerProcess

_PRELOADED = ["__main__", "sageruntime.host.process_host"]

_SAFE_PATH = "PYTHONSAFEPATH"
_OUR_VALUE = "of-sageruntime"

# Held to start a process and to take the exit code of one: to start one, multiprocessing asks for
# the codes of all, and a code can be read only once.
_exit_codes = threading.Lock()


def start(host: ForkServerProcess) -> None:
    """Start a process, with Ctrl-C blocked: that is for its parent to handle."""
    with _exit_codes:
        resource_tracker.ensure_running()  # its start unblocks SIGINT
        with _sigint_blocked():
            forkserver.set_forkserver_preload(_PRELOADED)
            with _working_directory_not_in_path():
                forkserver.ensure_running()
            with _may_have_children():
                host.start()


def take_exit_code(host: ForkServerProcess) -> int | None:
    """Wait until a process has exited, give back its descriptors, and return its exit code."""
    with _exit_codes:
        host.join()
        code = host.exitcode
        host.close()
    return code


def let_have_children() -> None:
    """Let this process, which ends with its parent, start processes all the same."""
    _config()["daemon"] = False


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _working_directory_not_in_path() -> Iterator[None]:
    """A server started within imports what its parent would, as far as ``PYTHONPATH`` says it.

    It is started as ``python -c``, which looks into the working directory first: a folder there
    that bears a package's name would be taken for it. (Python 3.10 has no way to prevent that.)
    """
    if _SAFE_PATH in os.environ:
        yield
        return
    os.environ[_SAFE_PATH] = _OUR_VALUE
    try:
        yield
    finally:
        del os.environ[_SAFE_PATH]


@contextmanager
def _may_have_children() -> Iterator[None]:
    """A daemonic process, as a worker of a Pool is, may start hosts: they end with their driver."""
    config = _config()
    before = config.pop("daemon", None)
    try:
        yield
    finally:
        if before is not None:
            config["daemon"] = before


def _config() -> dict[str, object]:
    config: dict[str, object] = process.current_process()._config  # type: ignore[attr-defined]
    return config


def _begin_without() -> None:
    """A forked child has no fork server: it cannot wait for that of its parent, nor restart it."""
    global _exit_codes
    _exit_codes = threading.Lock()
    forkserver._forkserver.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_begin_without)

if os.environ.get(_SAFE_PATH) == _OUR_VALUE:  # this is the fork server
    del os.environ[_SAFE_PATH]
