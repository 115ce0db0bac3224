"""RayTask: a task hosted by a Ray actor, on any node of the cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import psutil
import ray
from ray.util.client import ray as client_of_ray

from sageruntime.core.import_path import pickled_by_value
from sageruntime.host.host import Host
from sageruntime.host.ray_host import RayHost
from sageruntime.task.base_task import BaseTask


class RayTask(BaseTask):
    """A task hosted by an actor; see :class:`~sageruntime.task.base_task.BaseTask`.

    One with a queue of shared memory before or behind it stays on this machine; so a job makes
    them where the cluster is no more than this machine. ``queue_scope="machine"`` asks for one.

    Args:
        lifetime: ``"detached"`` makes an actor that outlives the driver, until :meth:`cleanup`.
        resources: what the actor occupies, such as ``{"CPU": 1}``; by default nothing, so that a
            job always finds room.
        memory: bytes of memory the actor occupies.
        options: as of :class:`~sageruntime.task.base_task.BaseTask`.
    """

    host = "ray"
    default_scope = "cluster"
    is_in_this_process = False

    def __init__(
        self,
        *args: Any,
        lifetime: str | None = None,
        resources: dict[str, float] | None = None,
        memory: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        rest = dict(resources or {})
        self._actor_options: dict[str, Any] = {
            "name": self.name if lifetime == "detached" else None,
            "lifetime": lifetime,
            "num_cpus": rest.pop("CPU", 0),
            "num_gpus": rest.pop("GPU", 0),
            "resources": rest,
            "memory": memory,
            "max_concurrency": 4,
        }

    def _make_host(self) -> Host:
        with pickled_by_value():
            data = self._make_blueprint().dumps()
        return RayHost(
            self.name,
            data,
            self._actor_options,
            self._shares_memory(),
            self._loop,
            self._control.receive,
        )

    def _shares_memory(self) -> bool:
        connected = [connection.queue for connection in self.router.connections]
        queues = [self.input_buffer, self.dead_letters, *connected]
        return any(queue is not None and queue.backend == "sage" for queue in queues)


def is_one_machine(asked: Mapping[str, Any]) -> bool:
    """Whether the cluster is no more than this machine, and has what actors will ask for.

    Then they can be here, and need not be elsewhere. A cluster that may grow for what this
    machine does not have is taken as one of several.

    Args:
        asked: ``resources`` and ``memory`` as of :class:`RayTask`.
    """
    all_nodes: Any = ray.nodes
    by_proxy: Any = client_of_ray.is_connected
    nodes = [node for node in all_nodes() if node["Alive"]]
    if len(nodes) != 1 or by_proxy() or not _is_ours_here("raylet"):
        return False
    there = nodes[0]["Resources"]
    wanted = {**(asked.get("resources") or {}), "memory": asked.get("memory") or 0}
    return all(there.get(name, 0) >= amount for name, amount in wanted.items())


def _is_ours_here(name: str) -> bool:
    """Whether a process of this name runs in this pid namespace, for this user."""
    user = os.getuid()
    return any(
        process.info["name"] == name and process.info["uids"].real == user
        for process in psutil.process_iter(["name", "uids"])
    )


def connect() -> bool:
    """Join the cluster of ``RAY_ADDRESS``, or start a local one, unless that has been done.

    Returns:
        Whether it had to be done, so that :func:`disconnect` is up to the caller.
    """
    if ray.is_initialized():
        return False
    # not just any cluster of this machine that Ray has heard of
    address = os.environ.get("RAY_ADDRESS", "local")
    ray.init(address, include_dashboard=False, logging_level=logging.WARNING)
    return True


def disconnect() -> None:
    """Leave the cluster; a local one ends."""
    ray.shutdown()
