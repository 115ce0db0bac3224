"""Task types that work in their own way, on a thread and in a process."""

from sageruntime import LocalTask
from sageruntime.task.process_task import ProcessTask


def _season(task, packet):
    packet.payload = f"{packet.payload} salt"
    return task.operator.process(packet)


class SpicedTask(LocalTask):
    def custom_process(self, packet):
        return _season(self, packet)


class SpicedProcessTask(ProcessTask):
    def custom_process(self, packet):
        return _season(self, packet)
