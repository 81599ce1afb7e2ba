"""In-memory index of the embedded read model, for lookups other than by id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from schemas.values import ImageState
from streams.read_model.qdrant_schema import text_words
from streams.read_model.records import Filters, ImageRecord
from streams.read_model.words import label_key, words_of


@dataclass(frozen=True, slots=True)
class Entry:
    """Indexed fields of an image. `text` is its words separated and enclosed by single spaces."""

    owner: str
    state: str
    deleted: bool
    hashes: frozenset[str]
    text: str
    label_keys: tuple[str, ...]
    bucket: str
    tags: frozenset[str]
    category: str | None
    submitted: float | None  # unix seconds

    @classmethod
    def of(cls, record: ImageRecord) -> Entry:
        """Return the index entry of a record."""
        return cls(
            owner=record.owner,
            state=record.state.value,
            deleted=record.deleted,
            hashes=frozenset(ref.sha256 for ref in (record.original, record.master) if ref is not None),
            text=f" {' '.join(words_of(record.text or ''))} ",
            label_keys=tuple(map(label_key, record.labels)),
            bucket=record.bucket,
            tags=frozenset(record.tags),
            category=record.category,
            submitted=_seconds(record.submitted_at),
        )


def matcher(wanted: Filters) -> Callable[[Entry], bool]:
    """Return the predicate of a listing's filters. Images deleted or being deleted never match."""
    labels, tags = frozenset(map(label_key, wanted.labels)), frozenset(wanted.tags)
    words = [f" {word} " for word in text_words(wanted.text)]
    since, until = (moment.timestamp() if moment is not None else None for moment in (wanted.since, wanted.until))

    def submitted_between(entry: Entry) -> bool:
        if since is None and until is None:
            return True
        if entry.submitted is None or (since is not None and entry.submitted < since):
            return False
        return until is None or entry.submitted < until

    def matches(entry: Entry) -> bool:
        return (
            not entry.deleted
            and entry.state != ImageState.DELETED
            and wanted.state in (None, entry.state)
            and wanted.bucket in (None, entry.bucket)
            and wanted.category in (None, entry.category)
            and entry.tags >= tags
            and labels.issubset(entry.label_keys)
            and submitted_between(entry)
            and all(word in entry.text for word in words)
        )

    return matches


def _seconds(text: str | None) -> float | None:
    """Return a time as unix seconds; None for None or an invalid time, which other services may write."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
