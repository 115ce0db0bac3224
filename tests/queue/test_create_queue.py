"""create_queue: scopes, backends, and fallbacks that are told."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest

from sagequeue import BackendUnavailable, InvalidOption, RayQueue, create_queue


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        ({"scope": "thread"}, "object"),
        ({"scope": "machine"}, "sage"),
        ({}, "sage"),
        ({"backend": "local"}, "local"),
        ({"backend": "object"}, "object"),
        ({"backend": "sage", "mode": "spsc", "capacity": 64, "pool_bytes": 1 << 20}, "sage"),
    ],
    ids=str,
)
def test_the_backend_for_a_scope(options: dict[str, Any], backend: str) -> None:
    with create_queue(name="create-queue-test", maxsize=7, **options) as queue:
        assert queue.backend == backend
        assert queue.name == "create-queue-test"
        assert queue.maxsize == 7
        queue.put({"a": 1})
        assert queue.get() == {"a": 1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scope": "galaxy"}, "auto, thread, machine, cluster"),
        ({"backend": "carrier-pigeon"}, "sage, object, ray, local"),
        ({"colour": "red"}, "pool_bytes"),
        ({"scope": "machine", "slot_size": 3}, "multiple of 64"),
    ],
    ids=str,
)
def test_what_is_unknown_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidOption, match=said):
        create_queue(**options)


def test_cluster_scope_uses_ray(ray_cluster: None) -> None:
    with create_queue(scope="cluster", maxsize=2) as queue:
        assert queue.backend == "ray"


def test_a_ray_queue_is_found_by_its_name_and_travels(ray_cluster: None) -> None:
    import ray

    @ray.remote
    def double(queue: RayQueue[Any]) -> None:
        queue.put(2 * queue.get())

    first = create_queue(name="shared", scope="cluster")
    second = create_queue(name="shared", scope="cluster")
    first.put(21)
    ray.get(double.remote(second))
    assert second.get() == 42
    first.close()
    second.close()


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_ray_queue_that_all_have_given_up_is_not_found_again(
    ray_cluster: None, is_closed: bool
) -> None:
    for number in range(5):
        queue = create_queue("again", scope="cluster")
        assert queue.qsize() == 0
        queue.put(number)
        if is_closed:
            queue.close()
        del queue


def test_the_death_of_a_ray_queue_is_told(ray_cluster: None) -> None:
    import ray

    queue = RayQueue[int]()
    queue.put(1)
    ray.kill(queue._actor)
    with pytest.raises(BackendUnavailable, match="died"):
        queue.get()


def run(script: str, *without: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a Python in which some modules cannot be imported."""
    hide = "\n".join(f"sys.modules[{module!r}] = None" for module in without)
    return subprocess.run(
        [sys.executable, "-c", f"import sys\n{hide}\n{textwrap.dedent(script)}"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


EXTENSION = ("sagequeue._shared", "sagequeue._object", "sagequeue._codec")

USE = """
    import sys
    from sagequeue import create_queue
    for _ in range(2):
        queue = create_queue(scope={scope!r})
        queue.put([1])
        print(queue.backend, queue.get())
"""


@pytest.mark.parametrize("scope", ["thread", "machine", "auto", "cluster"])
def test_without_the_extension_and_ray_it_falls_back_and_says_so_once(scope: str) -> None:
    done = run(USE.format(scope=scope), *EXTENSION, "ray")
    assert done.stdout == "local [1]\nlocal [1]\n", done.stderr
    assert done.stderr.count("using 'local' instead") == 1


def test_without_ray_a_cluster_queue_reaches_this_machine() -> None:
    done = run(USE.format(scope="cluster"), "ray")
    assert done.stdout == "sage [1]\nsage [1]\n"
    assert done.stderr.count("pip install sagequeue[ray]") == 1


@pytest.mark.parametrize(
    ("backend", "said"),
    [("sage", "compiled extension"), ("object", "compiled extension"), ("ray", "ray package")],
)
def test_a_backend_asked_for_by_name_never_falls_back(backend: str, said: str) -> None:
    done = run(
        f"""
        from sagequeue import BackendUnavailable, create_queue
        try:
            create_queue(backend={backend!r})
        except BackendUnavailable as error:
            print(error)
        """,
        *EXTENSION,
        "ray",
    )
    assert said in done.stdout, done.stderr


def test_ray_must_have_been_started() -> None:
    done = run("from sagequeue import create_queue\ncreate_queue(backend='ray')")
    assert "call ray.init()" in done.stderr


def test_importing_the_package_imports_neither_ray_nor_the_runtime() -> None:
    done = run("import sys, sagequeue\nprint({'ray', 'sageruntime', 'numpy'} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stderr
