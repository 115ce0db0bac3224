"""Routers, connections and partitioners: who gets which packet, whatever happens meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import cloudpickle
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import sageruntime
from sagequeue import create_queue
from sagequeue.errors import BackendUnavailable, ShutDown
from sagequeue.local_queue import LocalQueue
from sageruntime import (
    BaseOperator,
    BaseRouter,
    Connection,
    OperatorFactory,
    Packet,
    Pipeline,
    TaskContext,
    TaskOptions,
)
from sageruntime.communication.router import (
    Barrier,
    Broadcast,
    KeyHash,
    LeastLoaded,
    Message,
    PacketBatch,
    Partitioner,
    PartitionFunction,
    RoundRobin,
    StopSignal,
)
from sageruntime.communication.router.partitioning import Reject, Target
from sageruntime.core.policies import RetryPolicy
from sageruntime.core.stable_hash import stable_hash
from sageruntime.errors import (
    DownstreamClosed,
    InvalidOption,
    PacketError,
    PartitionError,
    PipelineError,
    TaskCancelled,
    UnstableKey,
)
from sageruntime.operator import MapOperator
from sageruntime.task import DeadLetter, TaskState
from sageruntime.task.local_task import LocalTask
from sageruntime.task.process_task import ProcessTask
from sageruntime.task.ray_task import RayTask

# Ray's workers cannot import this module: what they need of it travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(params=["thread", "process", "ray"])
def on(request: pytest.FixtureRequest) -> Any:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return request.param


class Rejects(list[tuple[Any, Exception]]):
    """Collects the payloads of packets that could not be sent, and why."""

    def __call__(self, packet: Packet, error: Exception) -> None:
        self.append((packet.payload, error))

    @property
    def payloads(self) -> list[Any]:
        return [payload for payload, _ in self]


def router_to(
    queues: dict[str, Any], *, batch_size: int = 1, partitioner: Partitioner | None = None
) -> tuple[BaseRouter, Rejects]:
    router = BaseRouter(TaskContext("router"))
    for name, queue in queues.items():
        router.add_connection(Connection(name, queue, batch_size=batch_size))
    if partitioner is not None:
        router.set_partitioner("", partitioner)
    router.on_reject = rejects = Rejects()
    return router, rejects


def queues_named(names: str, **options: Any) -> dict[str, Any]:
    return {name: create_queue(scope="thread", **options) for name in names}


def messages_in(queue: Any) -> list[Message]:
    messages = []
    while not queue.empty():
        messages.append(queue.get())
    return messages


def payloads_in(queue: Any) -> list[Any]:
    return payloads_of(messages_in(queue))


def payloads_of(messages: list[Message]) -> list[Any]:
    return [
        packet.payload
        for message in messages
        if isinstance(message, PacketBatch)
        for packet in message.packets
    ]


# ---- groups and connections ----


def test_every_group_gets_every_packet_and_its_connections_share() -> None:
    router = BaseRouter(TaskContext("router"))
    queues = [create_queue(scope="thread") for _ in range(3)]
    router.add_connection(Connection("a", queues[0], group="one", batch_size=1))
    router.add_connection(Connection("b", queues[1], group="one", batch_size=1))
    router.add_connection(Connection("c", queues[2], group="two", batch_size=1))
    with pytest.raises(InvalidOption, match="already"):
        router.add_connection(Connection("a", queues[0]))
    for number in range(4):
        router.route(Packet(number))
    assert [queue.qsize() for queue in queues] == [2, 2, 4]
    assert router.remove_connection("a").name == "a"
    with pytest.raises(InvalidOption, match="it has: b, c"):
        router.remove_connection("a")
    router.route(Packet(4))
    assert [queue.qsize() for queue in queues] == [2, 3, 5]
    assert router.routed == 5


def test_groups_do_not_share_packets() -> None:
    router = BaseRouter(TaskContext("router"))
    left, right = create_queue(scope="thread"), create_queue(scope="thread")
    router.add_connection(Connection("left", left, group="left", batch_size=1))
    router.add_connection(Connection("right", right, group="right", batch_size=1))
    router.route(Packet("payload", key="k"))
    (one,), (other,) = left.get().packets, right.get().packets
    assert one == other
    assert one is not other


def test_packets_wait_for_a_full_batch_or_a_flush() -> None:
    queues = queues_named("a")
    router, _ = router_to(queues, batch_size=3)
    router.route_batch([Packet(n) for n in range(8)])
    assert [len(batch.packets) for batch in messages_in(queues["a"])] == [3, 3]
    router.route(Packet(8))
    assert payloads_in(queues["a"]) == [6, 7, 8]
    router.route_batch([])
    router.route(Packet(9))
    assert queues["a"].empty()
    router.flush()
    assert payloads_in(queues["a"]) == [9]
    router.flush()
    assert queues["a"].empty()


@given(
    size=st.integers(1, 5),
    lists=st.lists(st.integers(0, 17), max_size=8),
)
def test_batches_are_full_and_in_order(size: int, lists: list[int]) -> None:
    queues = queues_named("a")
    router, _ = router_to(queues, batch_size=size)
    total = 0
    for length in lists:
        router.route_batch([Packet(total + n) for n in range(length)])
        total += length
    messages = messages_in(queues["a"])
    assert all(len(message.packets) == size for message in messages)
    router.flush()
    assert payloads_of(messages + messages_in(queues["a"])) == list(range(total))


def test_a_task_is_told_the_end_behind_all_packets() -> None:
    queues = queues_named("ab")
    router, _ = router_to(queues, batch_size=10)
    router.begin(3)
    router.route_batch([Packet(n) for n in range(5)])
    router.pass_barrier(7)
    router.route(Packet(5))
    router.stop()
    for name, payloads in (("a", [0, 2, 4]), ("b", [1, 3])):
        first, barrier, *rest, end = messages_in(queues[name])
        assert payloads_of([first]) == payloads
        assert first.attempt == 3
        assert barrier == Barrier(7, "router", 3)
        assert end == StopSignal("router", 3)
        assert payloads_of(rest) == ([] if name == "a" else [5])


def test_a_new_attempt_forgets_what_was_gathered() -> None:
    queues = queues_named("a", maxsize=1)
    router, _ = router_to(queues, batch_size=2)
    router.route_batch([Packet(n) for n in range(2)])
    router.cancel()
    with pytest.raises(TaskCancelled):
        router.route_batch([Packet(n) for n in range(2, 5)])
    router.begin(1)
    assert payloads_in(queues["a"]) == [0, 1]
    router.route_batch([Packet("again"), Packet("and again")])
    assert payloads_in(queues["a"]) == ["again", "and again"]


# ---- two inputs of one task ----


class Sides(BaseOperator):
    """Tells by which input each packet came."""

    def process(self, packet: Packet) -> Packet:
        packet.payload = (packet.input_index, packet.payload)
        return packet


@pytest.mark.parametrize("task_class", [LocalTask, ProcessTask])
def test_two_groups_into_two_inputs_of_a_task(task_class: Any) -> None:
    join = task_class(
        TaskContext("join", upstreams=1), OperatorFactory(Sides), queue_scope="machine"
    )
    out = create_queue(name="join-out", scope="machine")
    join.router.add_connection(Connection("out", out))
    router = BaseRouter(TaskContext("upstream"))
    for index in range(2):
        router.add_connection(
            Connection(f"join-{index}", join.input_buffer, group=f"{index}", input_index=index)
        )
    join.start_running()
    # a packet that came by another input of the task before
    router.route_batch([Packet("x", input_index=5), Packet("y")])
    router.stop()
    assert join.join(30)
    assert join.get_report().error is None
    assert sorted(payloads_in(out)) == [(0, "x"), (0, "y"), (1, "x"), (1, "y")]
    join.cleanup()
    out.close()


def test_the_inputs_of_a_task_on_a_thread_and_after_it() -> None:
    """Where packets are not copied on the way, either, each task sees its own inputs."""
    last = LocalTask(TaskContext("last", upstreams=1), OperatorFactory(Sides))
    first = LocalTask(TaskContext("first", upstreams=1), OperatorFactory(Sides))
    out = create_queue(scope="thread")
    last.router.add_connection(Connection("out", out))
    first.router.add_connection(Connection("last", last.input_buffer))
    router = BaseRouter(TaskContext("upstream"))
    router.add_connection(Connection("first", first.input_buffer, input_index=1))
    for task in (last, first):
        task.start_running()
    router.route(Packet("x"))
    router.stop()
    assert last.join(30)
    assert payloads_in(out) == [(0, (1, "x"))]
    first.cleanup()
    last.cleanup()


# ---- partitioners ----


class FixedTarget:
    """A target whose depth is known."""

    def __init__(self, name: str, depth: int = 0) -> None:
        self.name = name
        self._depth = depth

    def depth(self) -> int:
        return self._depth


def targets(ways: int) -> list[Target]:
    return [FixedTarget(f"t{way}") for way in range(ways)]


def refuse(packet: Packet, error: Exception) -> None:
    raise error


KEYS: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.booleans()
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.fractions(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)

PARTITIONERS: list[Callable[[], Partitioner]] = [
    RoundRobin,
    KeyHash,
    LeastLoaded,
    lambda: PartitionFunction(lambda packet, ways: packet.id % ways),
]


@pytest.mark.parametrize("make", PARTITIONERS)
@given(batches=st.lists(st.tuples(st.lists(KEYS, min_size=1), st.integers(1, 5)), max_size=5))
def test_every_packet_goes_to_one_task_and_keeps_its_place(
    make: Callable[[], Partitioner], batches: list[tuple[list[Any], int]]
) -> None:
    partitioner = make()
    for keys, ways in batches:
        packets = [Packet(n, key=key) for n, key in enumerate(keys)]
        parts = partitioner.split(list(packets), targets(ways), refuse)
        assert len(parts) == ways
        assert sorted(p.payload for part in parts for p in part) == list(range(len(keys)))
        assert all(packets[p.payload] is p for part in parts for p in part)
        for part in parts:
            assert part == sorted(part, key=lambda packet: packet.payload)


@given(st.lists(st.integers(), min_size=1), st.integers(1, 5))
def test_broadcast_gives_everybody_copies_of_everything(numbers: list[int], ways: int) -> None:
    packets = [Packet(number) for number in numbers]
    parts = Broadcast().split(packets, targets(ways), refuse)
    assert parts == [packets] * ways
    assert len({id(packet) for part in parts for packet in part}) == ways * len(packets)


@given(st.lists(st.integers(1, 30), min_size=1), st.integers(1, 5))
def test_round_robin_gives_everybody_as_much(lengths: list[int], ways: int) -> None:
    partitioner = RoundRobin()
    counts: Counter[int] = Counter()
    for length in lengths:
        parts = partitioner.split([Packet(n) for n in range(length)], targets(ways), refuse)
        counts.update({way: len(part) for way, part in enumerate(parts)})
    assert max(counts.values()) - min(counts.values()) <= 1


@given(st.integers(1, 300), st.lists(st.integers(0, 300), min_size=1, max_size=6))
def test_least_loaded_brings_the_lowest_level_up(amount: int, depths: list[int]) -> None:
    vessels = [FixedTarget(f"t{way}", depth) for way, depth in enumerate(depths)]
    parts = LeastLoaded().split([Packet(n) for n in range(amount)], vessels, refuse)
    levels = [depth + len(part) for depth, part in zip(depths, parts)]
    filled = [level for level, part in zip(levels, parts) if part]
    assert sum(map(len, parts)) == amount
    assert max(filled) <= min(levels) + 1


def test_least_loaded_takes_turns_among_equals() -> None:
    idle, partitioner = targets(3), LeastLoaded()
    parts = [partitioner.split([Packet(n)], idle, refuse) for n in range(30)]
    assert [sum(len(part[way]) for part in parts) for way in range(3)] == [10, 10, 10]


@given(st.lists(KEYS, min_size=1), st.integers(1, 7))
def test_equal_keys_go_to_the_same_task_from_every_sender(keys: list[Any], ways: int) -> None:
    way_of: dict[Any, int] = {}
    for _ in range(2):  # two senders
        partitioner = KeyHash(lambda payload: payload)
        for _ in range(2):  # known keys, too
            parts = partitioner.split([Packet(key) for key in keys], targets(ways), refuse)
            for way, part in enumerate(parts):
                for packet in part:
                    assert packet.key is packet.payload
                    assert way_of.setdefault(packet.key, way) == way


def test_keys_without_a_hash_are_rejected() -> None:
    rejects = Rejects()
    parts = KeyHash(lambda payload: payload["key"]).split(
        [Packet({"key": 1}), Packet({}), Packet({"key": [1]}), Packet({"key": object()})],
        targets(2),
        rejects,
    )
    assert sum(map(len, parts)) == 1
    assert [type(error) for _, error in rejects] == [KeyError, UnstableKey, UnstableKey]


def test_with_one_task_nothing_is_hashed_but_keys_are_set() -> None:
    key = object()
    packets = [Packet(1), Packet(2)]
    assert KeyHash().split(packets, targets(1), refuse)[0] is packets
    (keyed,) = KeyHash(lambda payload: key).split(packets, targets(1), refuse)
    assert [packet.key for packet in keyed] == [key, key]


@pytest.mark.parametrize("chosen", [-1, 2, "first", None, 0.5], ids=repr)
def test_a_partition_function_that_chooses_no_task(chosen: Any) -> None:
    rejects = Rejects()
    partitioner = PartitionFunction(lambda packet, ways: chosen)
    assert partitioner.split([Packet("p")], targets(2), rejects) == [[], []]
    assert rejects.payloads == ["p"]
    assert isinstance(rejects[0][1], (PartitionError, TypeError))


class OneList:
    """Breaks the contract of partitioners."""

    fails_over = False

    def split(
        self, packets: list[Packet], targets: Sequence[Target], reject: Reject
    ) -> list[list[Packet]]:
        return [packets]


def test_a_partitioner_that_breaks_its_contract() -> None:
    router, _ = router_to(queues_named("ab"), partitioner=OneList())
    with pytest.raises(PartitionError, match="1 parts"):
        router.route(Packet(1))


def test_a_partitioner_is_set_for_a_group() -> None:
    router, _ = router_to(queues_named("ab"))
    assert isinstance(router.partitioners[""], RoundRobin)
    with pytest.raises(InvalidOption, match="no group 'g'"):
        router.set_partitioner("g", Broadcast())
    partitioner = Broadcast()
    router.set_partitioner("", partitioner)
    assert router.partitioners == {"": partitioner}


# ---- the hash of a key ----

STABLE_KEYS = [
    "word", "žluťoučký", "\ud800", b"bytes", 7, -1, 2**80, 1.5, -0.0, float("inf"), True, None,
    Decimal("0.1"), Fraction(1, 3), ("a", 1, (None, 2.0)), (), "", b"",
]  # fmt: skip

# State kept by key is found again only where the hash stays what it was.
STABLE_HASHES = [
    3287381265, 4228039141, 499426600, 2979611598, 1877464688, 3991854978, 2305907972,
    3024080787, 1696784233, 285157108, 2844319735, 0, 3728300396, 2567725845, 2940791000, 0, 0,
    0,
]  # fmt: skip


def test_the_hash_of_a_key_is_for_ever() -> None:
    assert [stable_hash(key) for key in STABLE_KEYS] == STABLE_HASHES


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_and_the_same_in_every_python_and_process(version: str, seed: str) -> None:
    interpreter = shutil.which(f"python{version}")
    if interpreter is None:
        pytest.skip(f"there is no python{version}")
    # The package without what it needs installed: its __init__ is left out.
    script = (
        "import sys, types\n"
        "from decimal import Decimal\n"
        "from fractions import Fraction\n"
        "inf = float('inf')\n"
        "package = sys.modules['sageruntime'] = types.ModuleType('sageruntime')\n"
        "package.__path__ = [sys.argv[1]]\n"
        "router = sys.modules['sageruntime.communication'] = types.ModuleType('communication')\n"
        "router.__path__ = [sys.argv[1] + '/communication']\n"
        "from sageruntime.core.stable_hash import stable_hash\n"
        f"print([stable_hash(key) for key in {STABLE_KEYS!a}])\n"
    )
    there = subprocess.run(
        [interpreter, "-c", script, str(Path(sageruntime.__file__).parent)],
        # pyenv's python3.x asks which of them it should be
        env={**os.environ, "PYTHONHASHSEED": seed, "PYENV_VERSION": version},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if there.returncode == 127:  # a name of pyenv's for a version that is not there
        pytest.skip(there.stderr)
    assert there.stdout.strip() == str(STABLE_HASHES), there.stderr


@pytest.mark.parametrize(
    "equal",
    [
        [1, 1.0, True, Decimal(1), Fraction(1), 1 + 0j, numpy.int64(1), numpy.float32(1)],
        [0, 0.0, -0.0, False, Decimal("-0")],
        [0.5, Fraction(1, 2), Decimal("0.50"), numpy.float64(0.5)],
        [2**80, float(2**80)],
        [("a", 1), ("a", True), (numpy.str_("a"), 1.0)],
    ],
    ids=str,
)
def test_equal_keys_have_equal_hashes(equal: list[Any]) -> None:
    assert all(key == equal[0] for key in equal)
    assert len({stable_hash(key) for key in equal}) == 1
    parts = KeyHash().split([Packet(None, key=key) for key in equal], targets(5), refuse)
    assert sorted(map(len, parts)) == [0, 0, 0, 0, len(equal)]


@given(KEYS, KEYS)
def test_keys_that_are_equal_have_equal_hashes(one: Any, other: Any) -> None:
    assert one != other or stable_hash(one) == stable_hash(other)
    assert 0 <= stable_hash(one) < 2**32


@pytest.mark.parametrize(
    "key",
    [object(), [1], {1}, float("nan"), Decimal("nan"), Decimal("snan"), ("a", object())],
    ids=repr,
)
def test_a_key_without_a_stable_hash(key: Any) -> None:
    with pytest.raises(UnstableKey, match="no stable hash"):
        stable_hash(key)


@pytest.mark.parametrize("ways", [2, 3, 4, 7])
def test_keys_spread(ways: int) -> None:
    for keys in (range(10_000), [f"user-{n}" for n in range(10_000)], range(0, 80_000, 8)):
        counts = Counter(stable_hash(key) % ways for key in keys)
        assert min(counts.values()) > 0.9 * 10_000 / ways


# ---- connections that come and go while packets are routed ----


class Consumer:
    """Takes what comes into a queue, in a thread, until the queue is shut down."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue
        self.received: list[Any] = []
        self._thread = threading.Thread(target=self._consume, daemon=True)
        self._thread.start()

    def _consume(self) -> None:
        for message in self.queue:
            self.received += payloads_of([message])

    def end(self) -> list[Any]:
        self.queue.shutdown()
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.received


