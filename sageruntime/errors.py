"""Every error the runtime raises: what was wrong, what was expected, what to do."""

from __future__ import annotations

import os
import traceback

import sagequeue

# Where the code of neither a user nor a library of theirs is.
_OURS = tuple(os.path.dirname(file) + os.sep for file in (__file__, sagequeue.__file__))


class RuntimeTaskError(Exception):
    """Base class of every error raised by :mod:`sageruntime`."""


class InvalidOption(RuntimeTaskError, ValueError):
    """An argument is outside what is allowed; the message says what is."""


class PipelineError(RuntimeTaskError, ValueError):
    """The stages do not make a pipeline: no source, no sink, two of the same name."""


class OperatorNotFound(RuntimeTaskError, LookupError):
    """No operator is registered under this name, or the import path cannot be imported."""


class TaskNotFound(InvalidOption, LookupError):
    """No task type is registered under this name, and no installed package has one."""


class PluginError(RuntimeTaskError, TypeError):
    """A plugin cannot be loaded, implements no hook, or implements one that does not exist."""


class OperatorError(RuntimeTaskError, TypeError):
    """An operator breaks its contract: it cannot be made, or returns something but packets."""


class UnstableKey(RuntimeTaskError, TypeError):
    """A key has no hash that is the same in every process, so it cannot choose a partition."""


class PartitionError(RuntimeTaskError, ValueError):
    """A partitioner chose a task that does not exist, or left one out."""


class TaskStateError(RuntimeTaskError):
    """The call is not allowed in the task's present state; the message names both."""


class TaskStartError(RuntimeTaskError):
    """The task could not be brought to its host."""


class DependencyError(TaskStartError):
    """This machine lacks what a job needs; the message says what, and the remedy."""


class TaskLost(RuntimeTaskError):
    """The process or actor that hosted the task died without a report."""


class HostReplaced(TaskLost):
    """The process or actor that hosted the task was killed, because its operator hung.

    The packets it hung on have met the error policy and are skipped from now on.
    """


class TaskHalted(RuntimeTaskError):
    """The task was told to stop, in order to begin again from a checkpoint."""


class ProcessingTimeout(RuntimeTaskError, TimeoutError):
    """An operator worked on one packet for longer than ``processing_timeout``."""


class CheckpointError(RuntimeTaskError):
    """A checkpoint cannot be kept, read, or fit to the job; the message says which."""


class MonitoringError(RuntimeTaskError):
    """Metrics, traces or profiles cannot be provided; the message says what to change."""


class TaskCancelled(RuntimeTaskError):
    """The task was stopped without draining while it waited."""


class DownstreamClosed(RuntimeTaskError):
    """The task at the other end of a connection has ended and takes no more packets."""


class PacketError(RuntimeTaskError):
    """An operator failed on a packet and the task's error policy is ``fail``.

    The operator's own error is the ``__cause__``.

    Attributes:
        packet_id: which packet; None for one that could not be decoded.
    """

    def __init__(self, message: str, packet_id: int | None = None) -> None:
        super().__init__(message)
        self.packet_id = packet_id

    @property
    def is_consequence(self) -> bool:
        """Whether it follows from the failure of a task downstream or of a service."""
        return isinstance(self.__cause__, (DownstreamClosed, ServiceLost))


def processing_timeout(packet_id: int, seconds: float) -> ProcessingTimeout:
    """The error of a packet that took too long."""
    return ProcessingTimeout(
        f"packet {packet_id} was not processed within {seconds:g} s; make the operator faster or "
        "raise processing_timeout"
    )


def describe_error(error: BaseException) -> str:
    """The type and text of an error. Never raises, even if the error's ``__str__`` does."""
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"
    except KeyboardInterrupt:
        raise
    except BaseException:  # its own __str__ failed, with SystemExit perhaps
        return f"{kind}: (text could not be shown)"


def format_traceback(error: BaseException) -> str:
    """The traceback of an error with its causes. Never raises, even if their ``__str__`` does."""
    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except KeyboardInterrupt:
        raise
    except BaseException:  # an error in the chain whose text cannot be made
        return "".join(traceback.format_tb(error.__traceback__))


def where_raised(error: BaseException) -> str:
    """The file, line and function of the last frame of an error that is not of this project.

    Empty when there is none.
    """
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if not code.co_filename.startswith(_OURS):
            place = f"{code.co_filename}:{line} in {code.co_name}"
    return place


class RemoteError(RuntimeTaskError):
    """Stands for an error of another process whose own type cannot be rebuilt in this one."""


class ServiceError(RuntimeTaskError):
    """Base class of what can go wrong with a call of a service, apart from what it raises."""


class ServiceNotFound(ServiceError, LookupError):
    """The job has no service of this name."""


class ServiceMethodNotFound(ServiceError, AttributeError):
    """The service has no public method of this name."""


class ServiceTimeout(ServiceError, TimeoutError):
    """The service did not answer in the time the caller gave it; it may still work on it."""


class ServiceLost(ServiceError):
    """The service has ended, or its process died while it worked on the call."""


class DeadLetterStoreError(RuntimeTaskError):
    """A file of dead letters cannot be used, or does not hold what was asked for."""


class JobFailed(RuntimeTaskError):
    """A job ended because one of its tasks failed; the first error is the ``__cause__``."""


class ConfigError(RuntimeTaskError, ValueError):
    """A job file is not valid. ``problems`` holds one line for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
