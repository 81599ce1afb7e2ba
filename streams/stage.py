"""The stage contract: declares an agent, independent of Kafka.

A stage is a pure description. Its function computes results from events; the runtime decodes, looks up existing
results, retries, stores, emits, counts, dead-letters and acks. A stage never retries, counts, logs and continues, or
sees offsets, headers, Faust or the dead letters.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from schemas.events.envelope import Event
from schemas.events.facts import StageCompleted
from schemas.http.history import LineageKind
from schemas.stored.results import StageResult
from schemas.values import ErrorCode, ObjectRef, StageReport
from streams.concurrency.circuit_breaker import Breakers
from streams.object_store.protocol import FileStore
from streams.read_model.protocol import ReadModel
from streams.settings import Group, Settings
from streams.telemetry.health_board import HealthBoard
from streams.topics import FACTS, Topic


class StageSettings(Group):
    """Settings every stage has. Subclasses add their own limits."""

    concurrency: int = Field(4, ge=1, description="events worked on at once")
    buffer: int = Field(16, ge=1, description="events fetched ahead; caps the rate near six times this a second")
    deadline_s: float = Field(60.0, gt=0, description="seconds one try may take")
    batch_size: int = Field(1, ge=1, description="most events per call of a batched stage")
    batch_wait_s: float = Field(0.02, ge=0, description="seconds to wait for a batch to fill")

    @property
    def in_flight(self) -> int:
        """The most events taken and not finished: enough that a batch can fill."""
        return max(self.concurrency, self.batch_size)


class StageParameters(BaseModel):
    """What a profile may ask of one stage. Subclasses declare the parameters; others are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def of(cls, event: Event, stage: str) -> Self:
        """Return what an event asks of a stage; the runtime has refused invalid ones before."""
        return cls.model_validate(event.profile.parameters.get(stage, {}))


@dataclass(frozen=True, slots=True)
class Emit:
    """Emit these events, in this order: `(topic, event)`; the runtime awaits their delivery."""

    events: tuple[tuple[Topic, Event], ...]


@dataclass(frozen=True, slots=True)
class Skip:
    """Not done, without an error. A `reported` skip becomes a fact on the image; others are only counted."""

    code: ErrorCode
    message: str = ""
    reported: bool = False


@dataclass(frozen=True, slots=True)
class Reject:
    """The image is rejected because of its content: final, public, raises no alert."""

    code: ErrorCode
    message: str


Outcome = Emit | Skip | Reject

I = TypeVar("I", bound=Event)  # noqa: E741 - the stage's input
T = TypeVar("T")  # the stage's tools
R = TypeVar("R", bound=StageResult)


@dataclass(frozen=True, slots=True)
class Announcement:
    """What the runtime adds to a result, for the stage's events."""

    report: StageReport
    result: ObjectRef  # where the result is stored


def fact_fields(event: Event) -> dict[str, Any]:
    """Return the fields that every fact about an event's image repeats from the event."""
    return {
        "image_id": event.image_id,
        "owner": event.owner,
        "generation": event.generation,
        "run": event.run,
        "profile": event.profile,
    }


def completed(event: Event, result: StageResult, known: Announcement) -> Emit:
    """Return the fact of a stage that has no fact type of its own: the result itself, as its model writes it."""
    fact = StageCompleted(
        **fact_fields(event),
        report=known.report,
        result=result.model_dump(mode="json"),
    )
    return Emit(((FACTS, fact),))


@dataclass(frozen=True, slots=True)
class Once(Generic[I, T, R]):
    """Compute once: how a result is named, stored, and announced.

    `input` is the object the result depends on; `parameters` everything else that changes it (settings of the stage,
    weights, the event's own profile parameters). Equal owner, input, stage, version and parameters give an equal
    result, so it is looked up before the work and stored after it.
    """

    result: type[R]
    input: Callable[[I], ObjectRef]
    parameters: Callable[[I, T], Mapping[str, JsonValue]]
    announce: Callable[[I, R, Announcement], Emit] = completed
    # An object of the result that other stages compute from: referenced by the image, as an original is.
    yields: Callable[[R], ObjectRef] | None = None