@pytest.mark.parametrize("scope", ["thread", "machine"])
@pytest.mark.parametrize("make", [RoundRobin, KeyHash, LeastLoaded])
def test_connections_come_and_go_under_traffic(make: Callable[[], Partitioner], scope: Any) -> None:
    """Four threads route through queues that are nearly always full."""
    senders, each = 4, 3000
    router = BaseRouter(TaskContext("router"))
    consumers: dict[str, list[Consumer]] = defaultdict(list)

    def connect(name: str) -> None:
        queue: Any = create_queue(scope=scope, maxsize=2)
        consumers[name].append(Consumer(queue))
        router.add_connection(Connection(name, queue, group="g", batch_size=7))

    def route(sender: int) -> None:
        for start in range(0, each, 10):
            router.route_batch(
                [Packet((sender, n), key=(sender, n % 5)) for n in range(start, start + 10)]
            )

    connect("stays")
    router.set_partitioner("g", make())
    threads = [threading.Thread(target=route, args=(sender,)) for sender in range(senders)]
    for thread in threads:
        thread.start()
    changes = 0
    while any(thread.is_alive() for thread in threads):
        for name in ("a", "b", "c"):
            connect(name)
        for name in ("b", "a", "c"):
            router.remove_connection(name)
            changes += 1
    for thread in threads:
        thread.join()
    router.flush()
    everyone = [consumer for name in consumers for consumer in consumers[name]]
    received = [consumer.end() for consumer in everyone]
    for consumer in everyone:
        consumer.queue.close()
    assert sorted(payload for payloads in received for payload in payloads) == [
        (sender, n) for sender in range(senders) for n in range(each)
    ]
    assert changes > 3
    assert sum(map(bool, received)) > 3  # the others had their part in it
    for payloads in received:
        if make is not KeyHash:
            break
        for sender in range(senders):  # what one task gets of one key comes in order
            for key in range(5):
                mine = [n for s, n in payloads if s == sender and n % 5 == key]
                assert mine == sorted(mine)


