"""Scope: how far away the other end of a queue may be."""

from __future__ import annotations

from typing import Literal

Scope = Literal["auto", "thread", "machine", "cluster"]
"""As of :func:`sagequeue.create_queue`."""
