"""The limits of this process and its user: ``ulimit``."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from sageruntime.doctor.check import Check, failed, ok, warning

# A job of a few stages, and one of many.
_LEAST_DESCRIPTORS = 64
_GOOD_DESCRIPTORS = 1024
_LEAST_PROCESSES = 16
_GOOD_PROCESSES = 256


def file_descriptors(least: int = _LEAST_DESCRIPTORS) -> Check:
    """Files this process may still open: each queue is one, each process some more."""
    name = "open files"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return ok(name, "no limit")
    free = soft - len(os.listdir("/proc/self/fd"))
    found = f"{free:,} of {soft:,} free"
    remedy = f"ulimit -n {max(4096, soft, least * 2)}"
    if hard not in (resource.RLIM_INFINITY, soft):
        remedy += f" (this user may go up to {hard:,})"
    remedy += ", LimitNOFILE= of the systemd unit, or docker run --ulimit nofile="
    if free < least:
        return failed(name, f"{found}, {least:,} are needed", remedy)
    if free < _GOOD_DESCRIPTORS:
        return warning(name, found, remedy)
    return ok(name, found)


def processes() -> Check:
    """Processes and threads this user may still start."""
    name = "processes"
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft == resource.RLIM_INFINITY or os.getuid() == 0:
        return ok(name, "no limit")
    free = soft - sum(_list_threads(os.getuid()))
    found = f"{free:,} of {soft:,} free, threads included"
    remedy = f"ulimit -u {max(4096, soft * 2)}, or LimitNPROC= of the systemd unit"
    if free < _LEAST_PROCESSES:
        return failed(name, found, remedy)
    if free < _GOOD_PROCESSES:
        return warning(name, found, remedy)
    return ok(name, found)


def _list_threads(user: int) -> Iterator[int]:
    """How many threads each process of a user has."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and entry.stat().st_uid == user:
                yield len(os.listdir(entry / "task"))
        except OSError:
            continue  # it has just ended
