"""Records of the read model, and the filters and hits of its queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import Field, JsonValue

from schemas.http.history import LineageKind
from schemas.stored.results import CaptureDetails, Colour, PageImage
from schemas.values import DetectedObject, ImageState, ObjectRef, Profile, Rendition, StageState, Value

VECTOR = "clip"
DIMENSIONS = 512
HISTORY_LIMIT = 200  # entries of one image


class StageRecord(Value):
    """Outcome of one stage for one image."""

    state: StageState
    run: int = 0  # the rerun that produced this; 0 = the first run
    version: str = ""
    attempts: int = 1
    duration_ms: int = 0
    reused: bool = False
    reason: str | None = None  # an ErrorCode, when skipped, rejected or failed
    message: str | None = None
    result: ObjectRef | None = None
    finished_at: str | None = None
    public: tuple[str, ...] = ()  # the keys of `ImageRecord.analysis` clients see of this stage
    lineage: LineageKind | None = None  # of what this stage records in `ImageRecord.analysis`


class StageRetry(Value):
    """The last try of a stage that has not ended: it will be tried again."""

    attempts: int
    code: str  # an ErrorCode
    message: str
    next_try_at: str  # RFC 3339
    postponed: int = 0  # times it waited although nothing had failed


class HistoryEntry(Value):
    """One fact as the indexer read it. Stored next to the record, not in it."""

    event_id: str
    type: str
    generation: int
    stage: str
    state: StageState | None = None  # None: not a stage's fact
    reason: str | None = None  # an ErrorCode
    attempts: int | None = None
    duration_ms: int | None = None
    reused: bool = False
    version: str | None = None
    run: int = 0
    worker: str | None = None  # the worker that emitted it
    occurred_at: str
    recorded_at: str  # its timestamp in the log
    trace_id: str | None = None
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None


class ImageRecord(Value):
    """One image in the read model."""

    image_id: str
    owner: str
    generation: int
    state: ImageState = ImageState.PROCESSING
    deleted: bool = False
    required: tuple[str, ...] = ()
    parameters: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)  # of the image's profile, by stage
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    retries: dict[str, StageRetry] = Field(default_factory=dict)  # of stages that had not ended then
    bucket: str = "default"
    filename: str | None = None
    source_url: str | None = None
    tags: tuple[str, ...] = ()
    category: str | None = None
    context: dict[str, JsonValue] = Field(default_factory=dict)
    revision: int = 0  # of tags, category and context: 0 = as they were submitted
    revised_at: str | None = None
    original: ObjectRef | None = None
    master: ObjectRef | None = None
    width: int | None = None
    height: int | None = None
    source_format: str | None = None
    frames: int | None = None
    has_alpha: bool | None = None
    perceptual_hash: str | None = None
    dominant_colour: str | None = None
    palette: tuple[Colour, ...] = ()
    thumbhash: str | None = None
    capture: CaptureDetails | None = None
    pages: tuple[PageImage, ...] = ()  # of a document, those after the first
    renditions: tuple[Rendition, ...] = ()
    text: str | None = None
    text_confidence: float | None = None
    objects: tuple[DetectedObject, ...] = ()
    labels: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()  # values of its barcodes that are text
    has_vector: bool = False
    analysis: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)  # by stage: what it declares to record
    error_code: str | None = None
    error_message: str | None = None
    submitted_at: str | None = None
    updated_at: str | None = None
    finished_at: str | None = None
    finished_by: str | None = None  # ce_id of the fact that completed it: only that fact emits the outcome

    def sanitized(self) -> tuple[ObjectRef, ...]:
        """Return what the sanitizer stored: the master and further pages."""
        pages = tuple(page.object for page in self.pages)
        return (self.master, *pages) if self.master is not None else pages

    def profile(self) -> Profile:
        """Return the profile of the image's events."""
        return Profile(stages=self.required, parameters=self.parameters)


@dataclass(frozen=True, slots=True)
class Change:
    """What is written to a record; stages, analyses and history entries by name, beside those that are there."""

    patch: Mapping[str, JsonValue] = field(default_factory=dict)  # top-level keys; None removes one
    stages: Mapping[str, StageRecord] = field(default_factory=dict)
    analysis: Mapping[str, Mapping[str, JsonValue]] = field(default_factory=dict)
    history: Mapping[str, HistoryEntry] = field(default_factory=dict)  # above HISTORY_LIMIT, the oldest are removed
    vector: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a search."""

    record: ImageRecord
    score: float
    matched: tuple[str, ...]  # "meaning", or the `way` of each searchable key that contains one of the words


@dataclass(frozen=True, slots=True)
class Filters:
    """Filters of a listing; a None or empty one matches all."""

    state: ImageState | None = None
    bucket: str | None = None
    labels: tuple[str, ...] = ()  # all of them, ignoring case
    tags: tuple[str, ...] = ()  # all of them, exactly
    category: str | None = None
    since: datetime | None = None  # submitted then or later
    until: datetime | None = None  # submitted earlier
    text: str | None = None  # words that are all in the image's text


def shortened(entries: Mapping[str, HistoryEntry]) -> dict[str, HistoryEntry]:
    """Return the entries to keep: first those of reruns are removed, then repetitions, the oldest first."""
    oldest_first = sorted(entries, key=lambda name: (entries[name].occurred_at, name))
    firsts: dict[tuple[str, int], str] = {}
    for name in oldest_first:
        firsts.setdefault((entries[name].stage, entries[name].generation), name)
    first = set(firsts.values())
    least_first = sorted(oldest_first, key=lambda name: (name in first, entries[name].run == 0))
    kept = set(least_first[-HISTORY_LIMIT:])
    return {name: entry for name, entry in entries.items() if name in kept}
