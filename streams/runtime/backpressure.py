"""The gate before work: while a dependency is left alone, events wait here and in Kafka, not in the delay topics."""

from __future__ import annotations

import asyncio

import structlog

from streams.concurrency.circuit_breaker import Breakers

log = structlog.get_logger(__name__)


class DependencyGate:
    """Lets events pass when no breaker is open; none waits longer than `gate_s`, and none once the gate closes."""

    def __init__(self, breakers: Breakers | None) -> None:
        self._breakers = breakers
        self._closing = asyncio.Event()

    async def passed(self) -> bool:
        """Say whether an event may be begun; wait until it may. False: this process leaves, the next one begins it.

        When the patience is over the event passes all the same: tries, delays and dead letters then say what follows.
        """
        if self._breakers is None or not self._breakers.shut():
            return True
        ends = [asyncio.create_task(self._breakers.all_closed()), asyncio.create_task(self._closing.wait())]
        try:
            await asyncio.wait(ends, timeout=self._breakers.settings.gate_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
        if not (shut := self._breakers.shut()):
            return True
        if not self._closing.is_set():
            log.warning("an event waited long enough and is tried", dependencies=shut)
        return not self._closing.is_set()

    def close(self) -> None:
        """Let nobody wait any longer."""
        self._closing.set()
