"""What a profile of a job leaves in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sageruntime.metrics import JobMetrics
from sageruntime.profiling.flame_graph import flame_graph
from sageruntime.profiling.stack_profile import StackProfile
from sageruntime.profiling.time_table import time_report


def write_report(folder: Path, metrics: JobMetrics, profiles: Mapping[str, StackProfile]) -> None:
    """Write ``<stage>.html``, a flame graph, for each profile, and ``times.json``.

    Raises:
        OSError: the folder cannot be written.
    """
    for stage, profile in profiles.items():
        page = flame_graph(f"{metrics.job}: {stage}", profile)
        (folder / f"{stage}.html").write_text(page, "utf-8")
    times = json.dumps(time_report(metrics), indent=1)
    (folder / "times.json").write_text(times + "\n", "utf-8")
