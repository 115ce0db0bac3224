"""Queues between the threads, processes and machines of a Python program.

>>> from sagequeue import SageQueue
>>> queue = SageQueue(maxsize=1000)
>>> queue.put({"any": "object"})
>>> queue.get()
{'any': 'object'}
"""

from sagequeue.codecs import register_codec
from sagequeue.queue import SageQueue, SageQueueRef

__version__ = "0.1.0"

__all__ = ["SageQueue", "SageQueueRef", "__version__", "register_codec"]
