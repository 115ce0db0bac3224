"""What can be saved of a batch of which a packet cannot be decoded.

A batch is one pickle, so one payload that cannot be rebuilt makes all of it undecodable. Here the
pickle is run again, one opcode at a time. An opcode that fails, or that needs an object for which
one failed, leaves a lost object on the stack, and the next opcode is run. At the end, the packets
without a lost object in them are good.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple, cast

from sagequeue.errors import DecodeError
from sageruntime.communication.router import Packet, PacketBatch


class Undecodable(NamedTuple):
    """A packet, or a whole message, that cannot be decoded.

    Attributes:
        error: why.
        raw: its bytes as they travelled.
    """

    error: Exception
    raw: bytes


class Salvage(NamedTuple):
    """A message of which a part cannot be decoded.

    Attributes:
        batch: the packets that can be; None when nothing can be told from the message.
        undecodable: the others.
    """

    batch: PacketBatch | None
    undecodable: list[Undecodable]


def salvage(error: DecodeError) -> Salvage:
    """What can be saved of a message that raised this when it was decoded.

    Constructors in the message run once more. Nothing in the message makes this raise, except that
    a MemoryError is passed on: it says nothing about the packet.
    """
    data = error.data or b""
    raised: list[Exception] = []
    try:
        return _Machine(data, error.buffers, raised).salvage()
    except MemoryError:
        raise
    except Exception:  # damaged bytes break the machine in any way; or it is no batch
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        return Salvage(None, [Undecodable(cause, data)])
    finally:
        while raised:
            _clear_frames(raised.pop())


def _clear_frames(error: Exception) -> None:
    """Clear the variables of the calls that ended in this error: they would keep all of the batch.

    The frames of a traceback keep those that called them, too.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    frame: FrameType | None = frames[-1]
    while frame is not None:
        try:
            frame.clear()
        except RuntimeError:  # it still runs, as do those that called it
            break
        frame = frame.f_back


class _Object:
    """An object of the pickle: its value, or the error by which it was lost.

    Attributes:
        holders: the objects it is a part of; None when it cannot be lost.
    """

    __slots__ = ("error", "holders", "value")

    def __init__(self, value: Any = None, holders: list[_Object] | None = None) -> None:
        self.value = value
        self.error: Exception | None = None
        self.holders = holders

    def hold(self, part: _Object) -> None:
        """Share the fate of a part, which in a cycle of objects can be lost later than now."""
        if part.holders is not None:
            part.holders.append(self)
        if part.error is not None:
            self.lose(part.error)

    def lose(self, error: Exception) -> None:
        """Mark this object as lost, and all that hold it."""
        found = [self]
        while found:
            lost = found.pop()
            if lost.error is None:
                lost.error, lost.value = error, None
                found += lost.holders or ()


class _Entry(NamedTuple):
    """An object on the stack, and the bytes that put it there."""

    object: _Object
    start: int
    end: int


_REBUILD = PacketBatch([]).__reduce__()[0]

# Opcodes whose argument is the object.
_LITERALS = {
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg is not None
    and [kind.obtype for kind in opcode.stack_after]
    in ([int], [float], [str], [bytes], [bytearray])
}

# A call of the function by which an object sets its state. The object is below on the stack, and
# the result is dropped. The arguments of other calls are memoized before it.
_SETS_STATE = pickle.TUPLE2 + pickle.REDUCE + pickle.POP

# Opcodes that change the object below their operands, and leave it on the stack.
_CHANGES = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}


