"""A plugin of pytest for instrumented builds, which leaves out the tests that are of no use there.

    python -m pytest -p tests.instrumented tests/sage tests/queue

What it leaves out, and why, stands at the head of the run. `make asan` uses it.
"""

from __future__ import annotations

import os

import pytest

RAY = "needs Ray, which is not installed here: instrumented, its own processes would be slow"
TIME = "measures time, of which an instrumented build needs several times as much"
QUARANTINE = (
    "measures that freed memory is used again, which AddressSanitizer puts off to find faults"
)
TRACES = "counts with tracemalloc, by which numpy alone grows where no address is used again"

BY_NAME = {
    "test_ray_must_have_been_started": RAY,
    "test_a_death_is_settled_within_the_recovery_interval": TIME,
    "test_a_read_in_place_costs_no_copy": TIME,
}
if os.environ.get("PYTHONMALLOC") == "malloc":  # under AddressSanitizer
    BY_NAME["test_no_more_is_kept_than_a_batch_needs"] = QUARANTINE
    BY_NAME["test_nothing_is_left_behind"] = TRACES

left_out: dict[str, list[str]] = {}


def reason_to_leave_out(test: pytest.Item) -> str | None:
    """Why this test does not run here; None: it does."""
    assert isinstance(test, pytest.Function)
    parameters = test.callspec.params.values() if hasattr(test, "callspec") else ()
    if "ray_cluster" in test.fixturenames or "ray" in parameters:
        return RAY
    return BY_NAME.get(test.originalname)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept: list[pytest.Item] = []
    for test in items:
        reason = reason_to_leave_out(test)
        if reason is None:
            kept.append(test)
        else:
            left_out.setdefault(reason, []).append(test.nodeid)
    config.hook.pytest_deselected(items=[test for test in items if test not in kept])
    items[:] = kept


def pytest_report_collectionfinish() -> list[str]:
    return [
        f"left out: {', '.join(dict.fromkeys(test.partition('[')[0] for test in tests))}: {reason}"
        for reason, tests in left_out.items()
    ]
