"""History of an image: one entry per fact, as the indexer recorded it."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from schemas.events.envelope import Event, now, parameters_hash
from schemas.events.facts import Fact
from schemas.values import ErrorCode, StageState
from streams.read_model.records import HistoryEntry
from streams.telemetry.tracing import current_origin


def entry_of(event: Event, state: StageState | None = None, reason: ErrorCode | None = None) -> dict[str, HistoryEntry]:
    """Return the history entry of an event, keyed by a hash of the event's id and time.

    A redelivered event is one entry; work that was done again is another.
    """
    origin = current_origin()
    report = event.report if isinstance(event, Fact) else None
    event_id = event.id
    entry = HistoryEntry(
        event_id=event_id,
        type=event.type,
        generation=event.generation,
        stage=event.producing_stage(),
        state=state,
        reason=reason,
        attempts=report.attempts if report else None,
        duration_ms=report.duration_ms if report else None,
        reused=report.reused if report else False,
        version=report.version if report else None,
        run=event.run,
        worker=(report.worker or None) if report else None,
        occurred_at=event.occurred_at,
        recorded_at=_when(origin.taken_ms) if origin and origin.taken_ms else now(),
        trace_id=origin.trace_id if origin else None,
        topic=origin.topic if origin else None,
        partition=_number(origin.partition) if origin else None,
        offset=_number(origin.offset) if origin else None,
    )
    return {parameters_hash({"id": event_id, "at": event.occurred_at}): entry}


def _when(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _number(text: str) -> int | None:
    with suppress(ValueError):  # the header may come from another producer
        return int(text)
    return None