FindStage = Callable[[str], "Stage[Any, Any, Any]"]
"""Returns a stage by name. Raises KeyError for an unknown name."""


def no_stages(name: str) -> Stage[Any, Any, Any]:
    """Raise KeyError: the table of processes whose stage looks up no other."""
    raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Resources:
    """Shared, connected clients that the runtime passes to a stage when it opens."""

    settings: Settings
    files: FileStore
    health: HealthBoard
    breakers: Breakers | None = None  # for clients a stage opens itself
    read_model: ReadModel | None = None  # shared in the embedded system, where the read model is in process
    find_stage: FindStage = no_stages  # the stage table, for the indexer


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a stage's container needs: the compose file and the Kubernetes manifests are generated from it.

    `cpu` (cores), `memory` and `memory_limit` (bytes) are Kubernetes quantities; `cpu` and `memory` are requests.
    `lag_per_replica` is the number of waiting events per replica at which Kubernetes adds one: what one replica
    processes in the time an image may wait.
    """

    cpu: str = "500m"
    memory: str = "512Mi"
    memory_limit: str = "1Gi"
    max_replicas: int = 24  # at most the number of partitions
    lag_per_replica: int = 100
    models: bool = False  # the image with torch and the engines, and a volume for weights
    read_model: bool = False  # starts after Qdrant


ProcessBatch = Callable[[Sequence[I], T], Awaitable[Sequence["R | Emit | Skip | Reject | Exception"]]]


@dataclass(frozen=True, slots=True)
class Stage(Generic[I, T, R]):
    """One agent. `name` is also consumer group, metric label, log field and Kubernetes name.

    Exactly one of `process` (one event) and `process_batch` (a list of events; one answer each, in the same order,
    an exception standing for a failed item) is given. With `once`, the answers are results; without, outcomes.
    """

    name: str
    version: str
    consumes: tuple[Topic, ...]
    emits: tuple[Topic, ...]
    settings: type[StageSettings]
    open: Callable[[Any, Resources], AbstractAsyncContextManager[T]]
    process: Callable[[I, T], Awaitable[R | Outcome]] | None = None
    process_batch: ProcessBatch[I, T, R] | None = None
    once: Once[I, T, R] | None = None
    parameters: type[StageParameters] | None = None  # what an image's profile may ask of this stage
    # Processes an input of the stage's own with its tools, and raises if the stage is broken: what tells a broken
    # stage from bad input when the dead letters of fewer than three owners reach the limit. Without it they never
    # pause the stage.
    probe: Callable[[T], Awaitable[None]] | None = None
    # What the indexer stores under `analysis.<name>` of the record, which of those keys clients see, and their kind
    # in the lineage. For stages announced by `completed`; other facts have handlers of their own.
    record: Callable[[R], Mapping[str, JsonValue]] | None = None
    public: tuple[str, ...] = ()
    # Keys of the record itself that word search covers (`SEARCHABLE`, streams/read_model/qdrant/documents.py).
    searched: Callable[[R], Mapping[str, JsonValue]] | None = None
    lineage: LineageKind = LineageKind.ANALYSIS
    deployment: Deployment = field(default_factory=Deployment)
    in_profile: bool = field(default=True)  # an image's profile may leave this stage out
    reports_failures: bool = field(default=True)  # a dead letter is also a `failed` fact
    checks_deletion: bool = field(default=True)  # the runtime drops work on deleted images; else the stage does

    def __post_init__(self) -> None:
        if (self.process is None) == (self.process_batch is None):
            raise ValueError(f"stage {self.name}: give either process or process_batch")

    def accepts(self) -> tuple[type[Event], ...]:
        """Return the event types of the topics this stage consumes."""
        return tuple(kind for topic in self.consumes for kind in topic.events)
