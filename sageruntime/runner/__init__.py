"""The runner: the one thread that owns a task's operator, inbox, router and metrics."""
