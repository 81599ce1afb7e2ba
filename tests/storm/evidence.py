"""What the books are balanced from."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.values import ImageState
from tests.storm.uploads import Sent

GONE, ABSENT = "gone", "absent"  # what the gateway says of an image that was deleted, and of one it does not know


@dataclass(frozen=True, slots=True)
class OutcomeSaid:
    """One outcome event on the topic."""

    image_id: str
    generation: int
    id: str
    kind: str


@dataclass(frozen=True, slots=True)
class Position:
    """One event of a work topic, and of which image it is."""

    topic: str
    partition: int
    offset: int
    image_id: str | None


@dataclass(frozen=True, slots=True)
class CommitSample:
    """What the groups had committed at a time: the next offset by (agent, topic, partition)."""

    at: float  # unix seconds, when the answer was there
    offsets: dict[tuple[str, str, int], int]


@dataclass(slots=True)
class Evidence:
    """Everything the books are balanced from. Image ids are those of the storm, other owners' left out."""

    sent: list[Sent] = field(default_factory=list)
    number_of: dict[str, int] = field(default_factory=dict)  # image id -> the number its metadata says
    states: dict[str, str] = field(default_factory=dict)  # image id -> its state, as the gateway says
    unfinished: dict[str, list[str]] = field(default_factory=dict)  # completed image -> what is missing or unreadable
    outcomes: list[OutcomeSaid] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)  # of all objects
    receipts: dict[str, int | None] = field(default_factory=dict)  # job id -> the number its metadata says
    hashes: dict[str, set[str]] = field(default_factory=dict)  # image id -> sha256 of its original and master
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)  # image id -> name -> sha256
    calm: dict[str, dict[str, str]] = field(default_factory=dict)  # content -> name -> sha256, of a run without faults
    refusals: dict[str, tuple[str, float]] = field(default_factory=dict)  # image id -> code and time of its refusal
    letters: dict[str, set[str]] = field(default_factory=dict)  # image id -> codes of its dead letters
    mended: dict[str, str] = field(default_factory=dict)  # image that failed -> its state after the replay
    poison: list[tuple[str, bytes, bool]] = field(default_factory=list)  # agent, value, whether it is a dead letter
    child_deaths: list[tuple[float, str]] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)
    follow_ups: dict[tuple[str, str], float] = field(default_factory=dict)  # (agent, image) -> first sign of its work
    set_aside: dict[tuple[str, str, int, int], float] = field(default_factory=dict)  # (agent, *position) -> when
    commits: list[CommitSample] = field(default_factory=list)
    uncommitted: dict[str, int] = field(default_factory=dict)  # group/topic/partition -> events left at the end
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)  # process -> peak and limit, bytes
    left: dict[str, list[str]] = field(default_factory=dict)  # what should not be there -> those found
    faults: list[tuple[str, str]] = field(default_factory=list)  # fault, why it did not strike ("" if it did)

    def accepted(self) -> list[Sent]:
        """Return what was answered 202."""
        return [sent for sent in self.sent if sent.accepted]

    def by_image(self) -> dict[str, Sent]:
        """Return who sent each image, also those whose sender was not told its id."""
        numbers = {sent.number: sent for sent in self.sent}
        found = {image_id: numbers[number] for image_id, number in self.number_of.items() if number in numbers}
        return {**found, **{sent.image_id: sent for sent in self.sent if sent.image_id}}

    def alive(self) -> set[str]:
        """Return the images that exist: known, and not deleted."""
        return {image_id for image_id, state in self.states.items() if state not in {GONE, ABSENT, ImageState.DELETED}}
