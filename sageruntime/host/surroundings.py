"""Surroundings: what a process has from its parent beside its memory."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import NamedTuple

_LIMITS = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]


class Surroundings(NamedTuple):
    """The environment, the umask and the limits of a process.

    A host comes from a fork server, which has those of the first start. It gets those of its own.

    Attributes:
        environ: the environment variables.
        umask: permissions that new files do not get.
        limits: soft and hard, by ``resource.RLIMIT_*``.
    """

    environ: dict[str, str]
    umask: int
    limits: dict[int, tuple[int, int]]

    @classmethod
    def here(cls) -> Surroundings:
        """Those of this process."""
        status = Path("/proc/self/status").read_text()
        umask = next(line for line in status.splitlines() if line.startswith("Umask:"))
        limits = {limit: resource.getrlimit(limit) for limit in _LIMITS}
        return cls(dict(os.environ), int(umask.split()[1], 8), limits)

    def adopt(self) -> None:
        """Give them to this process."""
        for name in os.environ.keys() - self.environ.keys():
            del os.environ[name]
        os.environ.update(self.environ)
        os.umask(self.umask)
        for limit, (soft, hard) in self.limits.items():
            if resource.getrlimit(limit) != (soft, hard):
                resource.setrlimit(limit, (soft, hard))
