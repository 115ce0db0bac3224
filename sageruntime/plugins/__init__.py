"""Plugins: hooks before and after a task's operator, and on its errors, states and metrics."""

from sageruntime.plugins.hooks import TaskHooks, hookimpl

__all__ = ["TaskHooks", "hookimpl"]
