"""Batching: images of requests that come at the same time share one call of the model.

Each image is decoded alone, a few at once, and waits decoded, which is small, for a batch to be full or for a few
milliseconds to pass. The number of images taken in and not answered is bounded: one too many is refused at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import Field

from gateway.protocols import FeatureEncoder, ModelAway, Undecodable
from schemas.values import ModelRef
from streams.concurrency.batcher import Batcher
from streams.concurrency.timeouts import bounded
from streams.settings import Group
from streams.telemetry.metrics import FEATURE_BATCH, FEATURE_IMAGES, FEATURES_WAITING

P = TypeVar("P")


class FeatureSettings(Group):
    """How images of different requests share calls of CLIP; DARKROOM_FEATURES__…"""

    batch_size: int = Field(16, ge=1, description="most images per call of the model")
    batch_wait_s: float = Field(0.01, ge=0, description="seconds an image waits for others to share a call with")
    queue: int = Field(128, ge=1, description="images taken in and not answered; one more is refused with 503")
    decoders: int = Field(2, ge=1, description="images decoded at once, each in a child process of its own")
    max_bytes: int = Field(10_000_000, ge=1, description="bytes of one image")
    max_files: int = Field(32, ge=1, description="images of one batch request")
    max_batch_bytes: int = Field(100_000_000, ge=1, description="bytes of all images of one batch request")
    timeout_s: float = Field(30.0, gt=0, description="seconds one request may wait for its vectors")
    weights: str | None = Field(None, description="file in models.dir to use instead of the manifest's")


class Busy(Exception):
    """As many images wait as may: try again soon."""


class Batching(Generic[P]):
    """CLIP for many requests at once. Use as `open_batching`, in one event loop."""

    def __init__(self, encoder: FeatureEncoder[P], settings: FeatureSettings) -> None:
        self.settings = settings
        self._encoder = encoder
        self._decoding = asyncio.Semaphore(settings.decoders)
        self._taken = 0
        self._batcher: Batcher[P, list[float]] = Batcher(
            encoder.encode,
            size=settings.batch_size,
            wait_s=settings.batch_wait_s,
            parallel=1,  # a second call at once would only take the first one's cores
            observe=FEATURE_BATCH.observe,
        )

    async def model(self) -> ModelRef:
        """Return which weights answer, loading them first if need be. Raises ModelAway."""
        try:
            return await bounded(self._encoder.model(), self.settings.timeout_s)
        except TimeoutError:
            raise ModelAway("the model is still being loaded") from None

    def check_room(self) -> None:
        """Refuse early, before a body is read, what would be refused anyway. Raises Busy."""
        if self._taken >= self.settings.queue:
            raise self._busy(1)

    async def vectors(self, images: Sequence[Path]) -> list[list[float] | Undecodable]:
        """Return the vector of each image file, or why it has none.

        Raises Busy when not all find room, TimeoutError, DependencyUnavailable. Who is cancelled leaves the queue.
        """
        with self._places(len(images)):
            asking = [asyncio.ensure_future(self._vector(path)) for path in images]
            try:
                return list(await bounded(asyncio.gather(*asking), self.settings.timeout_s))
            finally:
                for task in asking:  # one that failed leaves nobody working for the others
                    task.cancel()

    async def close(self) -> None:
        """Stop; whoever waits still is not answered."""
        await self._batcher.close()

    @contextmanager
    def _places(self, count: int) -> Iterator[None]:
        if self._taken + count > self.settings.queue:
            raise self._busy(count)
        self._taken += count
        FEATURES_WAITING.set(self._taken)
        try:
            yield
        finally:
            self._taken -= count
            FEATURES_WAITING.set(self._taken)

    def _busy(self, count: int) -> Busy:
        FEATURE_IMAGES.labels("refused").inc(count)
        return Busy(f"{self._taken} images wait; {self.settings.queue} may")

    async def _vector(self, path: Path) -> list[float] | Undecodable:
        try:
            async with self._decoding:
                data = await asyncio.to_thread(path.read_bytes)
                prepared = await self._encoder.prepare(data)
                del data
            vector = await self._batcher.ask(prepared)
        except Undecodable as error:
            FEATURE_IMAGES.labels("undecodable").inc()
            return error
        FEATURE_IMAGES.labels("encoded").inc()
        return vector


@asynccontextmanager
async def open_batching(encoder: FeatureEncoder[P], settings: FeatureSettings) -> AsyncIterator[Batching[P]]:
    """Open the way to an encoder for many requests at once."""
    batching = Batching(encoder, settings)
    try:
        yield batching
    finally:
        await batching.close()
