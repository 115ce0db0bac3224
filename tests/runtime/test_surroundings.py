"""Hosts have what their driver has; operators and drivers may be anywhere and start processes."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from waiting import until

from sageruntime import Pipeline
from sageruntime.recovery.sqlite_store import SqliteCheckpointStore

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def in_host(function: Any) -> Any:
    """What a function of a number returns in a process of its own."""
    return Pipeline("place").source([1]).map(function, on="process").sink().run().sink_result[0]


def test_a_host_has_the_environment_of_its_own_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_SECRET", "of the first job")
    assert in_host(lambda _: os.environ.get("SAGE_SECRET")) == "of the first job"
    monkeypatch.delenv("SAGE_SECRET")
    monkeypatch.setenv("SAGE_LATER", "of the second")
    assert in_host(lambda _: os.environ.get("SAGE_SECRET")) is None
    assert in_host(lambda _: dict(os.environ)) == dict(os.environ)


def test_a_host_has_the_umask_and_the_limits_of_its_driver() -> None:
    in_host(str)  # the fork server has others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    umask = os.umask(0o27)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
        assert in_host(lambda _: resource.getrlimit(resource.RLIMIT_NOFILE)) == (soft - 1, hard)
        assert in_host(lambda _: os.umask(0)) == 0o27
    finally:
        os.umask(umask)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def double(number: int) -> int:
    return number * 2


def in_pool(number: int) -> list[int]:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(int, ["0", "2", "4", "6"][: number + 3])


def nested(number: int) -> list[int]:
    return Pipeline("nested").source(range(4)).map(double, on="process").sink().run().sink_result


@pytest.mark.parametrize("work", [in_pool, nested])
def test_an_operator_may_start_processes(work: Any, host: Any) -> None:
    pipeline = Pipeline("outer").source([1]).map(work, on=host).sink()
    assert pipeline.run().sink_result == [[0, 2, 4, 6]]


def test_a_job_in_a_worker_of_a_pool() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(nested, (1,)).get(30) == [0, 2, 4, 6]


def test_a_job_in_a_forked_child_of_a_process_that_has_run_one() -> None:
    assert nested(1) == [0, 2, 4, 6]
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        os._exit(0 if nested(1) == [0, 2, 4, 6] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert nested(1) == [0, 2, 4, 6]


def test_a_job_in_a_thread() -> None:
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(nested, range(2))) == [[0, 2, 4, 6]] * 2


def run_script(folder: Path, text: str, **options: Any) -> subprocess.CompletedProcess[str]:
    script = folder / "job.py"
    script.write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python always looks there first")
def test_a_folder_of_a_packages_name_in_the_working_directory(tmp_path: Path) -> None:
    scripts, work = tmp_path / "scripts", tmp_path / "work"
    for folder in (scripts, work / "sagequeue", work / "msgspec"):
        folder.mkdir(parents=True)
    (work / "sagequeue" / "__init__.py").write_text("raise ImportError('the wrong one')")
    (work / "msgspec" / "__init__.py").write_text("raise ImportError('the wrong one')")
    run = run_script(
        scripts,
        """
        import os
        from sageruntime import Pipeline

        if __name__ == "__main__":
            pipeline = Pipeline("path").source([1])
            pipeline.map(lambda _: os.environ.get("PYTHONSAFEPATH"), on="process")
            print(pipeline.sink().run().sink_result)
        """,
        cwd=work,
    )
    assert (run.stdout, run.returncode) == ("[None]\n", 0), run.stderr


def test_the_first_host_keeps_ctrl_c_blocked_too(tmp_path: Path) -> None:
    run = run_script(
        tmp_path,
        """
        import signal
        from sageruntime import Pipeline

        def is_blocked(_):
            return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])

        if __name__ == "__main__":
            pipeline = Pipeline("first").source([1]).map(is_blocked, on="process")
            print(pipeline.sink().run().sink_result)
        """,
    )
    assert (run.stdout, run.returncode) == ("[True]\n", 0), run.stderr


def heed_ctrl_c() -> None:
    """A shell may have started us with SIGINT ignored, which children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_of_a_terminal_drains_where_the_script_wants_it(tmp_path: Path) -> None:
    """The signal goes to the whole process group; hosts leave it to their driver."""
    script = tmp_path / "graceful.py"
    script.write_text(
        textwrap.dedent("""
        import time
        from sageruntime import Pipeline

        def numbers():
            number = 0
            while True:
                yield number
                number += 1
                time.sleep(0.001)

        if __name__ == "__main__":
            job = Pipeline("drained").source(numbers).map(str, on="process").sink().start()
            try:
                while job.progress()[2].packets < 10:
                    time.sleep(0.01)
                print("runs", flush=True)
                job.wait()
            except KeyboardInterrupt:
                job.stop()
            result = job.result()
            print(result.stages[0].packets == result.stages[2].packets)
    """)
    )
    job = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    killer = threading.Timer(60, job.kill)
    killer.start()
    assert job.stdout is not None
    assert job.stdout.readline() == "runs\n"
    os.killpg(job.pid, signal.SIGINT)
    out, err = job.communicate()
    killer.cancel()
    assert (out, err, job.returncode) == ("True\n", "", 0)


def test_a_job_may_be_closed_when_the_interpreter_ends(tmp_path: Path) -> None:
    run = run_script(
        tmp_path,
        """
        import atexit, itertools
        from sageruntime import Pipeline

        if __name__ == "__main__":
            job = Pipeline("at-exit").source(itertools.count).map(str, on="process").sink().start()
            while not job.progress()[2].packets:
                pass
            atexit.register(job.close)
            print("ends", flush=True)
        """,
    )
    assert (run.stdout, run.stderr, run.returncode) == ("ends\n", "", 0)


@pytest.mark.parametrize("has_checkpoints", [True, False])
def test_an_interrupted_run_says_what_was_kept(has_checkpoints: bool, tmp_path: Path) -> None:
    (tmp_path / "slowly.py").write_text(
        "import time\n"
        "def numbers():\n    yield from range(100000)\n"
        "def wait(item):\n    time.sleep(0.01)\n    open('works', 'w').close()\n"
    )
    (tmp_path / "job.yaml").write_text(
        "name: interrupted\n"
        "stages:\n  - source: slowly:numbers\n  - sink: slowly:wait\n"
        "task:\n  local: {queue_maxsize: 5}\nperformance: {batch_size: 1}\n"
        + ("checkpoint: {store: c.db, interval: 50ms}\n" if has_checkpoints else "")
    )
    job = subprocess.Popen(
        [Path(sys.executable).parent / "sagert", "run", "job.yaml"], cwd=tmp_path,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    store = SqliteCheckpointStore(tmp_path / "c.db")
    ready = partial(store.latest, "interrupted") if has_checkpoints else (tmp_path / "works").exists
    assert until(ready)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=60)
    kept = "the next run goes on from checkpoint" if has_checkpoints else "nothing was kept"
    assert f"interrupted: {kept}" in err
    assert job.returncode == 130
