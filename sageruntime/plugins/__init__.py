"""Plugins: what is done before, after and beside a task's own work, by others than its operator."""

from sageruntime.plugins.hooks import TaskHooks, hookimpl

__all__ = ["TaskHooks", "hookimpl"]
