"""What is saved of a batch of which packets cannot be decoded."""

from __future__ import annotations

import enum
import gc
import itertools
import pickle
import pickletools
import random
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagequeue import SageQueue
from sagequeue.errors import DecodeError
from sageruntime import Packet
from sageruntime.communication.router import PacketBatch, StopSignal
from sageruntime.runner.undecodable import Undecodable, salvage

# What can be decoded.


@dataclass
class Point:
    x: Any
    y: Any = None
    tags: list[Any] = field(default_factory=list)


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Colour(enum.Enum):
    RED = 1
    GREEN = "green"


class Box(list[Any]):
    """Filled by APPENDS, then by BUILD."""

    def __init__(self, items: Any = ()) -> None:
        super().__init__(items)
        self.label = "box"


def set_value(target: Any, state: Any) -> None:
    target.value = state


class WithStateSetter:
    """Gets its state by a call whose result is dropped."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return WithStateSetter, (), self.value, None, None, set_value


# What cannot: it is pickled without an error, and raises when it is rebuilt.


def complain(*_: Any) -> Any:
    raise ArithmeticError("no such thing")


class RaisesInFunction:
    def __reduce__(self) -> Any:
        return complain, (1, "two")


class RaisesInState:
    def __init__(self) -> None:
        self.value = [1, 2]

    def __setstate__(self, state: Any) -> None:
        raise LookupError(f"not with {state}")


class RaisesInStateSetter:
    def __reduce__(self) -> Any:
        return RaisesInStateSetter, (), {"a": 1}, None, None, complain


class RaisesInNew:
    def __new__(cls, *arguments: Any) -> Any:
        return complain() if arguments else super().__new__(cls)

    def __getnewargs__(self) -> Any:
        return (1,)


class RaisesInExtend(list[Any]):
    def __reduce__(self) -> Any:
        return RaisesInExtend, (), None, iter([1, 2])

    def extend(self, items: Any) -> None:
        complain()


class RaisesInSetItem(dict[Any, Any]):
    def __reduce__(self) -> Any:
        return RaisesInSetItem, (), None, None, iter([(1, 2)])

    def __setitem__(self, key: Any, value: Any) -> None:
        complain()


class NoSuchSlot:
    __slots__ = ()

    def __reduce__(self) -> Any:
        return NoSuchSlot, (), (None, {"gone": 1})


class OtherSignature(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


class FalseError(Exception):
    def __bool__(self) -> bool:
        return False


def complain_falsely() -> Any:
    raise FalseError


class RaisesFalseError:
    def __reduce__(self) -> Any:
        return complain_falsely, ()


class BecomesList:
    """Can be hashed by the sender, not by the receiver."""

    def __reduce__(self) -> Any:
        return list, ()


class OfMissingModule:
    """Its module is not there when it is received."""


class OfMissingName:
    """It is not in its module when it is received."""


MODULE = types.ModuleType("module_of_missing_name")
OfMissingModule.__module__, OfMissingName.__module__ = "missing_module", MODULE.__name__


@pytest.fixture(scope="module", autouse=True)
def module_of_missing_name() -> Iterator[None]:
    sys.modules[MODULE.__name__] = MODULE
    yield
    del sys.modules[MODULE.__name__]


@contextmanager
def names_of_sender() -> Iterator[None]:
    missing = types.ModuleType("missing_module")
    missing.OfMissingModule = OfMissingModule  # type: ignore[attr-defined]
    MODULE.OfMissingName = OfMissingName  # type: ignore[attr-defined]
    sys.modules["missing_module"] = missing
    try:
        yield
    finally:
        del sys.modules["missing_module"], MODULE.OfMissingName


POISONS: list[Callable[[], Any]] = [
    RaisesInFunction,
    RaisesInState,
    RaisesInStateSetter,
    RaisesInNew,
    RaisesInExtend,
    RaisesInSetItem,
    NoSuchSlot,
    lambda: OtherSignature(4, "teapot"),
    RaisesFalseError,
    OfMissingModule,
    OfMissingName,
    lambda: {BecomesList()},
    lambda: frozenset([BecomesList()]),
    lambda: {BecomesList(): 1},
    lambda: {"a": 1, BecomesList(): 1, "c": 2},
]

Deliver = Callable[[Any], Any]


@pytest.fixture(scope="module", params=["pickle", "cloudpickle", "in band"])
def deliver(request: pytest.FixtureRequest) -> Iterator[Deliver]:
    """Puts a message to a queue; returns what ``get`` returns, or the DecodeError it raises.

    The first two codecs are those of a SageQueue; in band is how a RayQueue sends.
    """
    if request.param == "in band":

        def dump_and_load(message: Any) -> Any:
            with names_of_sender():
                data = cloudpickle.dumps(message)
            try:
                return pickle.loads(data)
            except Exception as error:
                failed = DecodeError("cannot unpickle an item", data)
                failed.__cause__ = error
                return failed

        yield dump_and_load
        return
    with SageQueue[Any](codec=request.param) as queue:

        def put_and_get(message: Any) -> Any:
            with names_of_sender():
                queue.put(message, timeout=10)
            try:
                return queue.get(timeout=10)
            except DecodeError as error:
                return error

        yield put_and_get


def batch_of(*payloads: Any) -> PacketBatch:
    return PacketBatch([Packet(payload) for payload in payloads], 3, 17, "sender", 5, "00-ab-cd-01")


def saved(deliver: Deliver, *payloads: Any) -> tuple[list[Any], list[Undecodable]]:
    batch, undecodable = salvage(deliver(batch_of(*payloads)))
    assert batch is not None
    return [packet.payload for packet in batch.packets], undecodable


def plain(value: Any) -> Any:
    """The same as tuples of types and builtins, which can be compared."""
    kind = type(value)
    if kind is numpy.ndarray:
        return kind, value.dtype.str, value.shape, value.tolist(), value.flags.writeable
    if kind in (list, tuple):
        return kind, [plain(item) for item in value]
    if kind is dict:
        return kind, [(key, plain(item)) for key, item in value.items()]
    if kind is Box:
        return kind, [plain(item) for item in value], value.label
    if kind is Point:
        return kind, plain(value.x), plain(value.y), plain(value.tags)
    if kind in (Slotted, WithStateSetter):
        return kind, plain(value.value)
    return kind, value


def parts_of(value: Any) -> Iterator[Any]:
    """In the order in which they are pickled."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, Point):
        yield from (value.x, value.y, value.tags)
    elif isinstance(value, (Slotted, WithStateSetter)):
        yield value.value


