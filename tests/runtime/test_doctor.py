"""``sagert doctor``: each check under the conditions it is for."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from sageruntime.doctor import Outcome, examine, machine, require
from sageruntime.doctor.examination import ALL

DOCTOR = [sys.executable, "-m", "sageruntime", "doctor", "--json"]


def run(code: str, *, wrapper: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    command = [*(wrapper or []), sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def doctor(before: str, *, wrapper: list[str] | None = None) -> tuple[int, dict[str, Any]]:
    """The doctor's exit code and its checks by name, in a process that did ``before`` first."""
    code = f"{textwrap.dedent(before)}\nfrom sageruntime.cli import app\napp(['doctor', '--json'])"
    done = run(code, wrapper=wrapper)
    assert done.stdout, done.stderr
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout)}


@pytest.fixture(scope="module")
def unshare() -> list[str]:
    """A command that runs another with namespaces of its own."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("namespaces are not allowed here")
    return command


def test_this_machine_is_well() -> None:
    done = subprocess.run(DOCTOR, capture_output=True, text=True, timeout=60)
    checks = json.loads(done.stdout)
    assert done.returncode == 0, checks
    assert len(checks) == len(ALL)
    assert all(check["found"] for check in checks)
    assert all(bool(check["remedy"]) == (check["outcome"] != "ok") for check in checks)


def test_for_people() -> None:
    environment = {**os.environ, "COLUMNS": "300"}
    done = subprocess.run(DOCTOR[:-1], capture_output=True, text=True, timeout=60, env=environment)
    for check in examine():
        assert re.search(rf"{check.name} +│ {check.outcome.value} ", done.stdout)


def test_nothing_is_said_before_a_job_where_all_is_well() -> None:
    require({"thread", "process", "ray"}, 10)


def test_and_it_costs_little() -> None:
    # what a job on processes loads anyway is there; of the time, what others take does not count
    code = """
        import time, sagequeue._object, sagequeue._shared, sageruntime.job
        from sageruntime.doctor import require
        begin = time.process_time()
        require({"thread", "process", "ray"}, 10)
        print(time.process_time() - begin)
    """
    assert min(float(run(code).stdout) for _ in range(3)) < 0.005


BLOCKED = """
    import sys
    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name in {names!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    sys.meta_path.insert(0, Blocked())
"""


def test_without_the_extension() -> None:
    code, checks = doctor(BLOCKED.format(names=["sagequeue._shared"]))
    assert code == 1
    assert checks["extension"]["outcome"] == "failed"
    assert "_shared" in checks["extension"]["found"]
    assert "pip install" in checks["extension"]["remedy"]


def test_without_ray_nothing_fails_that_does_not_need_it() -> None:
    # a ray that is not there is not found; one that does not import raises
    code, checks = doctor("import sys; sys.modules['ray'] = None")
    assert (code, checks["ray"]["outcome"]) == (0, "warning")
    assert "pip install 'sagequeue[ray]'" in checks["ray"]["remedy"]
    done = run("""
        import sys
        sys.modules["ray"] = None
        from sageruntime.doctor import require
        require({"thread", "process"}, 2)
        require({"ray"}, 2)
    """)
    assert "DependencyError: ray: is not installed. Remedy: pip install" in done.stderr


def test_with_a_ray_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise RuntimeError('no such GPU')")
    code, checks = doctor(f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    assert (code, checks["ray"]["outcome"]) == (1, "failed")
    assert "no such GPU" in checks["ray"]["found"]


@pytest.mark.parametrize(("limit", "code", "outcome"), [(40, 1, "failed"), (600, 0, "warning")])
def test_with_few_files(limit: int, code: int, outcome: str) -> None:
    # more may be open while ray is imported, which comes last
    done, checks = doctor(f"""
        import resource
        from sageruntime.doctor import examination
        examination.ALL = examination.ALL[:-1]
        resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
    """)
    assert (done, checks["open files"]["outcome"]) == (code, outcome)
    assert "ulimit -n 4096" in checks["open files"]["remedy"]


def test_a_job_of_many_tasks_needs_more_files() -> None:
    done = run("""
        import resource
        from sageruntime.doctor import require
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        require({"process"}, 4)
        require({"thread"}, 400)
        print("so far")
        require({"process"}, 40)
    """)
    assert done.stdout == "so far\n", done.stderr
    assert "DependencyError: open files: " in done.stderr
    assert "320 are needed. Remedy: ulimit -n" in done.stderr


def test_with_few_processes() -> None:
    # root has no limit, so the process becomes somebody else when all is imported
    done = run("""
        import os, resource
        from sageruntime.doctor import limits
        if os.getuid() == 0:
            print(limits.processes().found)
            os.setuid(65534)
        used = sum(limits._list_threads(os.getuid()))
        for free in (10, 100):
            _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
            resource.setrlimit(resource.RLIMIT_NPROC, (used + free, hard))
            print(limits.processes().outcome.value, limits.processes().remedy)
    """)
    *of_root, little, more = done.stdout.splitlines()
    assert of_root == (["no limit"] if os.getuid() == 0 else [])
    assert little.startswith("failed ulimit -u "), done.stderr
    assert more.startswith("warning ulimit -u ")


def test_with_little_shared_memory(unshare: list[str]) -> None:
    code, checks = doctor(
        """
        import subprocess
        subprocess.run("mount -t tmpfs -o size=1m tmpfs /dev/shm", shell=True, check=True)
        """,
        wrapper=[*unshare, "--mount-proc"],
    )
    assert (code, checks["shared memory"]["outcome"]) == (1, "failed")
    assert "has 1 of 1 MiB free" in checks["shared memory"]["found"]
    assert "--shm-size" in checks["shared memory"]["remedy"]
    assert checks["process list"]["outcome"] == "ok"


def test_with_what_a_container_has_of_it(unshare: list[str]) -> None:
    code, checks = doctor(
        """
        import subprocess
        subprocess.run("mount -t tmpfs -o size=64m tmpfs /dev/shm", shell=True, check=True)
        """,
        wrapper=[*unshare, "--mount-proc"],
    )
    assert (code, checks["shared memory"]["outcome"]) == (0, "warning")


def test_with_shared_memory_that_is_read_only(unshare: list[str]) -> None:
    _, checks = doctor(
        """
        import subprocess
        subprocess.run("mount -t tmpfs -o ro tmpfs /dev/shm", shell=True, check=True)
        """,
        wrapper=[*unshare, "--mount-proc"],
    )
    assert checks["shared memory"]["outcome"] == "failed"
    assert "remount,rw" in checks["shared memory"]["remedy"]


def test_without_shared_memory(tmp_path: Path) -> None:
    check = machine.shared_memory(tmp_path / "none")
    assert (check.outcome, "is not there" in check.found) == (Outcome.FAILED, True)
    assert machine.shared_memory(Path("/proc")).outcome is Outcome.FAILED


def test_with_the_proc_of_another_namespace(unshare: list[str]) -> None:
    code, checks = doctor("", wrapper=unshare)
    assert (code, checks["process list"]["outcome"]) == (1, "failed")
    assert "mount" in checks["process list"]["remedy"]


def test_where_futexes_between_processes_are_refused() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("the filter is written for x86_64")
    code, checks = doctor("""
        import ctypes, errno, struct
        # A seccomp filter that refuses futex(FUTEX_WAKE). Python itself, with one process, uses
        # FUTEX_WAKE | FUTEX_PRIVATE_FLAG.
        LOAD, EQUAL, RETURN, ALLOW, ERRNO = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000
        program = [
            (LOAD, 0, 0, 0), (EQUAL, 0, 3, 202),
            (LOAD, 0, 0, 24), (EQUAL, 0, 1, 1),
            (RETURN, 0, 0, ERRNO | errno.EPERM), (RETURN, 0, 0, ALLOW),
        ]
        code = b"".join(struct.pack("HBBI", *step) for step in program)
        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(38, 1, 0, 0, 0) == 0
        assert libc.prctl(22, 2, ctypes.byref(Program(len(program), code)), 0, 0) == 0
    """)
    assert (code, checks["futex"]["outcome"]) == (1, "failed")
    assert "Operation not permitted" in checks["futex"]["found"]


def test_only_the_hosts_of_the_job_count(unshare: list[str]) -> None:
    done = run(
        """
        import subprocess
        from sageruntime.doctor import require
        require({"thread", "ray"}, 1)  # they do without
        require({"process"}, 1)
        """,
        wrapper=unshare,
    )
    assert "DependencyError: process list: " in done.stderr


def test_a_job_is_refused_before_it_starts() -> None:
    done = run(
        BLOCKED.format(names=["sagequeue._shared", "sagequeue._object"])
        + """
    from sageruntime import Pipeline
    pipeline = Pipeline("job").source([1, 2]).map(str).sink()
    print(pipeline.run("thread").sink_result)  # with queues of the standard library
    pipeline.run("process")
    """
    )
    assert done.stdout == "['1', '2']\n", done.stderr
    assert "DependencyError: extension: cannot be imported: " in done.stderr
    assert "Remedy: build it" in done.stderr
