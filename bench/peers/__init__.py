"""One adapter for each queue that is measured, ours among them."""

from bench.peers.base import Channel
from bench.peers.faster_fifo import FasterFifo
from bench.peers.ray_queue import RayUtilQueue
from bench.peers.sage import SageMpmc, SageMpsc, SageSpsc
from bench.peers.standard import MpPipe, MpQueue, MpSimpleQueue
from bench.peers.zmq_pipe import ZmqPushPull

PEERS: dict[str, type[Channel]] = {
    "SageQueue mpmc": SageMpmc,
    "SageQueue mpsc": SageMpsc,
    "SageQueue spsc": SageSpsc,
    "mp.Queue": MpQueue,
    "mp.SimpleQueue": MpSimpleQueue,
    "mp.Pipe": MpPipe,
    "faster-fifo": FasterFifo,
    "pyzmq ipc": ZmqPushPull,
    "Ray Queue": RayUtilQueue,
}

__all__ = ["PEERS", "Channel"]