def first_of(poisons: list[Any], value: Any) -> Any:
    """The first of these in the value, which is met first when it is decoded; or None."""
    if any(value is poison for poison in poisons):
        return value
    found = (first_of(poisons, part) for part in parts_of(value))
    return next((poison for poison in found if poison is not None), None)


def same(error: BaseException, other: BaseException) -> bool:
    return type(error) is type(other) and str(error) == str(other)


literals = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.sampled_from(Colour)
    | st.frozensets(st.integers(), max_size=3)
    | st.sets(st.text(max_size=3), max_size=3)
)
arrays = st.lists(st.integers(0, 255), max_size=8).map(lambda items: numpy.array(items, "u2"))


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        lists = st.lists(inner, max_size=3)
        return (
            lists
            | lists.map(tuple)
            | lists.map(Box)
            | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            | st.builds(Point, inner, inner, lists)
            | st.builds(Slotted, inner)
            | st.builds(WithStateSetter, inner)
        )

    return st.recursive(leaves, around, max_leaves=8)


def one_of(drawn: st.SearchStrategy[list[Any]], key: str) -> st.SearchStrategy[Any]:
    """One of some objects that are the same ones everywhere in an example."""
    return st.builds(
        lambda items, i: items[i % len(items)], st.shared(drawn, key=key), st.integers(0, 2)
    )


poison_lists = st.lists(st.sampled_from(POISONS).map(lambda make: make()), min_size=1, max_size=3)
poisons = one_of(poison_lists, "poisons")
shared = one_of(st.lists(nested(literals | arrays | poisons), min_size=1, max_size=3), "shared")
batches = st.builds(
    lambda packets, poisons: ([*packets, Packet(poisons[0])], poisons),
    st.lists(
        st.builds(
            Packet, nested(literals | arrays | shared | poisons), key=literals | shared | poisons
        ),
        max_size=12,
    ).flatmap(st.permutations),
    st.shared(poison_lists, key="poisons"),
)


