"""Writes into an image's record that a stage will try again."""

from __future__ import annotations

from pydantic import JsonValue

from agents.core.merge import FETCHER, SANITIZER, unless_annotated
from agents.indexing.record_annotations import is_writable, update
from schemas.events.envelope import now
from schemas.events.facts import StageRetrying
from schemas.events.intake import SUBMISSION
from streams.object_store.tombstones import Tombstones
from streams.read_model.protocol import ReadModel
from streams.read_model.records import Change, ImageRecord, StageRetry


async def note_retry(event: StageRetrying, read_model: ReadModel, erasures: Tombstones) -> bool:
    """Write the last try of a stage that has not ended; False if the image is deleted, superseded or another owner's.

    The latest try wins; a stage that has ended stays as it is.
    """

    def change(known: ImageRecord) -> Change | None:
        stage, last = event.report.stage, known.retries.get(event.report.stage)
        tries = (event.report.attempts, event.postponed)
        if not applies(known) or stage in known.stages or (last and (last.attempts, last.postponed) >= tries):
            return None
        retry = StageRetry(
            attempts=event.report.attempts,
            code=event.code,
            message=event.message,
            next_try_at=event.next_try_at,
            postponed=event.postponed,
        )
        retries: dict[str, JsonValue] = {
            name: one.model_dump(mode="json") for name, one in {**known.retries, stage: retry}.items()
        }
        patch = unless_annotated(_submitted(event), known.revision)
        return Change({**patch, "retries": retries, "updated_at": now()})

    def applies(known: ImageRecord) -> bool:
        return is_writable(event, known) and known.generation == event.generation

    known = await update(event, change, read_model, erasures)
    return known is not None and applies(known)


def _submitted(event: StageRetrying) -> dict[str, JsonValue]:
    """Return the submission of an image whose first fact is still to come; later stages' images have theirs."""
    if event.report.stage not in (FETCHER, SANITIZER) or event.submitted_at is None:
        return {}
    return event.model_dump(mode="json", include={*SUBMISSION, "original"}, exclude_none=True)
