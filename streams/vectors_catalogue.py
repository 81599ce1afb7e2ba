"""The catalogue of the read model in this process: what of each image is looked up other than by id."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from schemas.values import ImageState
from streams.vectors import Filters, ImageRecord
from streams.vectors_schema import label_key, text_words, words_of


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

    def suits(self, wanted: Filters) -> bool:
        """Say whether a listing of those filters has the image. What is deleted, or on the way there, is in none."""
        if self.deleted or self.state == ImageState.DELETED:
            return False
        alike = (
            wanted.state in (None, self.state)
            and wanted.bucket in (None, self.bucket)
            and wanted.category in (None, self.category)
            and self.tags.issuperset(wanted.tags)
            and all(label_key(label) in self.label_keys for label in wanted.labels)
            and all(f" {word} " in self.text for word in text_words(wanted.text))
        )
        return alike and self._came_between(wanted.since, wanted.until)

    def _came_between(self, since: datetime | None, until: datetime | None) -> bool:
        if since is None and until is None:
            return True
        if self.submitted is None or (since is not None and self.submitted < since.timestamp()):
            return False
        return until is None or self.submitted < until.timestamp()


def _seconds(text: str | None) -> float | None:
    """Return a time as unix seconds, None if there is none; another service may have written anything."""
    try:
        said = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return (said if said.tzinfo is not None else said.replace(tzinfo=UTC)).timestamp()