@settings(deadline=None, max_examples=100)
@given(batches)
def test_all_packets_are_saved_but_those_with_the_object_that_cannot_be_decoded(
    deliver: Deliver, drawn: tuple[list[Packet], list[Any]]
) -> None:
    packets, poisons = drawn
    error = deliver(PacketBatch(list(packets), 3, 17, "sender", 5, "00-ab-cd-01"))
    batch, undecodable = salvage(error)

    lost = [first_of(poisons, [packet.payload, packet.key]) for packet in packets]
    good = [packet for packet, poison in zip(packets, lost) if poison is None]
    assert batch is not None
    assert [plain(packet.payload) for packet in batch.packets] == [
        plain(packet.payload) for packet in good
    ]
    assert [(plain(packet.key), packet.timestamp, packet.id) for packet in batch.packets] == [
        (plain(packet.key), packet.timestamp, packet.id) for packet in good
    ]
    assert {packet.input_index for packet in batch.packets} <= {3}
    assert (batch.input_index, batch.sent_at, batch.sender) == (3, 17, "sender")
    assert (batch.attempt, batch.traceparent) == (5, "00-ab-cd-01")

    alone = {id(poison): deliver(batch_of(poison)).__cause__ for poison in poisons}
    causes = [alone[id(poison)] for poison in lost if poison is not None]
    assert len(undecodable) == len(causes)
    assert all(same(one.error, cause) for one, cause in zip(undecodable, causes))
    place = 0
    for one in undecodable:
        place = error.data.index(one.raw, place) + len(one.raw)


@pytest.mark.parametrize("poison", POISONS)
def test_each_kind_alone(deliver: Deliver, poison: Callable[[], Any]) -> None:
    error = deliver(batch_of("before", poison(), "behind"))
    batch, undecodable = salvage(error)
    assert batch is not None
    assert [packet.payload for packet in batch.packets] == ["before", "behind"]
    assert len(undecodable) == 1
    assert same(undecodable[0].error, error.__cause__)


@pytest.mark.parametrize("size", [1, 2, 999, 1000, 1001, 1002, 2500])
def test_batches_of_any_size(deliver: Deliver, size: int) -> None:
    """Lists are pickled in groups of a thousand."""
    places = {0, size - 1, *random.Random(size).choices(range(size), k=5)}
    packets = [
        Packet(f"payload {i}" if i not in places else [i, RaisesInState()], key=f"key {i}")
        for i in range(size)
    ]
    batch, undecodable = salvage(deliver(PacketBatch(list(packets))))
    assert batch is not None
    assert batch.packets == [packet for i, packet in enumerate(packets) if i not in places]
    assert len(undecodable) == len(places)


def test_one_cause_can_lose_them_all(deliver: Deliver) -> None:
    poison = RaisesInFunction()
    good, undecodable = saved(deliver, *([poison, i] for i in range(1500)))
    assert good == []
    assert len(undecodable) == 1500


@pytest.mark.parametrize("before", [0, 1, 2, 999, 1000, 1001])
def test_raw_bytes_are_those_of_the_payload(deliver: Deliver, before: int) -> None:
    """Large payloads are followed by the beginning of a frame, which is not of the next payload."""
    large = b"x" * 70_000
    payload = [("begin", RaisesInFunction()), "end"]
    _, undecodable = saved(deliver, *range(before), large, payload, bytearray(large), "behind")
    head = len(pickle.PROTO + b"\5" + pickle.FRAME) + 8
    assert [one.raw for one in undecodable] == [pickle.dumps(payload, 5)[head:-1]]


def test_raw_bytes_of_a_lost_key_are_those_of_the_payload(deliver: Deliver) -> None:
    packets = [Packet("a", key=1), Packet("payload", key=RaisesInFunction()), Packet("b", key=2)]
    batch, undecodable = salvage(deliver(PacketBatch(list(packets))))
    assert batch is not None
    assert batch.packets == [packets[0], packets[2]]
    assert [one.raw for one in undecodable] == [b"\x8c\x07payload\x94"]


def test_good_objects_of_a_lost_payload_are_there_for_other_payloads(deliver: Deliver) -> None:
    """Before and behind what is lost, and the same object for all."""
    first, last = ["first"], Point("last")
    good, undecodable = saved(deliver, [first, RaisesInState(), last], [first, last], last)
    assert plain(good) == plain([[first, last], last])
    assert good[0][1] is good[1]
    assert len(undecodable) == 1


def test_what_holds_a_lost_object_is_lost_even_if_that_was_found_out_later(
    deliver: Deliver,
) -> None:
    outer: list[Any] = []
    inner = (outer,)
    outer += [inner, {"deep": [RaisesInFunction()]}]
    for payloads in ([outer, inner], [inner, outer], [[inner], inner, outer]):
        good, undecodable = saved(deliver, ["above"], *payloads, "below")
        assert good == [["above"], "below"]
        assert len(undecodable) == len(payloads)


