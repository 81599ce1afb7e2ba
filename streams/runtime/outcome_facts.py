"""What the runtime says of an image when a stage skipped, refused or failed: so that every image ends, visibly."""

from __future__ import annotations

from schemas.events.envelope import Event
from schemas.events.facts import ImageRefused, ImageSanitized, StageFailed, StageSkipped
from schemas.events.intake import ImageFetched, ImageUploaded, Submission
from schemas.values import ErrorCode, ObjectRef, StageReport
from streams import topics
from streams.stage import Emit, Reject, Skip

PUBLIC_FAILURE = {
    ErrorCode.DEPENDENCY_UNAVAILABLE: "A service this step needs was away for too long.",
    ErrorCode.SOURCE_UNAVAILABLE: "The source did not deliver the image, however often it was asked.",
    ErrorCode.DEADLINE_EXCEEDED: "This step took longer than it may.",
    ErrorCode.WORKER_CRASHED: "This step ended its worker, twice.",
    ErrorCode.OBJECT_CHANGED: "The stored bytes are not those the event speaks of.",
    ErrorCode.GONE: "The stored bytes this step needs are not there any more.",
    ErrorCode.MALFORMED_EVENT: "The event that asked for this step could not be read.",
}


def _common(event: Event) -> dict[str, object]:
    return {
        "image_id": event.image_id,
        "owner": event.owner,
        "generation": event.generation,
        "run": event.run,
        "profile": event.profile,
    }


def _original(event: Event) -> ObjectRef | None:
    """Return the original an event speaks of: whoever deletes the image must know of it, however the image ended."""
    return event.original if isinstance(event, ImageUploaded | ImageFetched | ImageSanitized) else None


def skipped(event: Event, skip: Skip, report: StageReport) -> Emit:
    """Say that a stage was skipped, and why."""
    fact = StageSkipped.model_validate(
        {**_common(event), "report": report, "reason": skip.code, "message": skip.message}
    )
    return Emit(((topics.FACTS, fact),))


def refused(event: Event, reject: Reject, report: StageReport) -> Emit:
    """Say that the image was refused, and why; with what its sender said of it, if the event carries that."""
    said: dict[str, object] = {}
    if isinstance(event, Submission):
        said = event.submission_fields()
    fact = ImageRefused.model_validate(
        {
            **_common(event),
            **said,
            "report": report,
            "code": reject.code,
            "message": reject.message,
            "original": _original(event),
        }
    )
    return Emit(((topics.FACTS, fact),))


def failed(event: Event, code: ErrorCode, report: StageReport) -> Emit:
    """Say that a stage gave up; never with internal details, which are in the dead letter."""
    message = PUBLIC_FAILURE.get(code, "This step failed for a reason of ours; it can be replayed.")
    fact = StageFailed.model_validate(
        {**_common(event), "report": report, "code": code, "message": message, "original": _original(event)}
    )
    return Emit(((topics.FACTS, fact),))
