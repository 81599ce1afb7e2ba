"""Back-pressure: while a circuit breaker is open, events wait here and in Kafka, not in the delay topics."""

from __future__ import annotations

import asyncio

import structlog

from streams.concurrency.circuit_breaker import Breakers

log = structlog.get_logger(__name__)


class DependencyGate:
    """Delays events while a breaker is open: each for `gate_s` at most, and none once the gate is closed."""

    def __init__(self, breakers: Breakers | None) -> None:
        self._breakers = breakers
        self._closing = asyncio.Event()

    async def wait(self) -> bool:
        """Wait until an event may be processed; False if this process is stopping.

        After `gate_s` the event passes with the breaker still open, and the retry policy decides what follows.
        """
        if self._breakers is None or not self._breakers.open_reasons():
            return True
        ends = [asyncio.create_task(self._breakers.all_closed()), asyncio.create_task(self._closing.wait())]
        try:
            await asyncio.wait(ends, timeout=self._breakers.settings.gate_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
        if not (reasons := self._breakers.open_reasons()):
            return True
        if not self._closing.is_set():
            log.warning("dependency still unavailable after gate_s; processing anyway", dependencies=reasons)
        return not self._closing.is_set()

    def close(self) -> None:
        """Release every waiting event with False."""
        self._closing.set()