def test_a_function_that_sets_a_state_takes_only_its_object_along(deliver: Deliver) -> None:
    poison = RaisesInFunction()
    outer: list[Any] = []
    in_cycle = WithStateSetter(outer)
    outer += [in_cycle, poison]
    whole = WithStateSetter("whole")
    payloads = [whole, WithStateSetter([poison]), RaisesInStateSetter(), outer, in_cycle, [whole]]
    good, undecodable = saved(deliver, *payloads)
    assert plain(good) == plain([whole, [whole]])
    assert good[0] is good[1][0]
    assert len(undecodable) == 4


@pytest.mark.parametrize("deliver", ["cloudpickle", "in band"], indirect=True)
def test_functions_and_classes_by_value(deliver: Deliver) -> None:
    def returning(value: Any) -> Callable[[], Any]:
        return lambda: value

    class Local:
        def __init__(self, value: Any) -> None:
            self.value = value

        def __eq__(self, other: object) -> bool:
            return type(self).__name__ == type(other).__name__

    class Poisoned:
        attribute = RaisesInFunction()

    payloads = [Poisoned(), returning(RaisesInState()), Local(1), returning(2), Poisoned, Local]
    good, undecodable = saved(deliver, *payloads)
    assert [good[0].value, good[1](), good[2](3).value] == [1, 2, 3]
    assert type(good[0]) is good[2]
    assert len(undecodable) == len(payloads) - len(good) == 3


def test_buffers_are_as_without_an_error(deliver: Deliver) -> None:
    fixed = numpy.arange(4)
    fixed.flags.writeable = False
    payloads = [
        numpy.arange(5),
        fixed,
        numpy.asfortranarray(numpy.ones((2, 3))),
        pickle.PickleBuffer(b"bytes"),
        pickle.PickleBuffer(bytearray(b"bytearray")),
        numpy.array(["objects", None]),
    ]
    whole = [packet.payload for packet in deliver(batch_of(*payloads)).packets]
    arrays_lost = [numpy.arange(3), RaisesInFunction(), numpy.arange(6)]
    good, undecodable = saved(deliver, payloads[0], arrays_lost, *payloads[1:])
    assert plain(good) == plain(whole)
    assert len(undecodable) == 1


built: list[str] = []


class Counted:
    def __init__(self, name: str) -> None:
        self.name = name

    def __setstate__(self, state: dict[str, str]) -> None:
        built.append(state["name"])


def test_every_constructor_runs_once_more_at_most(deliver: Deliver) -> None:
    error = deliver(batch_of(Counted("a"), [Counted("b"), RaisesInState(), Counted("c")]))
    assert built == ["a", "b"]
    built.clear()
    salvage(error)
    assert built == ["a", "b", "c"]
    built.clear()


def test_what_holds_a_lost_object_is_not_called(deliver: Deliver) -> None:
    """Its constructor would get something that its sender did not send."""
    lost = Counted("outer")
    lost.inner = [RaisesInState()]  # type: ignore[attr-defined]
    _, undecodable = saved(deliver, lost)
    assert len(undecodable) == 1
    assert built == []


def test_an_error_that_has_gone_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps(batch_of("before", Counted("x"), "behind"), 5)
    batch, undecodable = salvage(DecodeError("it was for a while", data))
    assert batch is not None
    assert len(batch.packets) == 3
    assert undecodable == []
    built.clear()


def test_nothing_is_kept_for_the_garbage_collector(deliver: Deliver) -> None:
    """An error keeps the frames it came through; they must not keep the batch."""
    cycle: list[Any] = [Point(1)]
    cycle.append(cycle)
    payloads = [Point(0), RaisesInState(), [RaisesInFunction(), RaisesInState()], cycle, Point(2)]
    error = deliver(batch_of(*payloads, WithStateSetter(Point(3))))
    gc.collect()
    gc.disable()
    try:
        batch, undecodable = salvage(error)
        assert batch is not None
        points = [weakref.ref(batch.packets[i].payload) for i in (0, 2, 3)]
        del batch
        assert [point() for point in points] == [None, None, None]
        assert undecodable[0].error.__traceback__ is not None
    finally:
        gc.enable()


def as_batch(function: Any, *arguments: Any) -> bytes:
    class Message:
        def __reduce__(self) -> Any:
            return function, arguments

    return pickle.dumps(Message(), 5)


