"""Writes an owner's new tags, category and metadata into the image's record."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import JsonValue

from agents.core.merge import required_stages
from agents.indexing.fact_history import entry_of
from schemas.events.envelope import Event, now
from schemas.events.facts import ImageAnnotated
from schemas.values import ImageState
from streams.object_store.tombstones import Tombstones
from streams.read_model.protocol import ReadModel
from streams.read_model.records import Change, ImageRecord


async def annotate(event: ImageAnnotated, read_model: ReadModel, erasures: Tombstones) -> bool:
    """Write annotations unless later ones are recorded; False if the image is deleted or another owner's.

    The result does not depend on the order of annotations, facts and generations.
    """

    def change(known: ImageRecord) -> Change | None:
        if not is_writable(event, known):
            return None
        patch: dict[str, JsonValue] = {}  # outdated annotations are recorded in the history only
        if (event.revision, event.occurred_at) > (known.revision, known.revised_at or ""):
            patch = {
                **event.model_dump(mode="json", include={"tags", "category", "context", "revision"}),
                "revised_at": event.occurred_at,
                "updated_at": now(),
            }
        return Change(patch, history=entry_of(event))

    known = await update(event, change, read_model, erasures)
    return known is not None and is_writable(event, known)


def is_writable(event: Event, known: ImageRecord) -> bool:
    """Return whether an image is the event's owner's, and neither deleted nor being deleted."""
    return known.owner == event.owner and not known.deleted and known.state is not ImageState.DELETED


PROGRESS_KEYS = (
    "required", "stages", "retries", "revision", "revised_at", "finished_at", "finished_by", "submitted_at",
)  # fmt: skip
"""Keys of the record that decide about an event: reading a record with all its results takes several times as long."""


async def update(
    event: Event, change: Callable[[ImageRecord], Change | None], read_model: ReadModel, erasures: Tombstones
) -> ImageRecord | None:
    """Change the record of an event's image, created if its generation is new; return it. None: the image is deleted.

    Only its PROGRESS_KEYS are read.
    """

    def change_begun(known: ImageRecord) -> Change | None:
        return change(known) if known.generation >= event.generation else None

    known = await read_model.update(event.image_id, change_begun, keys=PROGRESS_KEYS)
    if known is None or known.generation < event.generation:
        # The janitor removes old tombstones from the read model; a replayed event may be older still.
        erasure = await erasures.get(event.image_id)
        if erasure is not None and erasure.covers(event.owner, event.generation):
            return None
        older = await read_model.get(event.image_id) if known else None
        await read_model.begin(_stub(event, older), history=await read_model.history(event.image_id) if older else None)
        known = await read_model.update(event.image_id, change_begun, keys=PROGRESS_KEYS)
    return known


def _stub(event: Event, known: ImageRecord | None) -> ImageRecord:
    """Return the record a generation begins with: only the owner's annotations are carried over."""
    return ImageRecord.model_validate(
        {
            "image_id": event.image_id,
            "owner": event.owner,
            "generation": event.generation,
            "required": required_stages(event.profile),
            "parameters": event.profile.parameters,
            **_kept(known),
        }
    )


def _kept(known: ImageRecord | None) -> dict[str, object]:
    if known is None or known.deleted or not known.revision:
        return {}
    return known.model_dump(include={"tags", "category", "context", "revision", "revised_at"})
