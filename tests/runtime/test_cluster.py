"""Several nodes: a cluster of its own, so it has a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(300)
def test_a_node_is_taken_away_and_the_job_goes_on_elsewhere() -> None:
    script = Path(__file__).with_name("cluster_job.py")
    job = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=280, check=False
    )
    assert "nothing is missing" in job.stdout, job.stderr[-3000:]
    assert job.returncode == 0