def test_a_full_queue_does_not_keep_connections_from_coming_and_going() -> None:
    queues = queues_named("ab", maxsize=1)
    router, _ = router_to(queues)
    router.route_batch([Packet(0), Packet(1)])  # both are full
    blocked = threading.Thread(target=router.route, args=(Packet(2),))
    blocked.start()
    wait_until(lambda: router.connections[0].depth() == 2)
    extra = create_queue(scope="thread")
    router.add_connection(Connection("c", extra, batch_size=1))
    assert [connection.name for connection in router.connections] == ["a", "b", "c"]
    router.remove_connection("b")
    router.route(Packet(3))
    assert payloads_in(extra) == [3]
    assert blocked.is_alive()
    assert queues["a"].get().packets[0].payload == 0
    blocked.join(10)
    assert payloads_in(queues["a"]) == [2]


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_was_gathered_goes_to_the_task_that_is_removed() -> None:
    queues = queues_named("ab")
    router, _ = router_to(queues, batch_size=10)
    router.route_batch([Packet(n) for n in range(6)])
    router.remove_connection("a")
    assert payloads_in(queues["a"]) == [0, 2, 4]
    router.remove_connection("b", stop=True)
    batch, end = messages_in(queues["b"])
    assert payloads_of([batch]) == [1, 3, 5]
    assert end == StopSignal("router")
    router.route(Packet(6))  # goes nowhere, as in a task without a downstream
    assert router.connections == []
    assert router.partitioners == {}


