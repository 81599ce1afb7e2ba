"""The evidence of a run, which the guarantees are checked against."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.values import ImageState
from tests.storm.uploads import Sent

GONE, ABSENT = "gone", "absent"  # the gateway's answer for a deleted and for an unknown image


@dataclass(frozen=True, slots=True)
class RecordedOutcome:
    """An outcome event in the log."""

    image_id: str
    generation: int
    id: str
    kind: str


@dataclass(frozen=True, slots=True)
class Position:
    """The position and the image of an event in a work topic."""

    topic: str
    partition: int
    offset: int
    image_id: str | None


@dataclass(frozen=True, slots=True)
class CommitSample:
    """The committed offsets of all groups at a time: the next offset by (agent, topic, partition)."""

    at: float  # unix seconds, when the response arrived
    offsets: dict[tuple[str, str, int], int]


@dataclass(slots=True)
class Evidence:
    """Everything known about a run, of the images of its owner."""

    sent: list[Sent] = field(default_factory=list)
    number_of: dict[str, int] = field(default_factory=dict)  # image id -> number in its metadata
    states: dict[str, str] = field(default_factory=dict)  # image id -> state reported by the gateway
    unfinished: dict[str, list[str]] = field(default_factory=dict)  # completed image -> missing stages
    outcomes: list[RecordedOutcome] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)  # of all stored objects
    receipts: dict[str, int | None] = field(default_factory=dict)  # job id -> number in its metadata
    hashes: dict[str, set[str]] = field(default_factory=dict)  # image id -> sha256 of its original and master
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)  # image id -> name -> sha256
    calm: dict[str, dict[str, str]] = field(default_factory=dict)  # content -> name -> sha256, of a run without faults
    refusals: dict[str, tuple[str, float]] = field(default_factory=dict)  # image id -> code and time of its rejection
    dead_letters: dict[str, set[str]] = field(default_factory=dict)  # image id -> codes of its dead letters
    replayed: dict[str, str] = field(default_factory=dict)  # failed image -> state after the replay
    poison: list[tuple[str, bytes, bool]] = field(default_factory=list)  # agent, value, whether it was dead-lettered
    child_deaths: list[tuple[float, str]] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)
    follow_ups: dict[tuple[str, str], float] = field(
        default_factory=dict
    )  # (agent, image) -> time of the first follow-up event
    diverted: dict[tuple[str, str, int, int], float] = field(
        default_factory=dict
    )  # delayed or dead: (agent, *position) -> time
    commits: list[CommitSample] = field(default_factory=list)
    uncommitted: dict[str, int] = field(default_factory=dict)  # group/topic/partition -> lag at the end
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)  # process -> peak and limit in bytes
    left: dict[str, list[str]] = field(default_factory=dict)  # kind of leftover -> those found
    faults: list[tuple[str, str]] = field(default_factory=list)  # fault, why it was not injected ("" if it was)

    def accepted(self) -> list[Sent]:
        """Return the uploads answered 202."""
        return [sent for sent in self.sent if sent.accepted]

    def by_image(self) -> dict[str, Sent]:
        """Return the upload of each image, also of those whose response was lost."""
        numbers = {sent.number: sent for sent in self.sent}
        found = {image_id: numbers[number] for image_id, number in self.number_of.items() if number in numbers}
        return {**found, **{sent.image_id: sent for sent in self.sent if sent.image_id}}

    def alive(self) -> set[str]:
        """Return the known images that are not deleted."""
        return {image_id for image_id, state in self.states.items() if state not in {GONE, ABSENT, ImageState.DELETED}}
