"""Errors, sorted by how the runner handles them.

    DarkroomError
    ├── Retryable                       retry in place, then in a delay topic, then dead-letter
    │   └── DependencyUnavailable       … Kafka, the object store or Qdrant did not answer
    │       ├── AccessDenied            … it answered and refused access: at start the process exits
    │       └── DeliveryUnconfirmed     … Kafka did not confirm events it was sent: they may be in the log
    ├── Postponed                       nothing failed, but not now: delay topic, without counting an attempt
    ├── Malformed                       not an event of Darkroom: dead-letter at once
    ├── ObjectGone                      the object was deleted meanwhile: drop the event, count it
    ├── NotReady                        invalid settings, missing topic or required model: do not start
    ├── EngineFailed                    a model or codec raised on this input: dead-letter at once
    ├── WorkerCrashed                   the event crashed its worker twice: dead-letter without processing
    └── Undeliverable                   an output could not be delivered: exit, restart, Kafka redelivers

Any other exception of a stage is a bug: dead letter, error metric, traceback in the log.
A bad image is not an error but an outcome: `streams.stage.Reject`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.values import ErrorCode

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # full disk, exceeded quota


class DarkroomError(Exception):
    """The root of the tree."""


class Retryable(DarkroomError):
    """A retry may help. `after_s` is the delay the dependency requested, if any."""

    def __init__(
        self, message: str, *, after_s: float | None = None, code: ErrorCode = ErrorCode.DEPENDENCY_UNAVAILABLE
    ) -> None:
        super().__init__(message)
        self.after_s = after_s
        self.code = code


class DependencyUnavailable(Retryable):
    """A dependency did not answer, or cannot serve the call now."""


class AccessDenied(DependencyUnavailable):
    """A dependency refused a required operation: wrong credentials, missing permission, read-only."""


class DeliveryUnconfirmed(DependencyUnavailable):
    """Kafka did not confirm all events in time; any of them may be in the log."""


class Postponed(DarkroomError):
    """Nothing failed, but the work must wait `after_s` seconds: the event goes to a delay topic as often as needed."""

    def __init__(self, message: str, *, after_s: float, code: ErrorCode = ErrorCode.SOURCE_BUSY) -> None:
        super().__init__(message)
        self.after_s = after_s
        self.code = code


class Malformed(DarkroomError):
    """The event cannot be decoded."""

    def __init__(self, message: str, *, code: ErrorCode = ErrorCode.MALFORMED_EVENT) -> None:
        super().__init__(message)
        self.code = code


class ObjectGone(DarkroomError):
    """The object an event names no longer exists: its image was deleted or superseded."""


class NotReady(DarkroomError):
    """The process must not start; the message names the problem and its remedy."""


class Undeliverable(DarkroomError):
    """An output could not be delivered to Kafka; continuing would lose it."""


class EngineFailed(DarkroomError):
    """A model or codec raised an error on this input; the cause has its traceback."""


@contextmanager
def engine_errors(engine: str) -> Iterator[None]:
    """Raise EngineFailed for what a model or codec raises; classified errors, a full disk and memory pass unchanged."""
    try:
        yield
    except (DarkroomError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        raise EngineFailed(f"{engine}: {type(error).__name__}: {error}") from error


class WorkerCrashed(DarkroomError):
    """The worker crashed twice while this event was in flight, the second time alone."""

    def __init__(self) -> None:
        super().__init__("the worker crashed while this event was in flight, and again while it processed it alone")
