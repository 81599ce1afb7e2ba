"""The outcome event of an image that has ended, made from its record."""

from __future__ import annotations

from typing import Any

from schemas.events.intake import SUBMISSION
from schemas.events.outcomes import OUTCOME_TEXT_LIMIT, Finished, ImageCompleted, ImageFailed, ImageRejected, Links
from schemas.values import ImageState, Profile, job_id_of
from streams.read_model.records import ImageRecord
from streams.topics import MAX_MESSAGE_BYTES

_MAX_BODY_BYTES = MAX_MESSAGE_BYTES - 4096  # leaves room for the headers
_LEFT_OUT = ("text", "labels", "renditions", "context")  # in this order, until the event fits into a message


def outcome_of(known: ImageRecord, profile: Profile) -> Finished:
    """Return the outcome of a record whose state is final."""
    fields = _common(known, profile) | _found(known)
    outcome = _event(known, fields)
    for name in _LEFT_OUT:
        if len(outcome.body()) <= _MAX_BODY_BYTES:
            break
        del fields[name]
        fields["text_complete"] = known.text is None
        outcome = _event(known, fields)
    return outcome


def _event(known: ImageRecord, fields: dict[str, Any]) -> Finished:
    kind = {ImageState.REJECTED: ImageRejected, ImageState.FAILED: ImageFailed}.get(known.state)
    if kind is None:
        return ImageCompleted.model_validate(fields)
    return kind.model_validate({**fields, "code": known.error_code, "message": known.error_message or ""})


def _common(known: ImageRecord, profile: Profile) -> dict[str, Any]:
    return {
        "image_id": known.image_id,
        "owner": known.owner,
        "generation": known.generation,
        "profile": profile,
        "stages": {name: stage.state for name, stage in known.stages.items()},
        "links": _links(known),
    }


def _found(known: ImageRecord) -> dict[str, Any]:
    text = known.text
    return {
        **{name: getattr(known, name) for name in SUBMISSION},
        "renditions": known.renditions,
        "labels": known.labels,
        "text": text[:OUTCOME_TEXT_LIMIT] if text is not None else None,
        "text_complete": text is None or len(text) <= OUTCOME_TEXT_LIMIT,
    }


def _links(known: ImageRecord) -> Links:
    images, job = "/api/v1/images", job_id_of(known.image_id, known.generation)
    return Links(
        job=f"{images}/jobs/{job}",
        result=f"{images}/jobs/{job}/result",
        image=f"{images}/{known.image_id}/metadata",
        bytes=f"{images}/{known.image_id}/direct",
    )
