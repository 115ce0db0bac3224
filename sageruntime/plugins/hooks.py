"""The hooks: what a plugin may implement, each marked ``@hookimpl``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from sageruntime.communication.router import Packet
    from sageruntime.context import TaskContext
    from sageruntime.core.task_view import TaskView
    from sageruntime.metrics import MetricsSnapshot

hookspec = pluggy.HookspecMarker("sageruntime")
hookimpl = pluggy.HookimplMarker("sageruntime")


class TaskHooks:
    """A plugin implements any of these, with those of the arguments that it needs.

    The first two are called in the task's host, by the thread that calls the operator, with what
    one call of the operator is about: one packet, or a batch for a
    :class:`~sageruntime.operator.BatchOperator`. An error goes to the task's error policy as the
    operator's own would. Sources have no input: neither is called for them.

    An error in one of the others is logged, and the hook of that plugin is not called again.
    """

    @hookspec
    def before_process(self, ctx: TaskContext, packets: list[Packet]) -> None:
        """Change packets before the operator gets them: in place, or take some out, or add some.

        They are copies: a packet that is tried again, or becomes a dead letter, is as it came.
        """

    @hookspec
    def after_process(self, ctx: TaskContext, packets: list[Packet], results: list[Packet]) -> None:
        """Change the results before they are sent: in place, or take some out, or add some.

        ``packets`` are those that the operator was given; there are none for the results of
        ``finish``.
        """

    @hookspec
    def on_error(self, ctx: TaskContext, packet: Packet | None, error: Exception) -> None:
        """A packet has failed for good, and the error policy is about to be applied.

        Called in the task's host. It gets None for a packet that cannot be decoded.
        """

    @hookspec
    def on_state_change(self, task: TaskView) -> None:
        """A task has changed its state; called in the process that made the task."""

    @hookspec
    def on_metrics(self, snapshot: MetricsSnapshot) -> None:
        """A task has been measured, as it is every ``monitoring_interval`` and at its end.

        Called in the process that made the task.
        """
