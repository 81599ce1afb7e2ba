"""What operators say and are told over HTTP: dead letters, numbers, failures."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from schemas.values import STAGES, Value

LETTER_PATTERN = r"^[0-9]{1,6}-[0-9]{1,18}$"
MAX_LETTERS = 200  # of one page, and acts of one request
LETTERS = 50


class LetterView(Value):
    """One dead letter, without what is in it."""

    agent: str = Field(examples=["sanitizer"])
    id: str = Field(description="its name within its agent", examples=["0-17"])
    code: str = Field(description="one of the stable codes", examples=["object-changed"])
    message: str = Field(description="for operators", examples=["the original has other bytes than the event says"])
    image_id: str | None = Field(None, examples=["019a7c3e-9d2b-7f41-8a55-3c1de0b7a912"])
    attempts: int = Field(examples=[3])
    replays: int = Field(description="how often it was replayed before it died this time", examples=[0])
    died_at: str = Field(examples=["2026-11-21T18:00:00.000Z"])
    topic: str | None = Field(None, description="where the event was first", examples=["image.uploaded"])
    size_bytes: int = Field(description="of the event's body", examples=[742])
    handled: str | None = Field(None, description="replayed, discarded or erased", examples=["replayed"])


class LetterPage(Value):
    """Dead letters by agent, partition and offset."""

    letters: tuple[LetterView, ...]
    next_cursor: str | None = Field(None, description="absent on the last page")


class LetterDetail(LetterView):
    """One dead letter whole; its body only when it was asked for."""

    headers: dict[str, str] = Field(description="as they are in Kafka: the event's own, and why it died")
    payload: str | None = Field(None, description="the event's body; it may hold what a client sent")


_GIVE_UP = (*STAGES, "scheduler")  # who leaves dead letters; a test holds it to theirs


class LetterFilter(BaseModel):
    """Which dead letters are meant: all of these hold."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"dependentRequired": {"letter_id": ["agent"]}}
    )

    agent: str | None = Field(
        None, max_length=64, examples=["sanitizer"], json_schema_extra={"enum": [*_GIVE_UP, None]}
    )
    code: str | None = Field(None, max_length=64, examples=["object-changed"])
    image_id: str | None = Field(None, max_length=64, examples=["019a7c3e-9d2b-7f41-8a55-3c1de0b7a912"])
    letter_id: str | None = Field(None, pattern=LETTER_PATTERN, description="of the agent named", examples=["0-17"])
    since: AwareDatetime | None = Field(None, description="died then or later", examples=["2026-11-21T18:00:00Z"])
    dry_run: bool = Field(True, strict=True, description="only say what would be done")
    limit: int = Field(LETTERS, ge=1, le=MAX_LETTERS, description="letters at most")
    cursor: str | None = Field(None, max_length=200, description="`next_cursor` of the answer before")


class ReplayRequest(LetterFilter):
    """Give dead letters another life. Those that were dealt with before are left alone."""

    per_second: float = Field(20.0, ge=0.1, le=200, description="letters a second at most")


class DiscardRequest(LetterFilter):
    """Set dead letters aside for good, leaving an audit record."""

    reason: str = Field(min_length=1, max_length=500, description="kept with the record")


class LetterAct(Value):
    """What was done with one letter, or would be."""

    agent: str = Field(examples=["sanitizer"])
    id: str = Field(examples=["0-17"])
    image_id: str | None = None
    code: str = Field(examples=["object-changed"])
    act: Literal["would-replay", "replayed", "replay-limit", "would-discard", "discarded"]


class LetterActs(Value):
    """What was done, or would be."""

    dry_run: bool
    acts: tuple[LetterAct, ...]
    next_cursor: str | None = Field(None, description="there is more to look at: go on with this")


