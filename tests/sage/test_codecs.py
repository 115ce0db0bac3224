"""Every kind of item comes out as it went in; bad bytes come out as typed errors."""

from __future__ import annotations

import contextlib
import copyreg
import datetime
import gc
import mmap
import multiprocessing as mp
import pickle
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagequeue.codecs import register_codec
from sagequeue.errors import (
    CorruptSegment,
    DecodeError,
    EncodeError,
    InvalidOption,
)
from sagequeue.queue import SageQueue

SLOT_BODY = 112  # bytes of a default slot's body


@pytest.fixture(params=["pickle", "cloudpickle"])
def queue(request: pytest.FixtureRequest) -> Iterator[SageQueue[Any]]:
    with SageQueue[Any](codec=request.param) as queue:
        yield queue


def through(queue: SageQueue[Any], item: Any) -> Any:
    queue.put(item)
    result = queue.get_nowait()
    queue.put_many([item])
    (again,) = queue.get_many()
    assert type(result) is type(again)
    return result


@pytest.mark.parametrize(
    "item",
    [
        b"",
        b"x" * (SLOT_BODY - 1),
        b"x" * SLOT_BODY,
        b"x" * (SLOT_BODY + 1),
        b"x" * 300_000,
        bytearray(b"abc"),
        bytearray(500),
        "",
        "text",
        "größer" * 100,
        "\ud800 alone",
        0,
        -1,
        2**63 - 1,
        -(2**63),
        2**63,
        10**50,
        True,
        False,
        None,
        0.0,
        -1.5e300,
        float("inf"),
        {"id": 1, "tags": ["a", "b"], "nested": {"x": (1, 2.5)}},
        datetime.date(2020, 1, 2),
        [1] * 10_000,
    ],
    ids=lambda item: f"{type(item).__name__}-{len(repr(item))}",
)
def test_item_comes_out_equal_and_of_its_type(queue: SageQueue[Any], item: Any) -> None:
    result = through(queue, item)
    assert result == item
    assert type(result) is type(item)


def test_code_goes_along_where_it_was_asked_for() -> None:
    class Order:
        def __init__(self, number: int) -> None:
            self.number = number

    with SageQueue[Any]() as queue, pytest.raises(EncodeError, match="codec 'pickle'"):
        queue.put(Order(1))
    with SageQueue[Any](codec="cloudpickle") as queue:
        assert through(queue, lambda: 3)() == 3
        assert through(queue, Order(2)).number == 2
        with pytest.raises(EncodeError, match="codec 'cloudpickle'"):
            queue.put(threading.Lock())
        assert through(queue, Order(3)).number == 3


CODE = """
import sys
from sagequeue.queue import SageQueue

class Order:
    number = 5

with SageQueue(codec="cloudpickle") as queue:
    print(queue.name, flush=True)
    queue.put((Order(), lambda: Order.number))
    sys.stdin.read()
"""


def test_code_of_a_script_runs_in_another_process() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as script:
        assert script.stdin is not None
        assert script.stdout is not None
        with SageQueue[Any].attach(script.stdout.readline().strip()) as queue:
            order, number = queue.get(timeout=30)
            assert type(order).__module__ == "__main__"
            assert order.number == number() == 5
        script.stdin.close()
    assert script.returncode == 0


def test_functions_of_two_items_share_nothing() -> None:
    scope: dict[str, Any] = {"__name__": "__main__", "total": 0}
    exec("def add():\n    global total\n    total += 1\n    return total", scope)
    with SageQueue[Any](codec="cloudpickle") as queue:
        queue.put_many([(scope["add"], scope["add"]), scope["add"]])
        (one, other), third = queue.get_many()
        assert (one(), other(), third()) == (1, 2, 1)


def test_a_subclass_keeps_its_class(queue: SageQueue[Any]) -> None:
    assert type(through(queue, datetime.timedelta(1))) is datetime.timedelta
    assert type(through(queue, np.float64(1.5))) is np.float64


@pytest.mark.parametrize("view", [memoryview(b"abcdef"), memoryview(b"abcdef")[::2]])
def test_memoryview_arrives_as_bytes(queue: SageQueue[Any], view: memoryview) -> None:
    assert through(queue, view) == bytes(view)