def route_among_barriers(router: BaseRouter, packets: int) -> int:
    """Three senders route so many packets each, to their end; how many barriers went among them."""

    def route(sender: int) -> None:
        for n in range(packets):
            router.route(Packet((sender, n)))

    threads = [threading.Thread(target=route, args=(sender,)) for sender in range(3)]
    for thread in threads:
        thread.start()
    checkpoint = 0
    while any(thread.is_alive() for thread in threads):
        checkpoint += 1
        router.pass_barrier(checkpoint)
    router.stop()
    return checkpoint


def test_a_barrier_comes_at_one_instant_for_all_groups() -> None:
    """However many threads route: what one group has before it, all have before it."""
    router = BaseRouter(TaskContext("router"))
    consumers = [Collector() for _ in range(2)]
    for index, consumer in enumerate(consumers):
        router.add_connection(
            Connection(f"{index}", consumer.queue, group=f"{index}", batch_size=3)
        )

    checkpoints = route_among_barriers(router, 2000)
    one, other = (consumer.end() for consumer in consumers)
    assert len(one) == len(other) == checkpoints + 1
    assert list(map(sorted, one)) == list(map(sorted, other))
    assert sum(map(len, one)) == 6000


def test_what_is_dealt_anew_does_not_fall_behind_a_barrier() -> None:
    """A task that is too slow for least loaded has packets taken back, but none from before a
    barrier that comes behind them."""
    router = BaseRouter(TaskContext("router"))
    whole, quick, slow = Collector(), Collector(), Collector(seconds=0.03)
    router.add_connection(Connection("whole", whole.queue, group="whole", batch_size=3))
    for name, consumer in ("quick", quick), ("slow", slow):
        router.add_connection(Connection(name, consumer.queue, group="shared", batch_size=3))
    router.set_partitioner("shared", LeastLoaded())

    checkpoints = route_among_barriers(router, 300)
    expected = [sorted(part) for part in whole.end()]
    parts = zip(quick.end(), slow.end(), strict=True)
    assert [sorted(one + other) for one, other in parts] == expected
    assert len(expected) == checkpoints + 1


