"""What can go wrong, sorted by what the runner does about it.

    DarkroomError
    ├── Retryable          a dependency is away: try again here, then in a delay topic, then dead-letter
    │   └── DependencyUnavailable     … Kafka, the object store or Qdrant did not answer
    │       ├── AccessDenied      … it answered, and does not let us in: at start the process refuses to start
    │       └── Unconfirmed        … Kafka was given events and did not confirm them: they may be in the log
    ├── Malformed          these bytes are not our event: dead letter at once
    ├── Gone               the object was deleted under us: drop the event, count it
    ├── NotReady           a worker refuses to start: bad settings, missing topic, required model missing
    ├── WorkerCrashed      an event killed its worker, twice: dead letter, without touching it again
    └── Undeliverable      an output could not be delivered: exit, the supervisor restarts, Kafka redelivers

Anything else that a stage raises is our bug: dead letter, error metric, traceback in the log.
A bad image is not an error but an outcome: `streams.stage.Reject`.
"""

from __future__ import annotations

import errno

from schemas.values import ErrorCode

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # what a full disk and a used-up quota say


class DarkroomError(Exception):
    """The root of the tree."""


class Retryable(DarkroomError):
    """Trying again may help. `after_s` is what the dependency asked for, if it asked."""

    def __init__(
        self, message: str, *, after_s: float | None = None, code: ErrorCode = ErrorCode.DEPENDENCY_UNAVAILABLE
    ) -> None:
        super().__init__(message)
        self.after_s = after_s
        self.code = code


class DependencyUnavailable(Retryable):
    """A service we depend on did not answer."""


class AccessDenied(DependencyUnavailable):
    """A service we depend on answered and does not let us do what we must: credentials, rights, read-only."""


class DeliveryUnconfirmed(DependencyUnavailable):
    """Kafka was given events and did not confirm all of them in time: any of them may be in the log all the same."""


class Malformed(DarkroomError):
    """Not an event we can read."""

    def __init__(self, message: str, *, code: ErrorCode = ErrorCode.MALFORMED_EVENT) -> None:
        super().__init__(message)
        self.code = code


class ObjectGone(DarkroomError):
    """The object an event speaks of is not there any more: its image was deleted or superseded."""


class NotReady(DarkroomError):
    """The process must not start; the message names what is wrong and how to mend it."""


class Undeliverable(DarkroomError):
    """An output could not be delivered to Kafka; continuing would lose it."""


class WorkerCrashed(DarkroomError):
    """A worker died twice while this event was in flight, the second time alone."""

    def __init__(self) -> None:
        super().__init__("the worker died while this event was in flight, and again while it alone was")
