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
        self._waiting: asyncio.Queue[tuple[I, asyncio.Future[O]]] = asyncio.Queue()
        self._running: set[asyncio.Task[None]] = set()
        self._collector = asyncio.create_task(self._collect(), name="batcher")

    async def ask(self, item: I) -> O:
        """Return the answer to one item. Raises what the work raised for it."""
        answer: asyncio.Future[O] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((item, answer))
        return await answer

    async def close(self) -> None:
        """Stop collecting; batches that run are cancelled."""
        for task in (self._collector, *self._running):
            task.cancel()
        await asyncio.gather(self._collector, *self._running, return_exceptions=True)

    async def _collect(self) -> None:
        while True:
            first = await self._waiting.get()
            # The slot comes first: while every slot works, the batch goes on filling.
            await self._slots.acquire()
            batch = [first, *await self._more()]
            # Whoever gave up waiting (deadline, cancellation) is not worked for.
            batch = [(item, answer) for item, answer in batch if not answer.done()]
            if not batch:
                self._slots.release()
                continue
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _more(self) -> list[tuple[I, asyncio.Future[O]]]:
        found: list[tuple[I, asyncio.Future[O]]] = []
        until = asyncio.get_running_loop().time() + self._wait_s
        while len(found) < self._size - 1:
            if not self._waiting.empty():
                found.append(self._waiting.get_nowait())
                continue
            left = until - asyncio.get_running_loop().time()
            if left <= 0:
                break
            try:
                found.append(await asyncio.wait_for(self._waiting.get(), left))
            except TimeoutError:
                break
        return found

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
