"""Check: one thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Outcome(str, Enum):
    """What a check came to."""

    OK = "ok"
    WARNING = "warning"
    """Something works less well, or not for every host."""
    FAILED = "failed"
    """Tasks that need it cannot run."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        outcome: how it is.
        found: what was there.
        remedy: what to do; empty if nothing has to be done.
    """

    name: str
    outcome: Outcome
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> Check:
    """Nothing has to be done."""
    return Check(name, Outcome.OK, found)


def warning(name: str, found: str, remedy: str) -> Check:
    """It works, but not always, or not well."""
    return Check(name, Outcome.WARNING, found, remedy)


def failed(name: str, found: str, remedy: str) -> Check:
    """It does not work."""
    return Check(name, Outcome.FAILED, found, remedy)
