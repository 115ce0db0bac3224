"""``create_queue``: the right queue for where the other end lives.

============  ==========================================  =====================  ================
scope         who can hold the other end                  backend                falls back to
============  ==========================================  =====================  ================
``thread``    threads of this process                     ``object``             ``local``
``machine``   processes of this machine                   ``sage``               ``ray``, ``local``
``cluster``   tasks and actors of this Ray cluster        ``ray``                ``sage``, ``local``
``auto``      ``cluster`` when this process is part of a Ray cluster of several nodes, else
              ``machine``, which serves threads too
============  ==========================================  =====================  ================

A fallback is taken only when a backend cannot work here at all; it is logged once and shows in
``queue.backend``. A backend asked for by name never falls back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

from sagequeue.errors import BackendUnavailable, InvalidOption
from sagequeue.local_queue import LocalQueue
from sagequeue.ray_queue import RayQueue

if TYPE_CHECKING:
    from sagequeue.protocol import Queue

Scope = Literal["auto", "thread", "machine", "cluster"]
Backend = Literal["auto", "sage", "object", "ray", "local"]

CANDIDATES: dict[str, tuple[str, ...]] = {
    "thread": ("object", "local"),
    "machine": ("sage", "ray", "local"),
    "cluster": ("ray", "sage", "local"),
}

SAGE_OPTIONS = (
    "mode",
    "capacity",
    "slot_size",
    "pool_bytes",
    "codec",
    "max_participants",
    "recovery_interval",
)

_logger = logging.getLogger("sagequeue")
_fallbacks_told: set[tuple[str, str]] = set()


def create_queue(
    name: str | None = None,
    maxsize: int = 0,
    *,
    scope: Scope = "auto",
    backend: Backend = "auto",
    **options: Any,
) -> Queue[Any]:
    """A queue that reaches as far as ``scope`` says, by the fastest backend that works here.

    Args:
        name: the queue's name, under which others can find it (``sage`` and ``ray``); made up
            when not given.
        maxsize: most items waiting; 0 means no limit of its own.
        scope: where the other end lives: see the table of this module.
        backend: insist on one backend instead.
        **options: options of :class:`~sagequeue.queue.SageQueue`; other backends need none and
            do without them.

    Raises:
        InvalidOption: an unknown scope, backend or option, or one out of range.
        BackendUnavailable: the backend asked for by name cannot work here.
    """
    _check_choice("scope", scope, get_args(Scope))
    _check_choice("backend", backend, get_args(Backend))
    for option in options:
        _check_choice("option", option, SAGE_OPTIONS)
    if backend != "auto":
        return _BACKENDS[backend](name, maxsize, options)
    reach = _auto_scope() if scope == "auto" else scope
    wanted, *others = CANDIDATES[reach]
    try:
        return _BACKENDS[wanted](name, maxsize, options)
    except BackendUnavailable as error:
        reason = error
    for other in others:
        try:
            queue = _BACKENDS[other](name, maxsize, options)
        except BackendUnavailable:
            continue
        if (wanted, other) not in _fallbacks_told:
            _fallbacks_told.add((wanted, other))
            _logger.warning(
                "scope %r: backend %r is not available, using %r instead: %s",
                reach, wanted, other, reason,
            )  # fmt: skip
        return queue
    raise reason


def _check_choice(kind: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidOption(f"unknown {kind} {value!r}; expected one of: {', '.join(allowed)}")


def _auto_scope() -> str:
    import sys

    ray = sys.modules.get("ray")  # not imported: then this process is in no cluster
    if ray is not None and ray.is_initialized():
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if len(nodes) > 1:
            return "cluster"
    return "machine"


def _sage(name: str | None, maxsize: int, options: dict[str, Any]) -> Queue[Any]:
    try:
        from sagequeue.queue import SageQueue
    except ImportError as error:
        raise BackendUnavailable(
            f"backend 'sage' needs the compiled extension: {error}; install a wheel, or build it "
            "with a C compiler on 64-bit Linux"
        ) from error
    import os

    if not os.access("/dev/shm", os.R_OK | os.W_OK | os.X_OK):
        raise BackendUnavailable(
            "backend 'sage' needs a writable /dev/shm; mount a tmpfs there (in a container: "
            "--shm-size)"
        )
    return SageQueue(maxsize, name=name, **options)


def _object(name: str | None, maxsize: int, options: dict[str, Any]) -> Queue[Any]:
    try:
        from sagequeue._object import ObjectQueue
    except ImportError as error:
        raise BackendUnavailable(
            f"backend 'object' needs the compiled extension: {error}"
        ) from error
    return ObjectQueue(maxsize, name=name)


def _ray(name: str | None, maxsize: int, options: dict[str, Any]) -> Queue[Any]:
    return RayQueue(maxsize, name=name)


def _local(name: str | None, maxsize: int, options: dict[str, Any]) -> Queue[Any]:
    return LocalQueue(maxsize, name=name)


_BACKENDS: dict[str, Callable[[str | None, int, dict[str, Any]], Queue[Any]]] = {
    "sage": _sage,
    "object": _object,
    "ray": _ray,
    "local": _local,
}
