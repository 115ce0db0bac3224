"""``sagert queues``, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from sagequeue import SageQueue


def sagert(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sageruntime", "queues", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200"},
    )


@pytest.fixture
def stale() -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:12]}"
    pid = os.fork()
    if pid == 0:
        queue = SageQueue[int](name=name)
        queue.put(1)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    yield name
    sagert("rm", name, "--force")


def test_ls_and_prune(stale: str) -> None:
    with SageQueue[int]() as live:
        listed = {info["name"]: info for info in json.loads(sagert("ls", "--json").stdout)}
        assert listed[stale]["state"] == "stale"
        assert listed[live.name]["pids"] == [os.getpid()]
        table = sagert("ls").stdout
        assert stale in table
        assert live.name in table
        assert f"removed {stale}" in sagert("prune").stdout
        left = [info["name"] for info in json.loads(sagert("ls", "--json").stdout)]
        assert live.name in left
        assert stale not in left


def test_inspect(stale: str) -> None:
    info = json.loads(sagert("inspect", stale, "--json").stdout)
    assert (info["waiting"], info["mode"], info["codec"]) == (1, "mpmc", "pickle")
    assert "stale" in sagert("inspect", stale).stdout


def test_rm_refuses_what_is_in_use() -> None:
    with SageQueue[int]() as live:
        refused = sagert("rm", live.name)
        assert refused.returncode == 2
        assert "in use" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert sagert("rm", live.name, "--force").returncode == 0
        assert live.is_shutdown


@pytest.mark.parametrize("name", ["no-such-queue", "../passwd"])
def test_a_wrong_name_is_told(name: str) -> None:
    for command in ("inspect", "rm"):
        done = sagert(command, name)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
