"""Report of a reconciler pass: overdue images and the events resent for them."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from schemas.values import Value


class Standing(StrEnum):
    """State of one thing that an image waits for."""

    WAITING = "waiting"  # not yet overdue
    OVERDUE = "overdue"  # its event was, would be or will soon be resent
    QUEUED = "queued"  # its agent has not reached the event yet
    PAUSED = "paused"  # its agent is paused
    STUCK = "stuck"  # resending had no effect, or is impossible


class OverdueItem(Value):
    """One overdue piece of work."""

    image_id: str
    generation: int
    stage: str = Field(description="agent that has to do it")
    reason: str = Field(examples=["stage-missing"])
    standing: Standing
    age_s: float = Field(description="seconds since the image's last fact")
    tries: int = Field(description="number of earlier resends")
    sent: bool = Field(description="resent by this pass; in a dry run: would be")


class OldestUnfinished(Value):
    """The earliest accepted unfinished image."""

    image_id: str
    stage: str
    age_s: float = Field(description="seconds since its acceptance")


class ReconcileReport(Value):
    """One pass over all images. Lists are truncated; the counts beside them are not."""

    dry_run: bool
    at: str = Field(description="RFC 3339, UTC")
    took_s: float
    complete: bool = Field(description="every object was checked, not only the next page")
    images: dict[str, int] = Field(description="images by state in the read model")
    unfinished: dict[str, dict[Standing, int]] = Field(description="stage -> standing -> images")
    oldest: OldestUnfinished | None = None
    overdue: tuple[OverdueItem, ...] = ()
    overdue_count: int = 0
    sent: dict[str, int] = Field(default_factory=dict, description="stage -> events resent; in a dry run: would be")
    missing_objects: tuple[str, ...] = Field(default=(), description="keys of missing objects of completed images")
    missing_count: int = 0
    swept: dict[str, int] = Field(default_factory=dict, description="counts of the janitor's sweep")
