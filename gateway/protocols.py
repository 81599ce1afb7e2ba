"""What the gateway needs from the outside, said as small protocols; the composition root plugs the real ones in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from schemas.events.envelope import Event
from schemas.http.health import PartHealth
from schemas.http.reconciliation import ReconcileReport
from schemas.values import ErrorCode, ModelRef
from streams.topics import Topic


class EventSink(Protocol):
    """Whoever delivers events (streams.kafka.producer.EventProducer)."""

    async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
        """Return when the log holds the event safely; with `bulk`, in the bulk lane, for the topic when there is room.

        Raises streams.errors.DependencyUnavailable if it does not.
        """


class Readiness(Protocol):
    """Whoever knows whether an upload would be carried to its end."""

    async def check(self) -> dict[str, PartHealth]:
        """Return, by part, how it does, with a sentence about it that may be shown to anybody."""


class Reconciling(Protocol):
    """Whoever looks over all images for what is overdue (darkroom.processes.reconciler.Maintenance)."""

    async def reconcile(self, *, dry_run: bool) -> ReconcileReport:
        """Look at everything once, now; a dry run changes nothing. Raises streams.errors.DependencyUnavailable."""


class TextEncoder(Protocol):
    """CLIP, for queries: text and images into the space of the stored vectors (512 floats, L2-normalised)."""

    def available(self) -> tuple[bool, str]:
        """Return whether it can encode now, and if not, why, in words that may be shown to anybody."""

    async def encode_text(self, text: str) -> list[float]:
        """Return the vector of a text."""

    async def encode_image(self, data: bytes) -> list[float]:
        """Return the vector of an encoded image, which is untrusted. Raises ValueError if it cannot be decoded."""


class ModelAway(Exception):
    """The model is not there. The message, fit for clients, says why."""


class Undecodable(ValueError):
    """An image cannot be decoded, or not within its limits. The message is fit for clients."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


P = TypeVar("P")


class FeatureEncoder(Protocol[P]):
    """CLIP's image tower, for many images at once (512 floats each, L2-normalised)."""

    async def model(self) -> ModelRef:
        """Return which weights answer, loading them at the first call. Raises ModelAway."""

    async def prepare(self, data: bytes) -> P:
        """Return an untrusted encoded image as the model's input. Raises Undecodable, DependencyUnavailable."""

    async def encode(self, prepared: Sequence[P]) -> Sequence[list[float] | Exception]:
        """Return one vector per image that `prepare` made, in order."""
