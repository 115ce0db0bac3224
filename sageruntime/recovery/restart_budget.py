"""RestartBudget: whether, and after how long, something may be started again."""

from __future__ import annotations

import time

from sageruntime.core.policies import RestartPolicy


class RestartBudget:
    """Counts restarts against a policy."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._restarts: list[float] = []

    def next_delay(self) -> float | None:
        """Seconds to wait before a restart that is due now; None when there have been too many."""
        policy, now = self._policy, time.monotonic()
        self._restarts = [at for at in self._restarts if now - at <= policy.window]
        earlier = len(self._restarts)
        if earlier >= policy.max_restarts:
            return None
        self._restarts.append(now)
        return policy.delay(earlier + 1)