rebuild, columns = batch_of("a", RaisesInFunction(), "c").__reduce__()
payloads, keys, timestamps, ids, *others = columns


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pickle.dumps(None),
        pickle.dumps("text"),
        pickle.dumps(StopSignal("sender")),
        pickle.dumps([RaisesInFunction()]),
        pickle.dumps(RaisesInFunction()),
        pickle.dumps(batch_of("a", RaisesInFunction()))[:-1],
        as_batch(complain, *columns),
        as_batch(rebuild),
        as_batch(rebuild, payloads, keys),
        as_batch(rebuild, RaisesInState(), keys, timestamps, ids, *others),
        as_batch(rebuild, payloads, RaisesInState(), timestamps, ids, *others),
        as_batch(rebuild, payloads, keys, RaisesInState(), ids, *others),
        as_batch(rebuild, payloads, keys, timestamps, RaisesInState(), *others),
        as_batch(rebuild, payloads, keys, timestamps, ids, 0, 0, RaisesInState(), 0, None),
        as_batch(rebuild, payloads[:2], keys, timestamps, ids, *others),
        as_batch(rebuild, payloads, keys[:2], timestamps, ids, *others),
        as_batch(rebuild, payloads, keys, timestamps[:-8], ids, *others),
        as_batch(rebuild, payloads, keys, timestamps, ids[:-1], *others),
        as_batch(rebuild, payloads, keys, "text", ids, *others),
        as_batch(rebuild, tuple(payloads), keys, timestamps, ids, *others),
        as_batch(rebuild, payloads, keys, timestamps, ids, *others, "one more"),
        b"\x80\5" + b"]" * 20_000 + b"a" * 19_999 + b".",
        b"\x80\5" + b"(" * 20_000 + b"t" * 20_000 + b".",
    ],
)
def test_what_is_no_batch_is_undecodable_as_a_whole(data: bytes) -> None:
    error = DecodeError("cannot be decoded", data)
    assert salvage(error) == (None, [(error, data)])
    error.__cause__ = cause = ValueError("why")
    assert salvage(error) == (None, [(cause, data)])


def test_a_message_that_was_no_pickle() -> None:
    error = DecodeError("cannot be decoded")
    assert salvage(error) == (None, [(error, b"")])


def raise_it(kind: type[BaseException]) -> Any:
    raise kind("for another reason")


class Raises:
    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        return raise_it, (self.kind,)


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt])
def test_what_says_nothing_about_the_packet_is_passed_on(kind: type[BaseException]) -> None:
    data = pickle.dumps(batch_of("good", Raises(kind)), 5)
    with pytest.raises(kind, match="for another reason"):
        salvage(DecodeError("cannot be decoded", data))


# Damaged bytes are not given to the C unpickler, which can take all memory for them.

SOUND = pickle.dumps(
    PacketBatch(
        [
            Packet({"a": [1, 2.5, "three"], "b": (None, True, 1 << 70)}, key="k"),
            Packet([RaisesInFunction(), Point(1, 2)], key=7),
            Packet({1, 2}, key=b"bytes"),
            Packet([Point("x" * 300), Colour.RED, frozenset({3}), bytearray(b"array")]),
            Packet(WithStateSetter(OtherSignature(1, "x"))),
            Packet(Box([1, 2]), key=RaisesInState()),
        ]
    ),
    5,
)


def check_damaged(data: bytes) -> None:
    batch, undecodable = salvage(DecodeError("cannot be decoded", data))
    if batch is None:
        assert [one.raw for one in undecodable] == [data]
    else:
        assert all(isinstance(packet, Packet) for packet in batch.packets)
        assert all(one.raw in data for one in undecodable)
        assert all(isinstance(one.error, Exception) for one in undecodable)


def test_any_truncated_batch_is_undecodable_as_a_whole() -> None:
    for size in range(len(SOUND)):
        error = DecodeError("cannot be decoded", SOUND[:size])
        assert salvage(error) == (None, [(error, SOUND[:size])])


def test_any_scribbled_byte() -> None:
    rng = random.Random(1)
    for place in range(len(SOUND)):
        for byte in (0, 255, rng.randrange(256), SOUND[place] ^ 1 << rng.randrange(8)):
            check_damaged(SOUND[:place] + bytes([byte]) + SOUND[place + 1 :])


OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
places = st.integers(0, len(SOUND))
pieces = st.binary(max_size=8) | st.lists(st.sampled_from(OPCODES), max_size=8).map(b"".join)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(places, st.integers(0, 8), pieces), min_size=1, max_size=4))
def test_scribbled_batches(damages: list[tuple[int, int, bytes]]) -> None:
    data = SOUND
    for place, length, piece in damages:
        data = data[:place] + piece + data[place + length :]
    check_damaged(data)


@settings(deadline=None, max_examples=300)
@given(st.lists(pieces, max_size=20))
def test_any_bytes(written: list[bytes]) -> None:
    check_damaged(b"\x80\5" + b"".join(itertools.chain(written, (pickle.STOP,))))
