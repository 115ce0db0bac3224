"""What an operator may return."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from sageruntime.communication.router import Packet
from sageruntime.errors import OperatorError

Results = Packet | Iterable[Packet] | None
"""One packet, several, or nothing."""


def iterate_results(results: Results, operator: object) -> Iterator[Packet]:
    """What ``process`` or ``finish`` returned, one packet after the other.

    Raises:
        OperatorError: it is neither a packet nor packets.
    """
    if results is None:
        return iter(())
    if isinstance(results, Packet):
        return iter((results,))
    if isinstance(results, Iterable):
        packets = iter(results)
        try:
            first = next(packets)
        except StopIteration:
            return iter(())
        if isinstance(first, Packet):
            return chain((first,), packets)
        results = first
    raise OperatorError(
        f"{type(operator).__qualname__} returned {type(results).__qualname__} where a Packet is "
        "expected; return a Packet, an iterable of Packets, or None"
    )


def list_results(results: Results, operator: object) -> list[Packet]:
    """The same as a list: the very one that was returned, if it is one."""
    if type(results) is list and (not results or type(results[0]) is Packet):
        return results
    return list(iterate_results(results, operator))
