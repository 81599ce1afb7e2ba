"""Batching by size and time, so that one call of a model answers many images; one bad image never fails its batch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from streams.errors import Retryable

I = TypeVar("I")  # noqa: E741 - an input
O = TypeVar("O")  # noqa: E741 - its answer

Work = Callable[[Sequence[I]], Awaitable[Sequence["O | Exception"]]]


class Batcher(Generic[I, O]):
    """Collects single questions into batches; each caller gets its own answer or its own exception."""

    def __init__(
        self, work: Work[I, O], *, size: int, wait_s: float, parallel: int, observe: Callable[[int], None]
    ) -> None:
        self._work = work
        self._size = size
        self._wait_s = wait_s
        self._slots = asyncio.Semaphore(parallel)
        self._observe = observe
        self._waiting: dict[asyncio.Future[O], I] = {}  # in the order asked
        self._asked = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._collector = asyncio.create_task(self._collect(), name="batcher")

    async def ask(self, item: I) -> O:
        """Return the answer to one item. Raises what the work raised for it. Who stops waiting leaves the queue."""
        answer: asyncio.Future[O] = asyncio.get_running_loop().create_future()
        self._waiting[answer] = item
        self._asked.set()
        try:
            return await answer
        finally:
            self._waiting.pop(answer, None)

    async def close(self) -> None:
        """Stop collecting; batches that run are cancelled."""
        for task in (self._collector, *self._running):
            task.cancel()
        await asyncio.gather(self._collector, *self._running, return_exceptions=True)

    async def _collect(self) -> None:
        while True:
            await self._until_asked()
            # The slot comes first: while every slot works, the batch goes on filling.
            await self._slots.acquire()
            batch = await self._gathered()
            if not batch:
                self._slots.release()
                continue
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _until_asked(self) -> None:
        while not self._waiting:
            self._asked.clear()
            await self._asked.wait()

    async def _gathered(self) -> list[tuple[I, asyncio.Future[O]]]:
        """Return the next batch: as soon as it is full, or when it has been waited for long enough."""
        until = asyncio.get_running_loop().time() + self._wait_s
        while len(self._waiting) < self._size:
            left = until - asyncio.get_running_loop().time()
            if left <= 0:
                break
            self._asked.clear()
            try:
                await asyncio.wait_for(self._asked.wait(), left)
            except TimeoutError:
                break
        batch: list[tuple[I, asyncio.Future[O]]] = []
        while self._waiting and len(batch) < self._size:
            answer = next(iter(self._waiting))
            item = self._waiting.pop(answer)
            if not answer.done():  # whoever gave up waiting (deadline, cancellation) is not worked for
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
            # One of them is poison; alone, it can only fail itself.
            return [answer for item in items for answer in await self._answers([item])]
        if len(answers) != len(items):
            return [RuntimeError(f"{len(answers)} answers to {len(items)} questions")] * len(items)
        return answers
