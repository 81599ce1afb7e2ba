"""Intake between a log and the runner: takes records in order and acks them in order, whichever finishes first."""

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
        """Submit a record to the runner, waiting for room. False: closing, stale generation, or taken before."""
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
        """Whether the intake refuses further records."""
        return self._closed

    def revoke(self, topic: str, partition: int) -> None:
        """Forget a partition that was assigned to another consumer."""
        self._ledger.revoke(topic, partition)

    async def drain(self, seconds: float) -> bool:
        """Refuse further records and wait for those in flight; False on timeout."""
        self._closed = True
        return await self.runner.drain(seconds)
