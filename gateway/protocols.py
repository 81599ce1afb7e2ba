"""Protocols of what the gateway needs from other packages; the composition root passes the implementations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from pydantic import BaseModel

from schemas.events.envelope import Event
from schemas.http.health import PartHealth
from schemas.http.reconciliation import ReconcileReport
from schemas.values import ErrorCode, ModelRef
from streams.topics import Topic


class EventSink(Protocol):
    """Delivers events to Kafka (streams.kafka.producer.EventProducer)."""

    async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
        """Return once Kafka has confirmed the event. With `bulk` it goes to the bulk lane, which feeds the topic later.

        Raises streams.errors.DependencyUnavailable.
        """


class Readiness(Protocol):
    """Checks whether an upload would be processed to its end."""

    async def check(self) -> dict[str, PartHealth]:
        """Return the health of each part, with a sentence that may be public."""


class Reconciling(Protocol):
    """Checks all images for overdue work (darkroom.processes.reconciler.Maintenance)."""

    async def reconcile(self, *, dry_run: bool) -> ReconcileReport:
        """Run one pass over all images; a dry run changes nothing. Raises streams.errors.DependencyUnavailable."""


FindParameters = Callable[[str], type[BaseModel] | None]
"""Returns the model of the parameters that a profile may give to a stage, by the stage's name; None if it takes none.

May load the stage's libraries, which blocks.
"""


class TextEncoder(Protocol):
    """CLIP for queries: encodes text and images as vectors like the stored ones (512 floats, L2-normalised)."""

    def available(self) -> tuple[bool, str]:
        """Return whether it can encode now, and if not, the reason, with settings and URLs: for operators only."""

    async def encode_text(self, text: str) -> list[float]:
        """Return the vector of a text."""

    async def encode_image(self, data: bytes) -> list[float]:
        """Return the vector of an encoded image, which is untrusted. Raises ValueError if it cannot be decoded."""


class ModelUnavailable(Exception):
    """The model is unavailable. The message says why, with settings and URLs: for operators only."""


class Undecodable(ValueError):
    """An image cannot be decoded, or not within the limits. The message may be public."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def model_reason(reason: str, *, operator: bool) -> str:
    """Return why a model is unavailable: the reason for operators, a plain clause for all other callers."""
    return reason if operator else "the model is not loaded"


P = TypeVar("P")


class FeatureEncoder(Protocol[P]):
    """CLIP's image encoder, in batches (512 floats each, L2-normalised)."""

    async def model(self) -> ModelRef:
        """Return the weights in use, loaded at the first call. Raises ModelUnavailable."""

    async def prepare(self, data: bytes) -> P:
        """Return an untrusted encoded image as the model's input. Raises Undecodable and DependencyUnavailable."""

    async def encode(self, prepared: Sequence[P]) -> Sequence[list[float] | Exception]:
        """Return one vector or error per prepared image, in order."""