ARRAYS = {
    "small": np.arange(5),
    "empty": np.zeros((0, 3)),
    "scalar": np.array(3.5),
    "large": np.arange(300_000, dtype=np.float32).reshape(300, 1000),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "strided": np.arange(40)[::3],
    "big-endian": np.arange(7, dtype=">i4"),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "text": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "dates": np.array(["2020-01-01", "2021-06-05"], dtype="M8[D]"),
    "durations": np.array([1, 2], dtype="m8[ms]"),
    "half": np.arange(3, dtype=np.float16),
    "records": np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
    "objects": np.array([{"a": 1}, None], dtype=object),
    "many-dimensional": np.zeros((1,) * 14),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(queue: SageQueue[Any], name: str) -> None:
    array = ARRAYS[name]
    result = through(queue, array)
    assert type(result) is np.ndarray
    assert result.dtype == array.dtype
    assert result.shape == array.shape
    assert np.array_equal(result, array)
    assert result.flags.writeable
    assert result.flags.f_contiguous == array.flags.f_contiguous or name == "strided"


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a list"])
@pytest.mark.parametrize("name", [name for name in ARRAYS if name != "empty"])
def test_arrays_come_out_writable_wherever_they_stand(
    queue: SageQueue[Any], name: str, inside: bool
) -> None:
    """What ``get`` returns is a copy of its own, so a read-only array need not stay read-only."""
    fixed = ARRAYS[name].copy(order="K")
    fixed.flags.writeable = False
    result = through(queue, [fixed, b"beside it"] if inside else fixed)
    array = result[0] if inside else result
    assert np.array_equal(array, fixed)
    assert array.dtype == fixed.dtype
    assert array.flags.writeable
    array[...] = np.zeros((), array.dtype)
    assert np.array_equal(fixed, ARRAYS[name])


@pytest.mark.parametrize("beside", [[], [pickle.PickleBuffer(b"x")]], ids=["alone", "mixed"])
@pytest.mark.parametrize("size", [100, 100_000])
def test_a_buffer_arrives_as_a_buffer_of_its_kind(
    queue: SageQueue[Any], size: int, beside: list[Any]
) -> None:
    frozen, changeable, array = bytes(size), bytearray(size), np.zeros(size, "u1")
    item = [*map(pickle.PickleBuffer, (frozen, changeable, array)), np.zeros(size), *beside]
    result = through(queue, item)
    kinds = [bytes, bytearray, memoryview, np.ndarray, *[bytes] * len(beside)]
    assert [type(part) for part in result] == kinds
    assert result[:3] == [frozen, changeable, array]
    alone = through(queue, pickle.PickleBuffer(array))
    assert type(alone) is memoryview
    assert not alone.readonly


FOREIGN_DTYPES = [
    *map(np.dtype, (ml_dtypes.float8_e5m2, ml_dtypes.bfloat16, ml_dtypes.int4)),
    *map(np.dtype, ("S0", "U0", "V0")),
]


@pytest.mark.parametrize("dtype", FOREIGN_DTYPES, ids=str)
def test_a_dtype_that_its_name_does_not_give_back(queue: SageQueue[Any], dtype: Any) -> None:
    array = np.zeros(3, [("field", dtype), ("other", "i4")])["field"]
    for item in (array, np.ascontiguousarray(array)):
        result = through(queue, item)
        assert result.dtype == item.dtype
        assert result.tobytes() == item.tobytes()
    assert through(queue, [array])[0].dtype == array.dtype
    with pytest.raises(InvalidOption, match="plain dtype"), queue.loan(3, dtype):
        pass


@pytest.mark.parametrize("first", ["plain", "with metadata"])
def test_metadata_of_a_dtype_is_kept_and_is_of_no_other_array(
    queue: SageQueue[Any], first: str
) -> None:
    width = 11 if first == "plain" else 13  # a dtype that no other test has put
    plain = np.zeros(3, f"S{width}")
    described = np.zeros(3, np.dtype(f"S{width}", metadata={"unit": "m"}))
    for array in (plain, described) if first == "plain" else (described, plain):
        assert through(queue, array).dtype.metadata == array.dtype.metadata
        assert through(queue, [array])[0].dtype.metadata == array.dtype.metadata
    if queue.codec_name == "pickle":
        with queue.loan(3, plain.dtype) as lent:
            lent[:] = b"x"
        assert queue.get().tolist() == [b"x"] * 3


def test_of_many_dtypes_not_all_are_remembered() -> None:
    def put_some(widths: range) -> int:
        with SageQueue[Any]() as queue:
            for width in widths:
                array = np.array([b"x"], f"S{width}")
                queue.put(array)
                assert queue.get().dtype == array.dtype
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = put_some(range(20_000, 22_000))
        after = put_some(range(22_000, 24_000))
    finally:
        tracemalloc.stop()
    assert after < before + 100_000


def test_what_multiprocessing_alone_can_pickle(queue: SageQueue[Any]) -> None:
    ours, theirs = mp.Pipe()
    queue.put(theirs)
    received = queue.get()
    ours.send("hello")
    assert received.recv() == "hello"


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(items=st.lists(plain, min_size=1, max_size=20))
def test_any_plain_items(items: list[Any]) -> None:
    with SageQueue[Any]() as queue:
        queue.put_many(items)
        assert [queue.get_nowait() for _ in items] == items


def test_an_item_that_cannot_be_pickled_is_refused_and_harms_nothing(
    queue: SageQueue[Any],
) -> None:
    queue.put("before")
    with pytest.raises(EncodeError, match=r"cannot encode a lock.*nothing was put"):
        queue.put(threading.Lock())
    queue.put("after")
    assert queue.qsize() == 2
    assert queue.get_many() == ["before", "after"]


class Failing:
    """Fails to be pickled, after what stands before it was."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("no")


class Witness:
    """Something that can be seen to go."""


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Failing(RuntimeError), EncodeError),
        (lambda: Failing(KeyboardInterrupt), KeyboardInterrupt),
        (threading.Lock, EncodeError),
        (lambda: pickle.PickleBuffer(memoryview(b"abcd")[::2]), EncodeError),
    ],
    ids=["error", "Ctrl-C", "lock", "buffer with holes"],
)
def test_an_item_that_was_refused_is_not_kept(
    queue: SageQueue[Any], make: Callable[[], Any], expected: type[BaseException]
) -> None:
    for put in (queue.put, lambda item: queue.put_many([item])):
        witness = Witness()
        seen = weakref.ref(witness)
        with pytest.raises(expected):
            put([witness, bytearray(10), np.zeros(10), make()])
        del witness
        gc.collect()
        assert seen() is None
        assert through(queue, {"after": 1}) == {"after": 1}


@pytest.mark.parametrize("codec", ["pickle", "cloudpickle", "raw"])
def test_a_released_memoryview_is_refused(codec: str) -> None:
    view = memoryview(b"abc")
    view.release()
    with SageQueue[Any](codec=codec) as queue:
        with pytest.raises(EncodeError, match=f"codec '{codec}'.*released"):
            queue.put(view)
        with pytest.raises(EncodeError) as caught:
            queue.put_many([b"1", b"2", view])
        assert caught.value.accepted == 2


def test_a_large_item_leaves_nothing_behind(queue: SageQueue[Any]) -> None:
    """A pickler's memo never shrinks, and clearing it takes as long as it is large."""

    def held_after(size: int, small: int) -> int:
        queue.put([str(i) for i in range(size)])
        queue.get()
        for _ in range(small):
            queue.put((1, "a"))
            queue.get()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    held_after(10, 10)
    tracemalloc.start()
    try:
        before = held_after(10, 10)
        assert held_after(100_000, 0) < before + 20_000
        assert held_after(3_000, 10) < before + 20_000
        assert held_after(1_000, 10) < before + 20_000
    finally:
        tracemalloc.stop()


def test_putting_a_text_leaves_it_as_it_is(queue: SageQueue[Any]) -> None:
    text = "größer" * 10_000
    size = sys.getsizeof(text)
    assert through(queue, text) == text
    assert sys.getsizeof(text) == size


class Registered:
    """Says how it was reduced."""

    def __init__(self, how: str = "by itself") -> None:
        self.how = how


def first_reducer(item: Registered) -> Any:
    return Registered, ("first",)


def second_reducer(item: Registered) -> Any:
    return Registered, ("second",)


@pytest.mark.parametrize(
    ("register", "table"),
    [
        (copyreg.pickle, copyreg.dispatch_table),
        (ForkingPickler.register, ForkingPickler._extra_reducers),  # type: ignore[attr-defined]
    ],
    ids=["copyreg", "multiprocessing"],
)
def test_the_reducer_that_is_registered_now_is_used(
    queue: SageQueue[Any], register: Callable[..., None], table: dict[Any, Any]
) -> None:
    try:
        assert through(queue, Registered()).how == "by itself"
        for reducer in (first_reducer, second_reducer, first_reducer):
            register(Registered, reducer)
            assert f"{through(queue, Registered()).how}_reducer" == reducer.__name__
    finally:
        del table[Registered]
    assert through(queue, Registered()).how == "by itself"


def test_put_many_says_how_many_went_in_before_the_bad_one(queue: SageQueue[Any]) -> None:
    with pytest.raises(EncodeError) as caught:
        queue.put_many([1, b"x" * 1000, threading.Lock(), 4])
    assert caught.value.accepted == 2
    assert queue.get_many() == [1, b"x" * 1000]


class Unloadable:
    def __reduce__(self) -> Any:
        return (int, ("no number",))


def test_an_item_that_cannot_be_unpickled_raises_in_its_place(queue: SageQueue[Any]) -> None:
    queue.put_many([1, Unloadable(), 3])
    assert queue.get_many() == [1]
    assert queue.qsize() == 2
    with pytest.raises(DecodeError, match="no number"):
        queue.get()
    assert queue.get() == 3
    assert queue.empty()


def test_an_item_that_cannot_be_unpickled_is_consumed_by_get_and_not_by_a_lease(
    queue: SageQueue[Any],
) -> None:
    queue.put(Unloadable())
    with queue.claim() as lease:
        with pytest.raises(DecodeError) as caught:
            _ = lease.item
        assert "consumed" not in str(caught.value)
        lease.reject()
    with pytest.raises(DecodeError, match="it is consumed"):
        queue.get()
    assert queue.empty()


def overwrite_and_fail(*buffers: Any) -> None:
    for buffer in buffers:
        memoryview(buffer)[:] = bytes(len(buffer))
    raise ValueError("no such item")


class Overwritten:
    """Unpickling it overwrites its buffers, as far as they can be written, and fails."""

    def __init__(self, *sizes: int) -> None:
        self.contents = [bytes([number]) * size for number, size in enumerate(sizes, 1)]

    def __reduce__(self) -> Any:
        return overwrite_and_fail, tuple(map(pickle.PickleBuffer, map(bytearray, self.contents)))


def take(queue: SageQueue[Any]) -> Any:
    return queue.get()


def take_many(queue: SageQueue[Any]) -> Any:
    return queue.get_many()


def take_leased(queue: SageQueue[Any]) -> Any:
    with queue.claim() as lease:
        try:
            return lease.item
        except DecodeError:
            lease.release()
            raise


@pytest.mark.parametrize("get", [take, take_many, take_leased])
@pytest.mark.parametrize("sizes", [(), (0,), (3, 5), (300, 100_000, 70)])
def test_an_item_that_cannot_be_decoded_comes_with_its_error_as_it_travelled(
    queue: SageQueue[Any],
    get: Callable[[SageQueue[Any]], Any],
    sizes: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    item = Overwritten(*sizes)
    queue.put(item)
    with pytest.raises(DecodeError) as caught:
        get(queue)
    assert caught.value.buffers == tuple(item.contents)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.data, again.buffers) == (
        str(caught.value),
        caught.value.data,
        caught.value.buffers,
    )
    monkeypatch.setitem(globals(), "overwrite_and_fail", lambda *buffers: list(buffers))
    assert pickle.loads(again.data, buffers=again.buffers) == item.contents


def test_the_error_of_an_item_that_was_no_pickle_comes_without_one() -> None:
    def decode(data: bytes) -> Any:
        raise ValueError("never")

    register_codec("no-pickle", bytes, decode)
    with SageQueue[Any](codec="no-pickle") as queue:
        queue.put(b"abc")
        with pytest.raises(DecodeError) as caught:
            queue.get()
        assert (caught.value.data, caught.value.buffers) == (None, ())


def test_raw_carries_bytes_only() -> None:
    with SageQueue[Any](codec="raw") as queue:
        assert through(queue, b"abc") == b"abc"
        assert through(queue, bytearray(b"abc")) == bytearray(b"abc")
        with pytest.raises(EncodeError, match="cannot encode a str"):
            queue.put("text")


def test_msgpack() -> None:
    with SageQueue[Any](codec="msgpack") as queue:
        assert through(queue, {"a": [1, 2.5, None, "x", b"y"]}) == {"a": [1, 2.5, None, "x", b"y"]}
        with pytest.raises(EncodeError):
            queue.put(object())


def test_a_codec_of_ones_own() -> None:
    register_codec("upper", lambda text: text.upper().encode(), bytes.decode)
    with SageQueue[Any](codec="upper") as queue, SageQueue[Any].attach(queue.name) as other:
        queue.put("abc")
        assert other.codec_name == "upper"
        assert other.get() == "ABC"


def test_a_codec_that_returns_no_bytes() -> None:
    register_codec("wrong", lambda item: item, bytes.decode)
    with SageQueue[Any](codec="wrong") as queue, pytest.raises(EncodeError, match="expected bytes"):
        queue.put(3)


def test_unknown_codec() -> None:
    with pytest.raises(InvalidOption, match="known: .*pickle"):
        SageQueue(codec="nonesuch")


@pytest.mark.parametrize("name", ["pickle", "x" * 32, "", "ünicode"])
def test_codec_names(name: str) -> None:
    with pytest.raises(InvalidOption):
        register_codec(name, bytes, bytes)


def test_bytes_that_no_codec_writes(queue: SageQueue[Any]) -> None:
    path = f"/dev/shm/sagequeue-{queue.name}"
    queue.put(b"needle in the segment")
    with open(path, "r+b") as file:
        start = file.read(1 << 20).index(b"needle in the segment")
        file.seek(start - 4)  # the tag, in the slot's header
        file.write(bytes([99]))
    with pytest.raises(CorruptSegment, match="tag 99"):
        queue.get()


class Reduced:
    """Pickling it runs Python code, in which another thread may get its turn."""

    def __reduce__(self) -> tuple[Any, ...]:
        time.sleep(0)
        return Reduced, ()


def test_threads_that_pickle_at_the_same_time() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with SageQueue[Any](4000) as queue:
            putting = [
                threading.Thread(target=queue.put_many, args=([Reduced()] * 500,)) for _ in range(8)
            ]
            for thread in putting:
                thread.start()
            for thread in putting:
                thread.join()
            assert [type(item) for item in queue.get_many(4000)] == [Reduced] * 4000
    finally:
        sys.setswitchinterval(interval)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[int, bytes]:
    """A tag and a body. No pickle: unpickling what a stranger wrote is safe for nobody."""
    tag = draw(st.integers(0, 40).filter(lambda tag: tag != 10))
    if tag == 13:  # a pickle, here of no bytes, and its buffers
        count, *sizes = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))
        small = draw(st.booleans())
        count, sizes = (len(sizes), [size % 256 for size in sizes]) if small else (count, sizes)
        return tag, struct.pack(f"<QQ{len(sizes)}Q", count % 2**32, 0, *sizes) + bytes(112)
    if tag == 9:  # an array: dimensions, order, length of the dtype's name, offset of the data
        head = draw(st.tuples(*[st.integers(0, 255)] * 4, st.integers(0, 2**32 - 1)))
        shape = draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3))
        small = draw(st.booleans())
        if small:
            head, shape = (len(shape), 0, 3, 0, 64), [extent % 5 for extent in shape]
        elif draw(st.booleans()):  # nothing in it, however large
            head, shape = (len(shape), 0, 3, 0, 112), [0, *shape[1:]]
        name = draw(st.sampled_from([b"<i8", b"<f4", b"|O8", b"<M8", b"|S0"]))
        return tag, struct.pack(f"<4BI{len(shape)}q", *head, *shape) + name + bytes(112)
    return tag, draw(st.binary(max_size=112))


@pytest.mark.parametrize("claim", [False, True], ids=["get", "claim"])
def test_whatever_a_body_holds_it_is_an_item_or_an_error(claim: bool) -> None:
    with SageQueue[Any](capacity=2) as queue:
        with open(f"/dev/shm/sagequeue-{queue.name}", "r+b") as file:
            segment = mmap.mmap(file.fileno(), 1 << 16)
        (slots,) = struct.unpack_from("<Q", segment, 72)
        position = 0

        @settings(max_examples=400, derandomize=True, deadline=None)
        @given(bodies())
        def put_and_get(message: tuple[int, bytes]) -> None:
            nonlocal position
            tag, body = message[0], message[1][:112]
            queue.put(body)
            segment[slots + position % 2 * 128 + 12] = tag
            position += 1
            with contextlib.suppress(CorruptSegment, DecodeError):
                if claim:
                    lease = queue.claim()
                    try:
                        repr(lease.item)
                    finally:
                        lease.release()
                else:
                    repr(queue.get())
            assert queue.empty()

        put_and_get()
        segment.close()