class Collector:
    """Collects payloads from a small queue, a list for each barrier and the end."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds  # that it takes over a message
        self.queue: Any = create_queue(scope="thread", maxsize=2)
        self._parts: list[list[Any]] = [[]]
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        while not isinstance(message := self.queue.get(), StopSignal):
            time.sleep(self._seconds)
            if isinstance(message, Barrier):
                self._parts.append([])
            else:
                self._parts[-1] += payloads_of([message])

    def end(self) -> list[list[Any]]:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self._parts


# ---- backpressure ----


@pytest.mark.parametrize("scope", ["thread", "machine"])
def test_whoever_waits_for_room_notices_that_the_task_is_cancelled(scope: Any) -> None:
    queue: Any = create_queue(scope=scope, maxsize=1)
    router, _ = router_to({"a": queue})
    router.route(Packet(0))
    cancelled: list[BaseException] = []

    def wait_for_room(call: Callable[[], Any]) -> None:
        try:
            call()
        except TaskCancelled as error:
            cancelled.append(error)

    calls = [
        lambda: router.route(Packet(1)),
        router.flush,
        router.stop,
        lambda: router.route(Packet(2)),
    ]
    threads = [threading.Thread(target=wait_for_room, args=(call,)) for call in calls]
    threads[0].start()
    wait_until(lambda: router.connections[0].depth() == 2)
    for thread in threads[1:]:
        thread.start()
    router.cancel()
    for thread in threads:
        thread.join(10)
    assert len(cancelled) == len(calls)
    queue.close()


# ---- failover ----


@pytest.mark.parametrize("end", ["shutdown", "close"])
@pytest.mark.parametrize(
    "make", [RoundRobin, LeastLoaded, lambda: KeyHash(fails_over=True), lambda: AnyTask()]
)
def test_siblings_take_over_from_a_task_that_has_ended(
    make: Callable[[], Partitioner], end: str, caplog: pytest.LogCaptureFixture
) -> None:
    queues = queues_named("abc")
    router, rejects = router_to(queues, batch_size=10, partitioner=make())
    router.route_batch([Packet(n, key=n) for n in range(15)])  # some are gathered for each
    delivered = {name: payloads_in(queue) for name, queue in queues.items()}
    getattr(queues["b"], end)()
    router.route_batch([Packet(n, key=n) for n in range(15, 60)])
    router.flush()
    received = [n for name in "ac" for n in delivered[name] + payloads_in(queues[name])]
    assert sorted(received + delivered["b"]) == list(range(60))
    assert not rejects
    assert [connection.name for connection in router.connections] == ["a", "c"]
    assert router.failed_over > 0
    assert router.lost == {"b": "b has ended and takes no more packets"}
    moved = [record for record in caplog.records if "take over" in record.message]
    assert len(moved) == 1
    assert "router: b has ended" in moved[0].message
    router.stop()
    assert messages_in(queues["a"]) == messages_in(queues["c"]) == [StopSignal("router")]


class AnyTask:
    """All packets to the last task; any other will do."""

    fails_over = True

    def split(
        self, packets: list[Packet], targets: Sequence[Target], reject: Reject
    ) -> list[list[Packet]]:
        last = len(targets) - 1
        return [packets if way == min(1, last) else [] for way in range(len(targets))]


def test_what_is_gathered_fails_over_when_it_is_flushed() -> None:
    queues = queues_named("ab")
    router, rejects = router_to(queues, batch_size=10)
    router.route_batch([Packet(n) for n in range(6)])
    queues["a"].shutdown()
    router.flush()
    assert sorted(payloads_in(queues["b"])) == list(range(6))
    assert router.failed_over == 3
    assert not rejects


def test_a_task_that_ends_while_it_is_removed() -> None:
    queues = queues_named("ab")
    router, rejects = router_to(queues, batch_size=10)
    router.route_batch([Packet(n) for n in range(6)])
    queues["a"].shutdown()
    router.remove_connection("a")
    router.flush()
    assert sorted(payloads_in(queues["b"])) == list(range(6))
    router.route(Packet(6))
    queues["b"].shutdown()
    router.remove_connection("b")  # the last of its group
    assert rejects.payloads == [6]
    assert isinstance(rejects[0][1], DownstreamClosed)


@pytest.mark.parametrize(
    "make", [lambda: KeyHash(), lambda: PartitionFunction(lambda packet, ways: packet.key % ways)]
)
def test_where_the_task_matters_its_packets_are_rejected(make: Callable[[], Partitioner]) -> None:
    queues = queues_named("abc")
    router, rejects = router_to(queues, batch_size=4, partitioner=make())
    router.route_batch([Packet(n, key=n) for n in range(100)])
    router.flush()
    placed = {name: payloads_in(queue) for name, queue in queues.items()}
    queues["b"].shutdown()
    router.route_batch([Packet(n, key=n) for n in range(100)])
    router.flush()
    # keys stay where they are: with others, or in the error policy
    assert sorted(rejects.payloads) == placed["b"]
    assert {type(error) for _, error in rejects} == {DownstreamClosed}
    assert payloads_in(queues["a"]) == placed["a"]
    assert payloads_in(queues["c"]) == placed["c"]
    assert router.failed_over == 0
    assert list(router.lost) == ["b"]
    # a new task takes the place of the one that has ended
    rejects.clear()
    again = create_queue(scope="thread")
    router.add_connection(Connection("b", again))
    router.route_batch([Packet(n, key=n) for n in range(100)])
    router.flush()
    assert payloads_in(again) == placed["b"]
    assert payloads_in(queues["a"]) == placed["a"]
    assert not rejects
    assert router.lost == {}


def test_broadcast_rejects_the_copies_of_a_task_that_has_ended() -> None:
    queues = queues_named("ab")
    router, rejects = router_to(queues, partitioner=Broadcast())
    queues["a"].shutdown()
    router.route_batch([Packet(n) for n in range(3)])
    assert rejects.payloads == [0, 1, 2]
    assert payloads_in(queues["b"]) == [0, 1, 2]


def test_when_no_sibling_is_left_packets_are_rejected() -> None:
    queues = queues_named("ab")
    router, rejects = router_to(queues, batch_size=10)
    router.route_batch([Packet(n) for n in range(6)])
    for queue in queues.values():
        queue.shutdown()
    router.flush()
    router.route(Packet(6))
    router.stop()
    assert sorted(rejects.payloads) == list(range(7))
    assert str(rejects[0][1]) in router.lost.values()
    assert isinstance(rejects[0][1].__cause__, ShutDown)
    # until there is one
    rejects.clear()
    new = create_queue(scope="thread")
    router.add_connection(Connection("c", new, batch_size=1))
    router.route(Packet(7))
    assert payloads_in(new) == [7]


def test_a_task_ends_while_others_wait_for_its_room() -> None:
    """Several threads wait for a full queue whose task then ends: each packet is sent once."""
    queues = queues_named("a", maxsize=1) | queues_named("b")
    router, rejects = router_to(queues)
    router.route(Packet(0))
    threads = [threading.Thread(target=router.route, args=(Packet(n),)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    wait_until(lambda: queues["b"].qsize() == 4)
    queues["a"].shutdown(immediate=True)
    for thread in threads:
        thread.join(10)
    router.flush()
    assert sorted(payloads_in(queues["b"])) == list(range(1, 9))
    assert not rejects
    assert router.failed_over == 4


def test_tasks_end_under_traffic() -> None:
    """What a queue had taken when its task ended is the task's; all else arrives once."""
    router = BaseRouter(TaskContext("router"))
    router.on_reject = rejects = Rejects()
    consumers = []
    for name in "abcd":
        consumers.append(Consumer(create_queue(scope="thread", maxsize=3)))
        router.add_connection(Connection(name, consumers[-1].queue, batch_size=5))

    def route(sender: int) -> None:
        for start in range(0, 3000, 10):
            router.route_batch([Packet((sender, n)) for n in range(start, start + 10)])

    threads = [threading.Thread(target=route, args=(sender,)) for sender in range(3)]
    for thread in threads:
        thread.start()
    for consumer in consumers[:3]:
        wait_until(lambda consumer=consumer: len(consumer.received) > 300)
        consumer.end()  # its queue takes nothing more; what is there is received
    for thread in threads:
        thread.join(60)
    router.flush()
    consumers[3].end()
    received = [payload for consumer in consumers for payload in consumer.received]
    assert sorted(received) == [(sender, n) for sender in range(3) for n in range(3000)]
    assert not rejects
    assert sorted(router.lost) == ["a", "b", "c"]


