"""HTTP bodies for operators: dead letters, statistics, failed images."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from schemas.values import STAGES, Value

LETTER_PATTERN = r"^[0-9]{1,6}-[0-9]{1,18}$"
MAX_LETTERS = 200  # of one page, and actions of one request
LETTERS = 50


class LetterView(Value):
    """One dead letter without its body."""

    agent: str = Field(examples=["sanitizer"])
    id: str = Field(description="id within its agent", examples=["0-17"])
    code: str = Field(description="stable error code", examples=["object-changed"])
    message: str = Field(
        description="message for operators", examples=["the original has other bytes than the event says"]
    )
    image_id: str | None = Field(None, examples=["019a7c3e-9d2b-7f41-8a55-3c1de0b7a912"])
    attempts: int = Field(examples=[3])
    replays: int = Field(description="number of replays before this failure", examples=[0])
    died_at: str = Field(examples=["2026-11-21T18:00:00.000Z"])
    topic: str | None = Field(None, description="topic of the original event", examples=["image.uploaded"])
    size_bytes: int = Field(description="bytes of the event's body", examples=[742])
    handled: str | None = Field(None, description="replayed, discarded or erased", examples=["replayed"])


class LetterPage(Value):
    """Dead letters by agent, partition and offset."""

    letters: tuple[LetterView, ...]
    next_cursor: str | None = Field(None, description="absent on the last page")


class LetterDetail(LetterView):
    """One dead letter with headers; with its body on request."""

    headers: dict[str, str] = Field(description="Kafka headers: those of the event, and the reason of the failure")
    payload: str | None = Field(None, description="the event's body; it may contain client data")


_DEAD_LETTER_SOURCES = (
    *STAGES,
    "scheduler",
)  # agents and scheduler, which write dead letters; a test compares the list


class LetterFilter(BaseModel):
    """Selects dead letters: all conditions apply."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"dependentRequired": {"letter_id": ["agent"]}}
    )

    agent: str | None = Field(
        None, max_length=64, examples=["sanitizer"], json_schema_extra={"enum": [*_DEAD_LETTER_SOURCES, None]}
    )
    code: str | None = Field(None, max_length=64, examples=["object-changed"])
    image_id: str | None = Field(None, max_length=64, examples=["019a7c3e-9d2b-7f41-8a55-3c1de0b7a912"])
    letter_id: str | None = Field(
        None, pattern=LETTER_PATTERN, description="letter of the named agent", examples=["0-17"]
    )
    since: AwareDatetime | None = Field(
        None, description="failed at this time or later", examples=["2026-11-21T18:00:00Z"]
    )
    dry_run: bool = Field(True, strict=True, description="only report what would be done")
    limit: int = Field(LETTERS, ge=1, le=MAX_LETTERS, description="at most this many letters")
    cursor: str | None = Field(None, max_length=200, description="`next_cursor` of the previous answer")


class ReplayRequest(LetterFilter):
    """Replay dead letters. Letters that were replayed or discarded before are skipped."""

    per_second: float = Field(20.0, ge=0.1, le=200, description="at most this many letters per second")


class DiscardRequest(LetterFilter):
    """Discard dead letters permanently, with an audit record."""

    reason: str = Field(min_length=1, max_length=500, description="stored in the audit record")


class LetterAct(Value):
    """The action on one letter, done or, in a dry run, planned."""

    agent: str = Field(examples=["sanitizer"])
    id: str = Field(examples=["0-17"])
    image_id: str | None = None
    code: str = Field(examples=["object-changed"])
    act: Literal["would-replay", "replayed", "replay-limit", "would-discard", "discarded"]


class LetterActs(Value):
    """The actions on several letters, done or, in a dry run, planned."""

    dry_run: bool
    acts: tuple[LetterAct, ...]
    next_cursor: str | None = Field(None, description="continue with this cursor; absent at the end")