class FailedImage(Value):
    """One image that could not be processed."""

    image_id: str = Field(examples=["019a7c3e-9d2b-7f41-8a55-3c1de0b7a912"])
    job_id: str = Field(examples=["019a7c3e-9d2b-7f41-8a55-3c1de0b7a912.1"])
    owner: str | None = Field(None, description="told to those who see all owners", examples=["default"])
    code: str = Field(description="one of the stable codes", examples=["deadline-exceeded"])
    message: str = Field(examples=["the stage took longer than 120 s"])
    stage: str | None = Field(None, description="the first that gave up", examples=["ocr"])
    stages: dict[str, str] = Field(
        default_factory=dict,
        description="every stage that gave up, and its code",
        examples=[{"ocr": "deadline-exceeded"}],
    )
    submitted_at: str | None = Field(None, examples=["2026-11-21T17:59:12.480Z"])
    failed_at: str | None = Field(None, examples=["2026-11-21T18:02:40.113Z"])
    status_url: str
    dead_letters_url: str | None = Field(None, description="its dead letters, for operators")


class FailedPage(Value):
    """Images that could not be processed, those accepted last first."""

    images: tuple[FailedImage, ...]
    next_cursor: str | None = Field(None, description="absent on the last page")


class Held(Value):
    """Objects, and the bytes they take."""

    objects: int = Field(examples=[1200])
    bytes: int = Field(examples=[640_000_000])


class StageCounts(Value):
    """How the stages of images ended, by stage and state; counted from time to time."""

    counts: dict[str, dict[str, int]] = Field(
        description="`pending`: of unfinished images, not ended yet",
        examples=[{"ocr": {"done": 960, "pending": 31, "failed": 2, "skipped": 7}}],
    )
    images: int = Field(description="images looked at, the newest first", examples=[1000])
    complete: bool = Field(description="false: there are more images than are looked at")
    as_of: str = Field(description="when the count was done", examples=["2026-11-21T18:00:00.000Z"])


class StorageCounts(Value):
    """What is stored; counted from time to time."""

    kinds: dict[str, Held] = Field(examples=[{"originals": {"objects": 1200, "bytes": 640_000_000}}])
    complete: bool = Field(description="false: there is more than is counted")
    as_of: str = Field(description="when the count was done", examples=["2026-11-21T18:00:00.000Z"])


class RateCounts(Value):
    """Images a minute, over the last 1, 5 and 15 minutes, from the log: the same whichever gateway is asked."""

    accepted: dict[str, float] = Field(examples=[{"1": 12.0, "5": 10.4, "15": 9.8}])
    completed: dict[str, float] = Field(examples=[{"1": 11.0, "5": 10.2, "15": 9.7}])
    rejected: dict[str, float] = Field(examples=[{"1": 0.0, "5": 0.2, "15": 0.07}])
    failed: dict[str, float] = Field(examples=[{"1": 0.0, "5": 0.0, "15": 0.0}])
    complete: bool = Field(description="false: so much came that not all is counted yet")
    as_of: str = Field(examples=["2026-11-21T18:00:00.000Z"])


class OldestWaiting(Value):
    """The image that was accepted first of those that have not ended, as far as the pipeline has seen it."""

    image_id: str = Field(examples=["019a7c3e-9d2b-7f41-8a55-3c1de0b7a912"])
    submitted_at: str | None = Field(None, examples=["2026-11-21T17:59:12.480Z"])
    age_s: float = Field(examples=[8.4])


class QueueView(Value):
    """What waits for one agent."""

    waiting: int = Field(description="events", examples=[42])


class Statistics(Value):
    """How much there is, and how fast it goes. What could not be counted in time is absent."""

    of: Literal["everybody", "owner"] = Field(description="whose images these numbers are of")
    images: dict[str, int] = Field(description="by state", examples=[{"completed": 960, "processing": 31, "failed": 2}])
    oldest_unfinished: OldestWaiting | None = None
    rates: RateCounts | None = None
    stages: StageCounts | None = None
    storage: StorageCounts | None = Field(
        None, description="of everybody: all objects by kind; of an owner: what their images name"
    )
    queues: dict[str, QueueView] | None = Field(None, description="by agent, for operators")
