"""Hosts: what runs a task's runner, and carries commands to it and events from it."""
