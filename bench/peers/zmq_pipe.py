"""pyzmq: PUSH and PULL over ipc, objects by pickle."""

from __future__ import annotations

import tempfile
from typing import Any

import zmq

from bench.peers.base import Channel


class ZmqPushPull(Channel):
    share = 0.3

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.address = f"ipc://{self.folder.name}/socket"
        self.context: Any = zmq.Context()
        self.socket: Any = self.context.socket(zmq.PULL)
        self.socket.bind(self.address)

    def __getstate__(self) -> str:
        return self.address

    def __setstate__(self, address: str) -> None:
        self.address = address

    def connect(self) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.PUSH)
        self.socket.connect(self.address)

    def put(self, message: Any) -> None:
        self.socket.send_pyobj(message, protocol=5)

    def get(self) -> Any:
        return self.socket.recv_pyobj()

    def close(self) -> None:
        self.context.destroy(linger=0)
        self.folder.cleanup()
