"""The catalogue of the read model in this process: what of each image is looked up other than by id."""

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
    """What the catalogue knows of an image. `text` is its words between single spaces."""

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
        """Return the entry of a record."""
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


def suiting(wanted: Filters) -> Callable[[Entry], bool]:
    """Return the test whether a listing has an image. What is deleted, or on the way there, is in none."""
    labels, tags = frozenset(map(label_key, wanted.labels)), frozenset(wanted.tags)
    words = [f" {word} " for word in text_words(wanted.text)]
    since, until = (moment.timestamp() if moment is not None else None for moment in (wanted.since, wanted.until))

    def came_between(entry: Entry) -> bool:
        if since is None and until is None:
            return True
        if entry.submitted is None or (since is not None and entry.submitted < since):
            return False
        return until is None or entry.submitted < until

    def suits(entry: Entry) -> bool:
        return (
            not entry.deleted
            and entry.state != ImageState.DELETED
            and wanted.state in (None, entry.state)
            and wanted.bucket in (None, entry.bucket)
            and wanted.category in (None, entry.category)
            and entry.tags >= tags
            and labels.issubset(entry.label_keys)
            and came_between(entry)
            and all(word in entry.text for word in words)
        )

    return suits


def _seconds(text: str | None) -> float | None:
    """Return a time as unix seconds, None if there is none; another service may have written anything."""
    try:
        said = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return (said if said.tzinfo is not None else said.replace(tzinfo=UTC)).timestamp()
