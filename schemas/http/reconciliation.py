"""What a look over all images found that is not finished, and what was done about it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from schemas.values import Value


class Standing(StrEnum):
    """Where one thing an image waits for stands."""

    WAITING = "waiting"  # not for long enough to be overdue
    OVERDUE = "overdue"  # an event was, would be or soon will be sent again
    QUEUED = "queued"  # its agent has not come so far yet
    PAUSED = "paused"  # its agent is paused
    STUCK = "stuck"  # sending again had no effect, or cannot be done


class OverdueItem(Value):
    """One thing that took too long."""

    image_id: str
    generation: int
    stage: str = Field(description="the agent it waits for")
    reason: str = Field(examples=["stage-missing"])
    standing: Standing
    age_s: float = Field(description="seconds since the last that was heard of it")
    tries: int = Field(description="how often the event was sent again before")
    sent: bool = Field(description="sent again by this look; in a dry run: would be")


class OldestUnfinished(Value):
    """The unfinished image that was accepted first."""

    image_id: str
    stage: str
    age_s: float = Field(description="seconds since it was accepted")


class ReconcileReport(Value):
    """One look over all images. Lists are cut; the counts beside them are not."""

    dry_run: bool
    at: str = Field(description="RFC 3339, UTC")
    took_s: float
    complete: bool = Field(description="everything was looked at, not only the next part of it")
    images: dict[str, int] = Field(description="images by state, as the read model has them")
    unfinished: dict[str, dict[Standing, int]] = Field(description="stage -> standing -> images")
    oldest: OldestUnfinished | None = None
    overdue: tuple[OverdueItem, ...] = ()
    overdue_count: int = 0
    sent: dict[str, int] = Field(default_factory=dict, description="stage -> events sent again; in a dry run: would be")
    missing_objects: tuple[str, ...] = Field(default=(), description="keys that a completed image names, and are gone")
    missing_count: int = 0
    swept: dict[str, int] = Field(default_factory=dict, description="what the janitor found beside that")
