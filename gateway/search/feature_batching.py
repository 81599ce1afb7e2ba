"""Batching: images of concurrent requests share one call of the model.

Images are decoded separately, a few in parallel, and wait in decoded form, which is small, until a batch is full or
`batch_wait_s` has passed. The number of images in progress is bounded; requests beyond it are rejected immediately.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import Field

from gateway.protocols import FeatureEncoder, ModelUnavailable, Undecodable
from schemas.values import ModelRef
from streams.concurrency.batcher import Batcher
from streams.concurrency.timeouts import bounded
from streams.settings import Group
from streams.telemetry.metrics import FEATURE_BATCH, FEATURE_IMAGES, FEATURES_WAITING

P = TypeVar("P")


class FeatureSettings(Group):
    """Batching of feature extraction; DARKROOM_FEATURES__…"""

    batch_size: int = Field(16, ge=1, description="maximum images per call of the model")
    batch_wait_s: float = Field(0.01, ge=0, description="seconds an image waits for a batch to fill")
    queue: int = Field(128, ge=1, description="images in progress; more are rejected with 503")
    decoders: int = Field(2, ge=1, description="images decoded in parallel, each in its own child process")
    max_bytes: int = Field(10_000_000, ge=1, description="bytes per image")
    max_files: int = Field(32, ge=1, description="images per batch request")
    max_batch_bytes: int = Field(100_000_000, ge=1, description="bytes of all images per batch request")
    timeout_s: float = Field(30.0, gt=0, description="seconds one request may wait for its vectors")
    weights: str | None = Field(
        None, description="replaced by DARKROOM_MODELS__CLIP_WEIGHTS, from which it must not differ"
    )


class Busy(Exception):
    """The limit of images in progress is reached; a retry may succeed soon."""


class Batching(Generic[P]):
    """CLIP encoding for concurrent requests, in one event loop. Open with `open_batching`."""

    def __init__(self, encoder: FeatureEncoder[P], settings: FeatureSettings) -> None:
        self.settings = settings
        self._encoder = encoder
        self._decoding = asyncio.Semaphore(settings.decoders)
        self._in_progress = 0
        self._batcher: Batcher[P, list[float]] = Batcher(
            encoder.encode,
            size=settings.batch_size,
            wait_s=settings.batch_wait_s,
            parallel=1,  # one call uses all cores
            observe=FEATURE_BATCH.observe,
        )

    async def model(self) -> ModelRef:
        """Return the model's weights; load them first if necessary. Raises ModelUnavailable."""
        try:
            return await bounded(self._encoder.model(), self.settings.timeout_s)
        except TimeoutError:
            raise ModelUnavailable("the model is still loading") from None

    def check_room(self) -> None:
        """Raise Busy, before a body is read, if no image can be accepted."""
        if self._in_progress >= self.settings.queue:
            raise self._busy(1)

    async def vectors(self, images: Sequence[Path]) -> list[list[float] | Undecodable]:
        """Return the vector of each image file, or why it has none.

        Raises Busy when not all images fit, TimeoutError, DependencyUnavailable. Cancellation frees the queue.
        """
        with self._places(len(images)):
            tasks = [asyncio.ensure_future(self._vector(path)) for path in images]
            try:
                return list(await bounded(asyncio.gather(*tasks), self.settings.timeout_s))
            finally:
                for task in tasks:  # after a failure the others are no longer needed
                    task.cancel()

    async def close(self) -> None:
        """Stop; pending requests are abandoned."""
        await self._batcher.close()

    @contextmanager
    def _places(self, count: int) -> Iterator[None]:
        if self._in_progress + count > self.settings.queue:
            raise self._busy(count)
        self._in_progress += count
        FEATURES_WAITING.set(self._in_progress)
        try:
            yield
        finally:
            self._in_progress -= count
            FEATURES_WAITING.set(self._in_progress)

    def _busy(self, count: int) -> Busy:
        FEATURE_IMAGES.labels("refused").inc(count)
        return Busy(f"{self._in_progress} images in progress; the limit is {self.settings.queue}")

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
    """Open batching on an encoder."""
    batching = Batching(encoder, settings)
    try:
        yield batching
    finally:
        await batching.close()
