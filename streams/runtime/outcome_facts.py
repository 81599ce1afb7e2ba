"""Facts the runtime emits when a stage skips, rejects or fails, so that every image reaches a visible final state."""

from __future__ import annotations

from schemas.events.envelope import Event
from schemas.events.facts import ImageRefused, StageFailed, StageRetrying, StageSkipped
from schemas.events.intake import Submission
from schemas.values import ErrorCode, StageReport
from streams import topics
from streams.runtime.object_references import original_of
from streams.stage import Emit, Reject, Skip, fact_fields
from streams.topics import MAX_MESSAGE_BYTES

_HEADER_BYTES = 4096  # more than the headers of a fact have
PUBLIC_FAILURE = {
    ErrorCode.DEPENDENCY_UNAVAILABLE: "A service this step needs stayed unavailable through all retries.",
    ErrorCode.SOURCE_UNAVAILABLE: "The source did not deliver the image in any attempt.",
    ErrorCode.DEADLINE_EXCEEDED: "This step exceeded its deadline.",
    ErrorCode.WORKER_CRASHED: "This step crashed its worker twice.",
    ErrorCode.ENGINE_FAILED: "The model or codec of this step cannot process this image.",
    ErrorCode.OBJECT_CHANGED: "The stored bytes differ from those the event names.",
    ErrorCode.GONE: "The stored bytes this step needs no longer exist.",
    ErrorCode.MALFORMED_EVENT: "The event for this step could not be decoded.",
    ErrorCode.REFERENCE_NOT_ALLOWED: "The event for this step names an object that this image may not use.",
}

_PUBLIC_RETRY = {
    ErrorCode.DEPENDENCY_UNAVAILABLE: "A service this step needs is unavailable; the step is tried again.",
    ErrorCode.SOURCE_UNAVAILABLE: "The source did not deliver the image; it is tried again.",
    ErrorCode.SOURCE_BUSY: "The source may not be asked more often now; the fetch waits and continues by itself.",
    ErrorCode.DEADLINE_EXCEEDED: "This step exceeded its deadline and is tried again.",
}


def skipped(event: Event, skip: Skip, report: StageReport) -> Emit:
    """Return the fact that a stage was skipped, with the reason."""
    fact = StageSkipped.model_validate(
        {**fact_fields(event), "report": report, "reason": skip.code, "message": skip.message}
    )
    return Emit(((topics.FACTS, fact),))


def refused(event: Event, reject: Reject, report: StageReport) -> Emit:
    """Return the fact that the image was rejected, with the reason and any submission fields of the event."""
    fact = ImageRefused.model_validate(
        {
            **fact_fields(event),
            **_submission(event),
            "report": report,
            "code": reject.code,
            "message": reject.message,
            "original": original_of(event),
        }
    )
    return Emit(((topics.FACTS, fact),))


def failed(event: Event, code: ErrorCode, report: StageReport) -> Emit:
    """Return the fact that a stage failed, without internal details, which are in the dead letter."""
    message = PUBLIC_FAILURE.get(code, "This step failed because of an internal error; it can be replayed.")
    return Emit(((topics.FACTS, _fitting(StageFailed, event, _why(event, code, message, report))),))


def retrying(event: Event, code: ErrorCode, report: StageReport, next_try_at: str, postponed: int = 0) -> Emit:
    """Return the event that a stage tries again later, at `next_try_at` (RFC 3339) or soon after.

    `postponed` is the number of times the event waited although nothing had failed.
    """
    message = _PUBLIC_RETRY.get(code, "This step failed for now and is tried again.")
    fields = {**_why(event, code, message, report), "next_try_at": next_try_at, "postponed": postponed}
    return Emit(((topics.FACTS, _fitting(StageRetrying, event, fields)),))


def _why(event: Event, code: ErrorCode, message: str, report: StageReport) -> dict[str, object]:
    return {
        **fact_fields(event),
        "report": report,
        "code": code,
        "message": message,
        "original": original_of(event),
    }


def _fitting(kind: type[Event], event: Event, fields: dict[str, object]) -> Event:
    """Return an event with the submission fields of another, unless they make it too large for a message."""
    found = kind.model_validate(fields | _submission(event))
    return found if len(found.body()) <= MAX_MESSAGE_BYTES - _HEADER_BYTES else kind.model_validate(fields)


def _submission(event: Event) -> dict[str, object]:
    return event.submission_fields() if isinstance(event, Submission) else {}