class FailedImage(Value):
    """One image that could not be processed."""

    image_id: str = Field(examples=["019a7c3e-9d2b-7f41-8a55-3c1de0b7a912"])
    job_id: str = Field(examples=["019a7c3e-9d2b-7f41-8a55-3c1de0b7a912.1"])
    owner: str | None = Field(None, description="only for callers who see all owners", examples=["default"])
    code: str = Field(description="stable error code", examples=["deadline-exceeded"])
    message: str = Field(examples=["the stage took longer than 120 s"])
    stage: str | None = Field(None, description="first stage that failed", examples=["ocr"])
    stages: dict[str, str] = Field(
        default_factory=dict,
        description="every failed stage and its code",
        examples=[{"ocr": "deadline-exceeded"}],
    )
    submitted_at: str | None = Field(None, examples=["2026-11-21T17:59:12.480Z"])
    failed_at: str | None = Field(None, examples=["2026-11-21T18:02:40.113Z"])
    status_url: str
    dead_letters_url: str | None = Field(None, description="link to its dead letters, for operators")


class FailedPage(Value):
    """Images that could not be processed, newest first."""

    images: tuple[FailedImage, ...]
    next_cursor: str | None = Field(None, description="absent on the last page")


class Held(Value):
    """Number and size of objects."""

    objects: int = Field(examples=[1200])
    bytes: int = Field(examples=[640_000_000])


class StageCounts(Value):
    """Images by stage and state; counted periodically."""

    counts: dict[str, dict[str, int]] = Field(
        description="`pending`: unfinished images whose stage has not ended",
        examples=[{"ocr": {"done": 960, "pending": 31, "failed": 2, "skipped": 7}}],
    )
    images: int = Field(description="images counted, newest first", examples=[1000])
    complete: bool = Field(description="false: there are more images than were counted")
    as_of: str = Field(description="time of the count", examples=["2026-11-21T18:00:00.000Z"])


class StorageCounts(Value):
    """Stored objects; counted periodically."""

    kinds: dict[str, Held] = Field(examples=[{"originals": {"objects": 1200, "bytes": 640_000_000}}])
    complete: bool = Field(description="false: there are more objects than were counted")
    as_of: str = Field(description="time of the count", examples=["2026-11-21T18:00:00.000Z"])


class RateCounts(Value):
    """Images per minute, averaged over the last 1, 5 and 15 minutes, from the log: the same from every gateway."""

    accepted: dict[str, float] = Field(examples=[{"1": 12.0, "5": 10.4, "15": 9.8}])
    completed: dict[str, float] = Field(examples=[{"1": 11.0, "5": 10.2, "15": 9.7}])
    rejected: dict[str, float] = Field(examples=[{"1": 0.0, "5": 0.2, "15": 0.07}])
    failed: dict[str, float] = Field(examples=[{"1": 0.0, "5": 0.0, "15": 0.0}])
    complete: bool = Field(description="false: not all events are counted yet")
    as_of: str = Field(examples=["2026-11-21T18:00:00.000Z"])


class OldestWaiting(Value):
    """The earliest accepted image that has not ended, as far as the pipeline has read it."""

    image_id: str = Field(examples=["019a7c3e-9d2b-7f41-8a55-3c1de0b7a912"])
    submitted_at: str | None = Field(None, examples=["2026-11-21T17:59:12.480Z"])
    age_s: float = Field(examples=[8.4])


class QueueView(Value):
    """An agent's backlog."""

    waiting: int = Field(description="events", examples=[42])


class Statistics(Value):
    """Statistics of images and throughput. Values that could not be counted in time are absent."""

    of: Literal["everybody", "owner"] = Field(description="owner of the counted images")
    images: dict[str, int] = Field(
        description="images by state", examples=[{"completed": 960, "processing": 31, "failed": 2}]
    )
    oldest_unfinished: OldestWaiting | None = None
    rates: RateCounts | None = None
    stages: StageCounts | None = None
    storage: StorageCounts | None = Field(
        None, description="everybody: all objects by kind; owner: objects that their images name"
    )
    queues: dict[str, QueueView] | None = Field(None, description="backlog by agent, for operators")
