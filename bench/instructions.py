"""Instructions that parts of a program take, counted by valgrind.

Where others use the machine, and no counters of the processor can be had, seconds tell too little.
Instructions of all threads of one process are counted, those of other processes and of the kernel
are not. A program under valgrind is some fifty times as slow and has one thread running at a time.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_SOURCE = Path(__file__).parent / "core/callgrind.c"
_LIBRARY = "BENCH_CALLGRIND_LIBRARY"


class Counted:
    """A part of this program that is counted: ``with Counted(): ...``, under :func:`count`."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ[_LIBRARY])

    def __enter__(self) -> None:
        self._library.begin_counting()

    def __exit__(self, *raised: object) -> None:
        self._library.end_counting()


def count(command: Sequence[str], **environment: str) -> list[int]:
    """Run Python with these arguments and return the instructions of each part it counts.

    Raises:
        RuntimeError: there is no valgrind.
        subprocess.CalledProcessError: the program has failed.
    """
    if shutil.which("valgrind") is None:
        raise RuntimeError("valgrind counts the instructions; install it (apt install valgrind)")
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/callgrind.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", str(_SOURCE), "-o", library], check=True)
        valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--quiet",
                    f"--callgrind-out-file={folder}/out"]  # fmt: skip
        subprocess.run(
            [*valgrind, sys.executable, *command],
            env={**os.environ, **environment, _LIBRARY: library}, stdout=sys.stderr, check=True,
        )  # fmt: skip
        dumps = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        return [_total(path.read_text()) for path in dumps]


def _total(dump: str) -> int:
    totals = re.search(r"^totals: (\d+)", dump, re.MULTILINE)  # the summary is of one thread
    assert totals is not None
    return int(totals[1])
