"""What the gateway needs from the outside, said as small protocols; the composition root plugs the real ones in."""

from __future__ import annotations

from typing import Protocol

from schemas.envelope import Event
from schemas.reconciliation import ReconcileReport
from streams.topics import Topic


class EventSink(Protocol):
    """Whoever delivers events (streams.producer.EventProducer)."""

    async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
        """Return when the log holds the event safely; with `bulk`, in the bulk lane, for the topic when there is room.

        Raises streams.errors.DependencyAway if it does not.
        """


class Readiness(Protocol):
    """Whoever knows whether an upload would be carried to its end."""

    async def check(self) -> dict[str, tuple[bool, str]]:
        """Return, by part, whether it works and a sentence about it that may be shown to anybody."""


class Reconciling(Protocol):
    """Whoever looks over all images for what is overdue (darkroom.reconciling.Upkeep)."""

    async def reconcile(self, *, dry_run: bool) -> ReconcileReport:
        """Look at everything once, now; a dry run changes nothing. Raises streams.errors.DependencyAway."""


class TextEncoder(Protocol):
    """CLIP, for queries: text and images into the space of the stored vectors (512 floats, L2-normalised)."""

    def available(self) -> tuple[bool, str]:
        """Return whether it can encode now, and if not, why, in words that may be shown to anybody."""

    async def encode_text(self, text: str) -> list[float]:
        """Return the vector of a text."""

    async def encode_image(self, data: bytes) -> list[float]:
        """Return the vector of an encoded image, which is untrusted. Raises ValueError if it cannot be decoded."""
