"""Running a piece of a test in a child, so that a crash or a hang is a failure like any other."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable

from sagequeue import _shared


def in_child(work: Callable[[], object], seconds: int = 60) -> None:
    """Run it in a forked child; fails when it raises, crashes or takes too long."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            gc.freeze()  # collections are of what it makes
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            _shared._close_all()  # type: ignore[attr-defined]
            sys.stderr.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
