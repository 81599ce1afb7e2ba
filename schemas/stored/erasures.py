"""The erasure of an image: its tombstone and deletion report. No personal data."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from schemas.values import ID_PATTERN, OWNER_PATTERN, Value


class ErasureState(StrEnum):
    """Progress of an erasure."""

    REQUESTED = "requested"
    ERASED = "erased"
    FINISHED = "finished"


class Removed(Value):
    """Removed objects by kind."""

    objects: int = Field(default=0, ge=0, description="masters, renditions and other objects of the image")
    originals: int = Field(default=0, ge=0, description="originals that no other image of the owner uses")
    results: int = Field(default=0, ge=0, description="results of these originals that no other image uses")
    receipts: int = Field(default=0, ge=0, description="the gateway's receipts")
    dead_letters: int = Field(
        default=0, ge=0, description="dead letters, closed; removed by retention by `leaves_log_by`"
    )

    def __add__(self, other: Removed) -> Removed:
        return Removed.model_validate({name: mine + getattr(other, name) for name, mine in self})

    def at_least(self, other: Removed) -> Removed:
        """Return the greater count of each kind: an interrupted attempt had counted some already."""
        return Removed.model_validate({name: max(mine, getattr(other, name)) for name, mine in self})

    def total(self) -> int:
        """Return the sum of all kinds."""
        return sum(count for _, count in self)


class Erasure(Value):
    """The tombstone of a deleted image, which is also the receipt of its deletion. Times are RFC 3339, UTC."""

    image_id: str = Field(pattern=ID_PATTERN)
    owner: str = Field(pattern=OWNER_PATTERN)
    generation: int = Field(ge=1, description="of the deletion: it supersedes this generation and all lower ones")
    requested_at: str
    certain_at: str | None = Field(default=None, description="when the indexer read the deletion from the log")
    erased_at: str | None = Field(default=None, description="when all stored objects had been removed")
    finished_at: str | None = Field(default=None, description="when no late write was possible any more")
    removed: Removed = Field(default_factory=Removed)
    leaves_log_by: str = Field(description="when topic retention removes the last event about the image")

    @property
    def state(self) -> ErasureState:
        """Progress of the erasure."""
        if self.finished_at is not None:
            return ErasureState.FINISHED
        return ErasureState.ERASED if self.erased_at is not None else ErasureState.REQUESTED

    def covers(self, owner: str, generation: int) -> bool:
        """Return whether this erasure certainly supersedes a generation of the image."""
        return self.certain_at is not None and self.owner == owner and generation <= self.generation
