"""RemoteTask: the near end of a task whose worker loop runs in another process."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cloudpickle

from sageruntime.communication.router import Packet
from sageruntime.errors import OperatorError, TaskStateError
from sageruntime.metrics import LatencyHistogram
from sageruntime.task.base_task import BaseTask
from sageruntime.task.packed_error import PackedError
from sageruntime.task.state import TaskState
from sageruntime.task.status import TaskReport, TaskStatus


@dataclass(frozen=True)
class RemoteReport:
    """A :class:`TaskReport` that can travel."""

    status: TaskStatus
    latency: LatencyHistogram
    result: bytes
    error: PackedError | None

    @classmethod
    def of(cls, report: TaskReport) -> RemoteReport:
        """Pack a report; a result that does not pickle becomes an error."""
        status, error = report.status, report.error
        try:
            result = cloudpickle.dumps(report.result)
        except Exception as cause:
            result = cloudpickle.dumps(None)
            error = OperatorError(
                f"the result of {status.name} does not pickle: {cause}; return plain data from "
                "result(), or run the sink on a thread"
            )
            status = replace(status, state=TaskState.FAILED)
        return cls(status, report.latency, result, None if error is None else PackedError.of(error))


class RemoteTask(BaseTask):
    """Base of tasks whose operator lives in another process."""

    runs_here = False
    _remote_status: TaskStatus | None = None

    def process_packet(self, packet: Packet) -> None:
        """See :class:`BaseTask`."""
        raise TaskStateError(
            f"the operator of {self.name} lives in another process; use put_packet()"
        )

    def get_status(self) -> TaskStatus:
        """See :class:`BaseTask`; as of the last message from the host."""
        last = self._remote_status
        return TaskStatus(
            name=self.name,
            stage=self.ctx.stage,
            host=self.host,
            state=self._state,
            processed=self._processed_count,
            emitted=last.emitted if last else 0,
            errors=self._error_count,
            queue_depth=last.queue_depth if last else 0,
            total=last.total if last else None,
            error=self._describe_error(),
        )

    def _take(self, message: object) -> None:
        """Act on a message from the host."""
        if isinstance(message, TaskStatus):
            self._take_status(message)
        elif isinstance(message, RemoteReport):
            self._take_report(message)
        elif isinstance(message, PackedError):
            self._fail(message.unpack())

    def _take_status(self, status: TaskStatus) -> None:
        self._remote_status = status
        self.metrics.processed = status.processed
        self.metrics.errors = status.errors
        if not status.state.ended:  # the end comes with the report
            self._advance(status.state)

    def _take_report(self, report: RemoteReport) -> None:
        self._take_status(report.status)
        self.metrics.latency = report.latency
        if report.error is not None:
            # the host has logged it
            self._advance(TaskState.FAILED, error=report.error.unpack())
            return
        try:
            result = cloudpickle.loads(report.result)
        except Exception as error:  # of a class that only the host can import
            self._fail(error)
        else:
            self._advance(TaskState.STOPPED, result)
