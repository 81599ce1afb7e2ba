"""The erasure of an image: what is left when it is deleted, and what can be checked of it. No personal data."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from schemas.values import ID_PATTERN, OWNER_PATTERN, Value


class ErasureState(StrEnum):
    """How far an erasure is."""

    REQUESTED = "requested"
    ERASED = "erased"
    FINISHED = "finished"


class Removed(Value):
    """How many of each were removed."""

    objects: int = Field(default=0, ge=0, description="masters, renditions and whatever else was stored of the image")
    originals: int = Field(default=0, ge=0, description="bytes as received, if no other image of the owner has them")
    results: int = Field(default=0, ge=0, description="what was computed from these bytes, if nobody else has them")
    receipts: int = Field(default=0, ge=0, description="what the gateway wrote down of requests")
    dead_letters: int = Field(default=0, ge=0, description="events given up on: closed, and gone by `leaves_log_by`")

    def __add__(self, other: Removed) -> Removed:
        return Removed.model_validate({name: mine + getattr(other, name) for name, mine in self})

    def at_least(self, other: Removed) -> Removed:
        """Return the greater of each: what an attempt that was interrupted had counted already."""
        return Removed.model_validate({name: max(mine, getattr(other, name)) for name, mine in self})

    def total(self) -> int:
        """Return how many there were of all kinds together."""
        return sum(count for _, count in self)


class Erasure(Value):
    """The tombstone of a deleted image, which is also the receipt of its deletion. Times are RFC 3339, UTC."""

    image_id: str = Field(pattern=ID_PATTERN)
    owner: str = Field(pattern=OWNER_PATTERN)
    generation: int = Field(ge=1, description="of the deletion: whatever is of this generation or a lower one is over")
    requested_at: str
    certain_at: str | None = Field(default=None, description="when the indexer read the deletion from the log")
    erased_at: str | None = Field(default=None, description="when all that was there had been removed")
    finished_at: str | None = Field(default=None, description="when nothing could be written late any more")
    removed: Removed = Field(default_factory=Removed)
    leaves_log_by: str = Field(description="when the last event about the image is past its topic's retention")

    @property
    def state(self) -> ErasureState:
        """How far it is."""
        if self.finished_at is not None:
            return ErasureState.FINISHED
        return ErasureState.ERASED if self.erased_at is not None else ErasureState.REQUESTED

    def covers(self, owner: str, generation: int) -> bool:
        """Say whether work on a generation of the image is over for certain."""
        return self.certain_at is not None and self.owner == owner and generation <= self.generation