class _Machine:
    """Runs a pickle, and knows which objects are lost and what each was made of."""

    def __init__(self, data: bytes, buffers: Sequence[bytes], raised: list[Exception]) -> None:
        """``raised`` takes all errors of the objects, also those that come to nothing."""
        self._data = data
        self._buffers = iter(buffers)
        self._raised = raised
        self._stack: list[_Entry] = []  # from the last mark on
        self._marks: list[tuple[list[_Entry], int]] = []  # the stack below a mark, and its place
        self._memo: dict[int, _Object] = {}
        self._parts: dict[_Object, list[_Entry]] = {}

    def salvage(self) -> Salvage:
        """Run the pickle of a batch. Raises anything when it is damaged, or of something else."""
        stream = io.BytesIO(self._data)
        for opcode, argument, start in pickletools.genops(stream):
            self._run(opcode, argument, cast(int, start), stream.tell())
        for made in self._memo.values():
            made.holders = None  # no object that is part of itself has to wait for the collector
        function, arguments = self._parts[self._stack.pop().object]
        if function.object.value is not _REBUILD:
            raise pickle.UnpicklingError("not a batch")
        columns = [column.object for column in self._parts[arguments.object]]
        payloads, keys = (self._parts[column] for column in columns[:2])
        timestamps, ids, *others = (column.value for column in columns[2:])
        if any(column.error is not None for column in columns[2:]) or not (
            len(payloads) == len(keys) == len(timestamps) / 8 == len(ids) / 8
        ):
            raise pickle.UnpicklingError("a batch of which more than payloads and keys is damaged")
        batch: PacketBatch = _REBUILD(
            [payload.object.value for payload in payloads],
            [key.object.value for key in keys],
            timestamps,
            ids,
            *others,
        )
        good: list[Packet] = []
        undecodable: list[Undecodable] = []
        for packet, payload, key in zip(batch.packets, payloads, keys):
            lost = payload.object if payload.object.error is not None else key.object
            if lost.error is None:
                good.append(packet)
            else:
                raw = self._data[payload.start : payload.end]
                undecodable.append(Undecodable(lost.error, raw))
        batch.packets = good
        return Salvage(batch, undecodable)

    def _run(self, opcode: pickletools.OpcodeInfo, argument: Any, start: int, end: int) -> None:
        """Run the opcode that is at ``start`` to ``end``."""
        stack = self._stack
        match opcode.name:
            case name if name in _LITERALS:
                stack.append(_Entry(_Object(argument), start, end))
            case "MEMOIZE" | "PUT" | "BINPUT" | "LONG_BINPUT":
                index = len(self._memo) if argument is None else argument
                self._memo[index] = stack[-1].object
                stack[-1] = stack[-1]._replace(end=end)
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(_Entry(self._memo[argument], start, end))
            case "MARK":
                self._marks.append((stack, start))
                self._stack = []
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._stack, _ = self._marks.pop()
            case "NEXT_BUFFER":
                # The queue handed out copies, of which those that are not read-only can be written.
                buffer: bytes | bytearray = next(self._buffers)
                if not self._data.startswith(pickle.READONLY_BUFFER, end):
                    buffer = bytearray(buffer)
                stack.append(_Entry(_Object(buffer), start, end))
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                self._build(opcode, start, end)

    def _build(self, opcode: pickletools.OpcodeInfo, start: int, end: int) -> None:
        """Run an opcode that makes or changes an object.

        It runs alone, as the pickle of its result, in the C unpickler: what it does and raises
        there is what it does and raises anywhere. An unpickler takes any object for a buffer, so
        that is how its operands come in.
        """
        code = self._data[start:end]
        sets_state = self._data.startswith(_SETS_STATE, start - 1)
        count = len(opcode.stack_before)
        operands: list[_Entry] = []
        if pickletools.markobject in opcode.stack_before:
            count = opcode.stack_before.index(pickletools.markobject)
            operands = self._stack
            self._stack, start = self._marks.pop()
            code = pickle.MARK + pickle.NEXT_BUFFER * len(operands) + code
        stack = self._stack
        height = len(stack) - count
        if height < 0 or len(opcode.stack_after) != 1:
            raise pickle.UnpicklingError(f"no pickler writes {opcode.name} here")
        if count:
            operands = stack[height:] + operands
            del stack[height:]
            start = operands[0].start
            code = pickle.NEXT_BUFFER * count + code

        if opcode.name in _CHANGES:
            result, parts = operands[0].object, operands[1:]
        else:
            result, parts = _Object(holders=[]), operands
        for part in parts:
            result.hold(part.object)
        if not self._marks:
            self._parts[result] = parts
        elif opcode.name == "EMPTY_LIST" and len(self._marks) == 1:
            # A second list is a column when the first has been filled, else it is a payload.
            if not stack or self._parts.get(stack[0].object):
                self._parts[result] = []
        elif opcode.name in ("APPEND", "APPENDS") and result in self._parts:
            self._parts[result] += parts
        if result.error is None:
            try:
                result.value = pickle.loads(
                    pickle.PROTO + b"\x05" + code + pickle.STOP,
                    buffers=[operand.object.value for operand in operands],
                )
            except MemoryError:
                raise
            except Exception as error:
                self._raised.append(error)
                result.lose(error)
        if sets_state:
            stack[-1].object.hold(result)
        stack.append(_Entry(result, start, end))
