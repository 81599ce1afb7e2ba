"""Object references of events: an event may name only objects of its own image and owner.

A producer can name any key, also an API key's or another owner's original. Such an event is refused
before any stage reads, copies or records what it names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from schemas.events.envelope import Event
from schemas.events.facts import (
    Fact,
    ImageRefused,
    ImageResized,
    ImageSanitized,
    StageFailed,
    StageRetrying,
    TextRead,
)
from schemas.events.intake import ImageFetched, ImageUploaded
from schemas.values import ErrorCode, ObjectRef
from streams.errors import Malformed
from streams.object_store.keys import image_prefix, is_below, originals_prefix, results_prefix

_WITH_ORIGINAL = (ImageUploaded, ImageFetched, ImageSanitized, ImageRefused, StageFailed, StageRetrying)


def refused_reference(event: Event, buckets: Collection[str]) -> Malformed | None:
    """Return the error of the first object an event may not name, None if it may name all of them.

    `buckets` are the names the object store is known by.
    """
    for ref, prefix in _named(event):
        if ref.bucket not in buckets:
            known = ", ".join(sorted(buckets))
            return _refusal(f"the event may name only objects in the bucket {known}, not in {ref.bucket[:64]!r}")
        if not is_below(prefix, ref.key):
            return _refusal(f"the event may name only objects below {prefix}, not {ref.key[:200]!r}")
    return None


def _refusal(message: str) -> Malformed:
    return Malformed(message, code=ErrorCode.REFERENCE_NOT_ALLOWED)


def original_of(event: Event) -> ObjectRef | None:
    """Return the original a work event names, None without one or if the event may not name it."""
    if not isinstance(event, ImageUploaded | ImageFetched | ImageSanitized):
        return None
    return event.original if is_below(originals_prefix(event.owner), event.original.key) else None


def _named(event: Event) -> Iterator[tuple[ObjectRef, str]]:
    """Yield each object an event names, with the prefix its key must begin with."""
    if isinstance(event, _WITH_ORIGINAL) and event.original is not None:
        yield event.original, originals_prefix(event.owner)
    if isinstance(event, ImageSanitized):
        for ref in event.image.objects().values():
            yield ref, image_prefix(event.image_id)
    if isinstance(event, ImageResized):
        for rendition in event.renditions:
            yield rendition.object, image_prefix(event.image_id)
    if isinstance(event, TextRead):
        yield event.result, results_prefix(event.owner)
    if isinstance(event, Fact) and event.report.result is not None:
        yield event.report.result, results_prefix(event.owner)