def test_the_broker_of_a_ray_queue_dies(ray_cluster: None) -> None:
    import ray

    gone, there = create_queue(scope="cluster"), create_queue(scope="cluster")
    router, rejects = router_to({"gone": gone, "there": there}, partitioner=LeastLoaded())
    router.route_batch([Packet(n) for n in range(4)])
    router.flush()
    assert gone.qsize() == there.qsize() == 2
    ray.kill(gone._actor)
    router.route_batch([Packet(n) for n in range(4, 8)])
    router.flush()
    received = payloads_in(there)
    assert sorted(received)[-4:] == [4, 5, 6, 7]
    assert len(received) == 6
    assert not rejects
    assert "is gone" in router.lost["gone"]
    assert isinstance(router.connections[0], Connection)
    gone.close()
    there.close()


def test_the_depth_of_a_ray_queue_is_asked_seldom(ray_cluster: None) -> None:
    queue: Any = create_queue(scope="cluster")
    router, _ = router_to({"a": queue}, batch_size=10)
    (connection,) = router.connections
    router.route_batch([Packet(n) for n in range(20)])
    router.flush()
    assert connection.depth() == 20
    queue.get_many(2)
    started = time.monotonic()
    assert connection.depth() == 20 or time.monotonic() - started > 0.05
    wait_until(lambda: connection.depth() == 0)
    router.route_batch([Packet(n) for n in range(10)])
    assert connection.depth() == 10
    queue.close()


@pytest.fixture
def by_ray(ray_cluster: None) -> Iterator[Any]:
    with create_queue(scope="cluster", maxsize=5) as queue:
        yield queue


def test_batches_go_to_a_queue_of_ray_s_several_at_a_time(by_ray: Any) -> None:
    router, _ = router_to({"a": by_ray}, batch_size=2)
    router.route_batch([Packet(n) for n in range(8)])
    assert by_ray.qsize() == 0  # a call could take one batch more
    router.route_batch([Packet(8), Packet(9)])
    assert payloads_in(by_ray) == list(range(10))
    router.route_batch([Packet(10), Packet(11), Packet(12)])
    router.flush()
    assert payloads_in(by_ray) == [10, 11, 12]


def test_what_has_room_of_several_batches_goes_first(by_ray: Any) -> None:
    router, rejects = router_to({"a": by_ray}, batch_size=1)
    by_ray.put_many([PacketBatch([Packet(n)]) for n in range(3)])
    sending = threading.Thread(target=router.route_batch, args=([Packet(n) for n in range(3, 23)],))
    sending.start()
    received: list[Any] = []
    while len(received) < 20:
        received += payloads_of(by_ray.get_many(4, timeout=30))
    sending.join()
    router.flush()
    assert received + payloads_in(by_ray) == list(range(23))
    assert not rejects


def test_of_several_batches_only_the_packet_at_fault_is_rejected(by_ray: Any) -> None:
    router, rejects = router_to({"a": by_ray}, batch_size=2)
    payloads: list[Any] = list(range(10))
    payloads[3] = payloads[6] = threading.Lock()
    router.route_batch([Packet(payload) for payload in payloads])
    received: list[Any] = []
    sending = threading.Thread(target=router.flush)
    sending.start()
    while len(received) < 8:
        received += payloads_of(by_ray.get_many(timeout=30))
    sending.join()
    assert received == [0, 1, 2, 4, 5, 7, 8, 9]
    assert [payload for payload, _ in rejects] == [payloads[3], payloads[6]]


