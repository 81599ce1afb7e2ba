"""The intake: what stands between any log and the runner. Takes in order, acks in order, whatever finishes first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from schemas.events.envelope import Record
from streams.kafka.offset_ledger import Ledger, Slice
from streams.runtime.runner import Runner

Ack = Callable[[], Awaitable[None]]


class Intake:
    """Feeds a runner from a log, and acks to the log only the contiguous finished prefix of each partition."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._ledger: Ledger[Ack] = Ledger()
        self._closed = False

    async def take(self, record: Record, generation: int, ack: Ack) -> bool:
        """Hand a record to the runner; waits for room. False: not taken (closing, stale, or taken before)."""
        if self._closed:
            return False
        where = Slice(record.topic, record.partition, generation)
        if not self._ledger.take(where, record.offset, ack):
            return False

        async def finished() -> None:
            for ready in self._ledger.finish(where, record.offset):
                await ready()

        return await self.runner.submit(record, finished)

    @property
    def closed(self) -> bool:
        """Whether nothing more is taken."""
        return self._closed

    def revoke(self, topic: str, partition: int) -> None:
        """Forget a partition that belongs to somebody else now."""
        self._ledger.revoke(topic, partition)

    async def drain(self, seconds: float) -> bool:
        """Take nothing more and wait for what is in flight; False if time ran out."""
        self._closed = True
        return await self.runner.drain(seconds)
