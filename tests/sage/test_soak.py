"""Random SIGKILLs and SIGSTOPs: see :mod:`bench.soak`.

The long form (``--long``) kills ten thousand times and stops two thousand times.
"""

from __future__ import annotations

import pytest

from bench.soak import MODES, soak


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", MODES)
def test_whoever_is_killed_every_message_is_accounted_for(mode: str, long: bool) -> None:
    report = soak(2500 if long else 75, 250 if long else 10, mode, seed=3)
    assert report.correct, str(report)
    assert report.committed > 0
    assert report.redelivered > 0 or report.kills < 1000


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", MODES)
def test_whoever_is_stopped_keeps_what_it_holds(mode: str, long: bool) -> None:
    report = soak(0, 250 if long else 15, mode, seed=3)
    assert report.correct, str(report)
    assert report.committed > 0
    assert report.redelivered == 0, str(report)