class Unreachable(LocalQueue[Any]):
    """A queue that cannot be reached for some calls."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if self.times > 0:
            self.times -= 1
            raise BackendUnavailable("no answer")
        super().put(item, block, timeout)


def test_a_queue_that_cannot_be_reached_is_tried_again_if_the_policy_says_so() -> None:
    queues = {"a": Unreachable(2), **queues_named("b")}
    router, _ = router_to(queues)
    router.retry = RetryPolicy(attempts=3, backoff=0.05)
    started = time.monotonic()
    router.route_batch([Packet(0), Packet(1)])
    assert time.monotonic() - started >= 0.15
    assert payloads_in(queues["a"]) == [0]
    assert router.failed_over == 0
    queues["a"].times = 3
    router.route_batch([Packet(2), Packet(3)])
    assert sorted(payloads_in(queues["b"])) == [1, 2, 3]
    assert router.lost == {"a": "the queue of a is gone: no answer"}


def test_and_once_if_it_says_nothing() -> None:
    queues = {"a": Unreachable(1), **queues_named("b")}
    router, _ = router_to(queues)
    router.route_batch([Packet(0), Packet(1)])
    assert sorted(payloads_in(queues["b"])) == [0, 1]


def test_a_cancelled_task_does_not_try_again() -> None:
    router, _ = router_to({"a": Unreachable(1000)})
    router.retry = RetryPolicy(attempts=1000, backoff=1000, max_backoff=1000)
    threading.Timer(0.1, router.cancel).start()
    with pytest.raises(TaskCancelled):
        router.route(Packet(0))


class Changes(RuleBasedStateMachine):
    """Tasks come, go and end in any order, packets between: each is sent or rejected once."""

    @initialize(
        make=st.sampled_from([RoundRobin, LeastLoaded, KeyHash, lambda: KeyHash(fails_over=True)]),
        batch_size=st.integers(1, 4),
    )
    def begin(self, make: Callable[[], Partitioner], batch_size: int) -> None:
        self.partitioner = make()
        self.batch_size = batch_size
        self.router = BaseRouter(TaskContext("router"))
        self.router.on_reject = self.rejects = Rejects()
        self.queues: list[Any] = []
        self.connected: dict[str, Any] = {}
        self.routed = 0

    @rule()
    def connect(self) -> None:
        name, queue = f"{len(self.queues)}", create_queue(scope="thread")
        self.queues.append(queue)
        self.connected[name] = queue
        self.router.add_connection(Connection(name, queue, batch_size=self.batch_size))
        self.router.set_partitioner("", self.partitioner)

    @precondition(lambda self: self.router.connections)
    @rule(data=st.data(), stop=st.booleans())
    def disconnect(self, data: st.DataObject, stop: bool) -> None:
        name = data.draw(st.sampled_from([c.name for c in self.router.connections]))
        self.router.remove_connection(name, stop)
        self.connected.pop(name)

    @precondition(lambda self: self.connected)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.connected[data.draw(st.sampled_from(sorted(self.connected)))].shutdown()

    @precondition(lambda self: self.router.connections)
    @rule(count=st.integers(1, 9))
    def route(self, count: int) -> None:
        numbers = range(self.routed, self.routed + count)
        self.router.route_batch([Packet(n, key=n % 5) for n in numbers])
        self.routed += count

    @rule()
    def flush(self) -> None:
        self.router.flush()

    def teardown(self) -> None:
        self.router.flush()
        sent = [payload for queue in self.queues for payload in payloads_in(queue)]
        assert sorted(sent + self.rejects.payloads) == list(range(self.routed))


TestChanges = Changes.TestCase


# ---- failover of tasks ----


def test_a_task_whose_process_is_killed_is_left_out() -> None:
    upstream = LocalTask(TaskContext("upstream"), OperatorFactory(MapOperator, str), batch_size=10)
    out = create_queue(name="failover-out", scope="machine")
    downstream = [
        ProcessTask(
            TaskContext(f"failover-{n}", upstreams=1),
            OperatorFactory(MapOperator, str),
            batch_size=1,
        )
        for n in range(2)
    ]
    for task in downstream:
        upstream.router.add_connection(Connection(task.name, task.input_buffer, batch_size=10))
        task.router.add_connection(Connection("out", out, batch_size=1))
        task.start_running()
    upstream.start_running()
    for n in range(100):
        upstream.put_packet(Packet(n))
    seen = {out.get(timeout=30).packets[0].payload for _ in range(100)}
    assert seen == set(map(str, range(100)))
    assert downstream[0].pid is not None
    os.kill(downstream[0].pid, signal.SIGKILL)
    assert downstream[0].join(30)
    for n in range(100, 200):
        upstream.put_packet(Packet(n))
    assert upstream.stop(timeout=30)
    assert downstream[1].join(30)
    assert downstream[1].state is TaskState.STOPPED
    assert sorted(payloads_in(out)) == [str(n) for n in range(100, 200)]
    assert upstream.get_status().failed_over == upstream.router.failed_over > 0
    assert list(upstream.router.lost) == ["failover-0"]
    for task in (upstream, *downstream):
        task.cleanup()
    out.close()


@pytest.mark.parametrize("task_class", [ProcessTask, RayTask])
def test_connections_of_a_task_in_another_process_come_and_go(
    task_class: Any, request: pytest.FixtureRequest
) -> None:
    scope: Any = "machine"
    if task_class is RayTask:
        request.getfixturevalue("ray_cluster")
        scope = "cluster"
    task = task_class(TaskContext("far"), OperatorFactory(MapOperator, str), batch_size=1)
    queues: dict[str, Any] = {
        name: create_queue(name=f"far-{name}", scope=scope) for name in ("a", "b")
    }
    task.router.add_connection(Connection("a", queues["a"], batch_size=1))
    task.start_running()

    def receive(name: str, payload: str) -> None:
        assert payloads_of([queues[name].get(timeout=60)]) == [payload]

    task.put_packet(Packet("first"))
    receive("a", "first")
    with pytest.raises(InvalidOption, match="already"):
        task.router.add_connection(Connection("a", queues["a"]))
    with pytest.raises(TypeError, match="cannot go to another one"):
        task.router.add_connection(Connection("here", create_queue(scope="thread")))
    task.router.add_connection(Connection("b", queues["b"], batch_size=1))
    task.router.remove_connection("a", stop=True)
    assert queues["a"].get(timeout=60) == StopSignal("far")
    task.put_packet(Packet("second"))
    receive("b", "second")
    task.router.add_connection(Connection("a", queues["a"], batch_size=1))
    function: Callable[[Packet, int], int] = lambda packet, ways: int(packet.payload)  # noqa: E731
    task.router.set_partitioner("", PartitionFunction(function))
    task.router.add_connection(Connection("c", queues["b"], group="told", batch_size=1))
    task.router.remove_connection("c", stop=True)
    assert queues["b"].get(timeout=60) == StopSignal("far")  # all that was before is done, too
    for payload in "0110":
        task.put_packet(Packet(payload))
    for name, payload in ("b", "0"), ("a", "1"), ("a", "1"), ("b", "0"):
        receive(name, payload)
    assert [connection.name for connection in task.router.connections] == ["b", "a"]
    assert task.stop(timeout=60)
    assert task.get_report().error is None
    task.cleanup()
    for queue in queues.values():
        queue.close()


def test_a_task_in_another_process_tells_what_failed_over() -> None:
    task = ProcessTask(TaskContext("teller"), OperatorFactory(MapOperator, str))
    queues: dict[str, Any] = {
        name: create_queue(name=f"teller-{name}", scope="machine") for name in "ab"
    }
    for name, queue in queues.items():
        task.router.add_connection(Connection(name, queue))
    task.start_running()
    queues["a"].shutdown()
    for n in range(10):
        task.put_packet(Packet(n))
    assert task.stop(timeout=30)
    assert sorted(payloads_in(queues["b"])) == sorted(map(str, range(10)))
    assert task.get_status().failed_over == 5
    task.cleanup()
    for queue in queues.values():
        queue.close()


def task_without_downstream(**options: Any) -> LocalTask:
    task = LocalTask(TaskContext("task"), OperatorFactory(MapOperator, str), **options)
    queue: Any = create_queue(scope="thread")
    task.router.add_connection(Connection("ended", queue))
    queue.shutdown()
    task.start_running()
    for n in range(3):
        task.put_packet(Packet(n))
    task.stop(timeout=30)
    return task


def test_the_error_policy_fail_ends_a_task_that_cannot_send() -> None:
    task = task_without_downstream()
    error = task.get_report().error
    assert isinstance(error, PacketError)
    assert isinstance(error.__cause__, DownstreamClosed)
    task.cleanup()


def test_the_error_policy_dead_letter_keeps_what_cannot_be_sent() -> None:
    letters: Any = create_queue(scope="thread")
    task = task_without_downstream(error_policy="dead_letter", dead_letters=letters)
    assert task.state is TaskState.STOPPED
    kept: list[DeadLetter] = [letters.get() for _ in range(3)]
    assert [letter.packet.payload for letter in kept if letter.packet] == ["0", "1", "2"]
    assert kept[0].error == "DownstreamClosed: ended has ended and takes no more packets"
    assert task._error_count == 3
    task.cleanup()


# ---- pipelines ----


class Tagged(BaseOperator):
    """Says which instance had the packet."""

    def process(self, packet: Packet) -> Packet:
        return packet.derive((self.ctx.index, packet.payload))


def numbers() -> Iterator[int]:
    return iter(range(300))


def by_instance(result: Any) -> dict[int, list[int]]:
    received: dict[int, list[int]] = defaultdict(list)
    for index, payload in result.sink_result:
        received[index].append(payload)
    return received


def test_broadcast_between_stages(on: Any) -> None:
    result = Pipeline("p").source(numbers).broadcast().map(Tagged, parallelism=3).sink().run(on)
    assert by_instance(result) == {index: list(range(300)) for index in range(3)}


def test_a_function_chooses_the_instance(on: Any) -> None:
    result = (
        Pipeline("p")
        .source(numbers, parallelism=2)
        .partition_by(lambda packet, ways: packet.payload // 100 % ways)
        .map(Tagged, parallelism=3)
        .sink()
        .run(on)
    )
    received = {index: sorted(payloads) for index, payloads in by_instance(result).items()}
    assert received == {index: list(range(100 * index, 100 * index + 100)) for index in range(3)}


class EvenAndOdd:
    """A partitioner with state of its own."""

    fails_over = False

    def __init__(self) -> None:
        self.calls = 0

    def split(
        self, packets: list[Packet], targets: Sequence[Target], reject: Reject
    ) -> list[list[Packet]]:
        self.calls += 1
        return [[p for p in packets if p.payload % 2 == way] for way in range(len(targets))]


def test_a_partitioner_of_the_users(on: Any) -> None:
    partitioner = EvenAndOdd()
    pipeline = Pipeline("p").source(numbers, parallelism=2).partition_by(partitioner)
    result = pipeline.map(Tagged, parallelism=2).sink().run(on)
    received = {index: sorted(payloads) for index, payloads in by_instance(result).items()}
    assert received == {0: list(range(0, 300, 2)), 1: list(range(1, 300, 2))}
    assert partitioner.calls == 0  # every sender has its own


def test_round_robin_between_stages() -> None:
    result = Pipeline("p").source(numbers).round_robin().map(Tagged, parallelism=3).sink().run()
    assert {index: len(part) for index, part in by_instance(result).items()} == dict.fromkeys(
        range(3), 100
    )


class HeldUp(BaseOperator):
    """The first instance waits, at its first packet, until the others have had nearly all."""

    others = threading.Semaphore(0)
    waits = True

    def process(self, packet: Packet) -> Packet:
        if self.ctx.index > 0:
            self.others.release()
        elif self.waits:
            self.waits = False
            for _ in range(1800):
                assert self.others.acquire(timeout=30)
        return packet


def test_least_loaded_passes_by_an_instance_that_is_held_up() -> None:
    options = TaskOptions(queue_maxsize=50, batch_size=10)
    pipeline = Pipeline("p", options=options).source(range(2000)).least_loaded()
    result = pipeline.map(HeldUp, parallelism=3).sink().run()
    assert sorted(result.sink_result) == list(range(2000))


def test_a_pipeline_shares_packets_in_one_way() -> None:
    with pytest.raises(PipelineError, match="no source"):
        Pipeline("p").broadcast()
    with pytest.raises(PipelineError, match="two ways"):
        Pipeline("p").source([1]).key_by(str).broadcast()
    for partitioner in (RoundRobin, 3, object()):
        with pytest.raises(PipelineError, match="partition_by takes"):
            Pipeline("p").source([1]).partition_by(partitioner)  # type: ignore[arg-type]


def test_keys_may_move_if_told_so() -> None:
    pipeline = Pipeline("p").source([1]).key_by(str, fails_over=True).map(str)
    partitioner = pipeline.stages[-1].partitioner()
    assert isinstance(partitioner, KeyHash)
    assert partitioner.fails_over
    assert partitioner.function is str
