"""Plugins: those of one task, in one process."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pluggy

from sageruntime.communication.router import Packet
from sageruntime.errors import PluginError
from sageruntime.operator.results import Results, iterate_results
from sageruntime.plugins.hooks import TaskHooks

if TYPE_CHECKING:
    from sageruntime.context import TaskContext
    from sageruntime.core.task_view import TaskView
    from sageruntime.metrics import MetricsSnapshot
    from sageruntime.operator import BaseOperator

_HOOKS = [name for name in vars(TaskHooks) if not name.startswith("_")]
_MONITORING = ("on_error", "on_state_change", "on_metrics")


class Plugins:
    """Calls the hooks of a task's plugins.

    Args:
        plugins: each with its name, in the order in which they are called. A class is called to
            make a plugin.
        logger: where errors of monitoring hooks go.

    Raises:
        PluginError: one implements no hook, an unknown one, or one with unknown arguments.
    """

    def __init__(self, plugins: Iterable[tuple[str, Any]], logger: logging.Logger) -> None:
        self._logger = logger
        self._manager = pluggy.PluginManager("sageruntime")
        self._manager.add_hookspecs(TaskHooks)
        # pluggy calls first what was registered last
        for name, plugin in reversed(list(plugins)):
            self._register(name, plugin() if isinstance(plugin, type) else plugin)
        self._monitors = {hook: self._find_callers(hook) for hook in _MONITORING}

    def implement(self, hook: str) -> bool:
        """Whether any of them implements a hook."""
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        return bool(caller.get_hookimpls())

    def around(
        self, process: Callable[[Packet], Any], operator: BaseOperator
    ) -> Callable[[Packet], Any]:
        """``process`` with the hooks before and after it; a coroutine function if it is one."""
        if not self._implement_processing():
            return process

        async def plugged_later(packet: Packet) -> list[Packet]:
            packets, given = self._before([packet], operator)
            results: list[Packet] = []
            for one in packets:
                results += iterate_results(await process(one), operator)
            return self.after(given, results, operator) if packets else []

        def plugged(packet: Packet) -> list[Packet]:
            packets, given = self._before([packet], operator)
            results: list[Packet] = []
            for one in packets:
                results += iterate_results(process(one), operator)
            return self.after(given, results, operator) if packets else []

        return plugged_later if inspect.iscoroutinefunction(operator.process) else plugged

    def around_batch(
        self, process_batch: Callable[[list[Packet]], Results], operator: BaseOperator
    ) -> Callable[[list[Packet]], Results]:
        """``process_batch`` with the hooks before and after it."""
        if not self._implement_processing():
            return process_batch

        def plugged(batch: list[Packet]) -> list[Packet]:
            packets, given = self._before(batch, operator)
            if not packets:
                return []
            return self.after(
                given, list(iterate_results(process_batch(packets), operator)), operator
            )

        return plugged

    def after(
        self, packets: list[Packet], results: list[Packet], operator: BaseOperator
    ) -> list[Packet]:
        """The results as the hook leaves them."""
        self._manager.hook.after_process(ctx=operator.ctx, packets=packets, results=results)
        return results

    def on_state_change(self, task: TaskView) -> None:
        """Call the hooks for a change of a task's state."""
        self._call("on_state_change", task=task)

    def on_metrics(self, snapshot: MetricsSnapshot) -> None:
        """Call the hooks for a measurement of a task."""
        self._call("on_metrics", snapshot=snapshot)

    def on_error(self, ctx: TaskContext, packet: Packet | None, error: Exception) -> None:
        """Call the hooks for an error."""
        self._call("on_error", ctx=ctx, packet=packet, error=error)

    def _implement_processing(self) -> bool:
        return self.implement("before_process") or self.implement("after_process")

    def _before(
        self, packets: list[Packet], operator: BaseOperator
    ) -> tuple[list[Packet], list[Packet]]:
        """The packets for the operator, and a copy of them for the hook after it."""
        packets = [packet.copy() for packet in packets]
        self._manager.hook.before_process(ctx=operator.ctx, packets=packets)
        return packets, [packet.copy() for packet in packets]

    def _call(self, hook: str, **arguments: Any) -> None:
        for name, caller in list(self._monitors[hook].items()):
            try:
                caller(**arguments)
            except Exception:
                self._monitors[hook].pop(name, None)
                self._logger.exception("%s of plugin %s failed and is not called again", hook, name)

    def _register(self, name: str, plugin: Any) -> None:
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"plugin {name}: {error}") from error
        if not self._manager.get_hookcallers(plugin):
            raise PluginError(
                f"plugin {name} implements no hook; mark its methods with @hookimpl. There are "
                f"{', '.join(_HOOKS)}"
            )

    def _find_callers(self, hook: str) -> dict[str, pluggy.HookCaller]:
        """A caller of this hook for each plugin that implements it, by plugin name."""
        plugins = self._manager.list_name_plugin()
        callers = {}
        for name, plugin in plugins:
            others = [other for _, other in plugins if other is not plugin]
            caller = self._manager.subset_hook_caller(hook, others)
            if caller.get_hookimpls():
                callers[name] = caller
        return callers
