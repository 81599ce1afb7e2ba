"""Batching by size and time: one model call for many images; one bad image never fails its batch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from streams.errors import Retryable

I = TypeVar("I")  # noqa: E741 - an input
O = TypeVar("O")  # noqa: E741 - its answer

Work = Callable[[Sequence[I]], Awaitable[Sequence["O | Exception"]]]


class Batcher(Generic[I, O]):
    """Collects single items into batches; each caller gets its own answer or exception."""

    def __init__(
        self, work: Work[I, O], *, size: int, wait_s: float, parallel: int, observe: Callable[[int], None]
    ) -> None:
        self._work = work
        self._size = size
        self._wait_s = wait_s
        self._slots = asyncio.Semaphore(parallel)
        self._observe = observe
        self._waiting: dict[asyncio.Future[O], I] = {}  # in order of submission
        self._submitted = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._collector = asyncio.create_task(self._collect(), name="batcher")

    async def ask(self, item: I) -> O:
        """Return the answer to one item, or raise its exception. A cancelled caller's item leaves the queue."""
        answer: asyncio.Future[O] = asyncio.get_running_loop().create_future()
        self._waiting[answer] = item
        self._submitted.set()
        try:
            return await answer
        finally:
            self._waiting.pop(answer, None)

    async def close(self) -> None:
        """Stop collecting and cancel running batches."""
        for task in (self._collector, *self._running):
            task.cancel()
        await asyncio.gather(self._collector, *self._running, return_exceptions=True)

    async def _collect(self) -> None:
        while True:
            await self._until_submitted()
            # Wait for a slot before closing the batch, so that it fills while all slots are busy.
            await self._slots.acquire()
            batch = await self._next_batch()
            if not batch:
                self._slots.release()
                continue
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _until_submitted(self) -> None:
        while not self._waiting:
            self._submitted.clear()
            await self._submitted.wait()

    async def _next_batch(self) -> list[tuple[I, asyncio.Future[O]]]:
        """Return the next batch once it is full or `wait_s` has passed; empty if every caller was cancelled."""
        until = asyncio.get_running_loop().time() + self._wait_s
        while len(self._waiting) < self._size:
            left = until - asyncio.get_running_loop().time()
            if left <= 0:
                break
            self._submitted.clear()
            try:
                await asyncio.wait_for(self._submitted.wait(), left)
            except TimeoutError:
                break
        batch: list[tuple[I, asyncio.Future[O]]] = []
        while self._waiting and len(batch) < self._size:
            answer = next(iter(self._waiting))
            item = self._waiting.pop(answer)
            if not answer.done():  # cancelled or timed out
                batch.append((item, answer))
        return batch

    async def _run(self, batch: list[tuple[I, asyncio.Future[O]]]) -> None:
        try:
            self._observe(len(batch))
            answers = await self._answers([item for item, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
            if not isinstance(error, Exception):
                raise
        finally:
            self._slots.release()

    async def _answers(self, items: list[I]) -> Sequence[O | Exception]:
        try:
            answers = await self._work(items)
        except Retryable as error:
            return [error] * len(items)
        except Exception as error:
            if len(items) == 1:
                return [error]
            # Retry each item alone, so that only the failing ones fail.
            return [answer for item in items for answer in await self._answers([item])]
        if len(answers) != len(items):
            return [RuntimeError(f"{len(answers)} answers for {len(items)} items")] * len(items)
        return answers
