"""Budgets of requests per source: at most so many in any window of time, exact across processes and crashes.

A request takes the next number of its source by creating `fetch-budgets/{source}/{number}` with its time: of
concurrent workers one gets a number. With a limit of 25, number 26 may be taken when number 1 is a window old. No lock
is held, nothing is given back, and a worker that dies after taking a number has used up one request, never more.
What a source asks for by Retry-After is stored as `fetch-blocks/{source}` and holds for the next worker too.

Numbers older than two windows are removed. A number is therefore only created by a worker whose view of the source is
younger than half a window: a removed number can never be taken again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from streams.object_store.protocol import FileStore, ObjectMissing

ROOT = "fetch-budgets/"
BLOCKS = "fetch-blocks/"
_DIGITS = 12
_LONGEST_NAME = 150  # bytes of a source's name in a key
_MAX_BYTES = 1000
_REMOVED_AT_ONCE = 4  # numbers removed per request, more than are created


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `requests` in any `window_s` seconds, and `interval_s` seconds between two."""

    requests: int
    window_s: float
    interval_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Wait:
    """No request may be sent for so many seconds."""

    seconds: float


@dataclass(slots=True)
class _Known:
    """What a process knows of a source: the last number, the first that is stored, and times of some numbers."""

    last: int
    first: int
    loaded_at: float
    blocked_until: float  # unix seconds
    times: dict[int, float] = field(default_factory=dict)


class SourceBudgets:
    """Takes requests from the budgets of sources. Calls raise DependencyUnavailable."""

    def __init__(self, files: FileStore, *, clock: Callable[[], float] = time.time) -> None:
        self._files = files
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def take(self, source: str, budget: Budget) -> float | Wait:
        """Take one request; return its time, unix seconds, or how long none may be sent.

        The request must be sent right after: the caller adds the time it may take to reach the source to the window.
        """
        async with self._locks.setdefault(source, asyncio.Lock()):
            while True:
                now = self._clock()
                known = self._known.get(source)
                if known is None or not 0 <= now - known.loaded_at <= budget.window_s / 2:
                    known = self._known[source] = await self._load(source, now)
                wait = await self._wait(source, known, budget, now)
                if wait > 0:
                    return Wait(wait)
                if await self._create(source, known, now):
                    await self._remove_old(source, known, budget, now)
                    return now
                self._known.pop(source)  # another worker took the number

    async def block(self, source: str, until: float) -> None:
        """Let no request go to a source until a time, unix seconds; a longer block stays."""
        async with self._locks.setdefault(source, asyncio.Lock()):
            known = self._known.get(source)
            if known is not None:
                if until <= known.blocked_until:
                    return
                known.blocked_until = until
            data = json.dumps({"until": until, "source": source}).encode()
            await self._files.put(f"{BLOCKS}{source_name(source)}", data, content_type="application/json")

    async def _wait(self, source: str, known: _Known, budget: Budget, now: float) -> float:
        oldest = await self._time_of(source, known, known.last + 1 - budget.requests)
        free_at = max(oldest + budget.window_s, known.blocked_until)
        if budget.interval_s > 0:
            free_at = max(free_at, await self._time_of(source, known, known.last) + budget.interval_s)
        return free_at - now

    async def _time_of(self, source: str, known: _Known, number: int) -> float:
        """Return when a number was taken; the distant past for one that never was, or that is removed."""
        if number < known.first:
            return float("-inf")
        if number not in known.times:
            known.times[number] = await self._read(_key(source, number), "at")
        return known.times[number]

    async def _read(self, key: str, field: str) -> float:
        try:
            return float(json.loads(await self._files.get(key, limit=_MAX_BYTES))[field])
        except ObjectMissing:
            return float("-inf")

    async def _create(self, source: str, known: _Known, now: float) -> bool:
        number, token = known.last + 1, uuid.uuid4().hex
        key, data = _key(source, number), json.dumps({"at": now, "token": token, "source": source}).encode()
        created = await self._files.create(key, data, content_type="application/json")
        if not created and await self._files.get(key, limit=_MAX_BYTES) != data:  # else an earlier try of this call
            return False
        known.last, known.times[number] = number, now
        return True

    async def _remove_old(self, source: str, known: _Known, budget: Budget, now: float) -> None:
        for _ in range(_REMOVED_AT_ONCE):
            if known.first >= known.last or await self._time_of(source, known, known.first) > now - 2 * budget.window_s:
                return
            await self._files.delete(_key(source, known.first))
            known.times.pop(known.first, None)
            known.first += 1

    async def _load(self, source: str, now: float) -> _Known:
        numbers = [_number(info.key) async for info in self._files.list(_prefix(source))]
        blocked_until = await self._read(f"{BLOCKS}{source_name(source)}", "until")
        return _Known(max(numbers, default=0), min(numbers, default=1), now, blocked_until)


async def recent_requests(files: FileStore, *, since: float) -> AsyncIterator[tuple[str, int, float]]:
    """Iterate over the sources with requests since a time: name, their number, and when the first was sent."""
    source, count, first = "", 0, 0.0
    async for info in files.list(ROOT):
        name = info.key.removeprefix(ROOT).split("/", 1)[0]
        if name != source:
            if count:
                yield source, count, first
            source, count, first = name, 0, 0.0
        if info.modified > since:
            first = first or info.modified
            count += 1
    if count:
        yield source, count, first


def source_name(source: str) -> str:
    """Return the name of a source in keys: itself, or a digest if it is too long."""
    name = source.replace("/", "_").replace("\\", "_")
    return name if len(name.encode()) <= _LONGEST_NAME else hashlib.sha256(source.encode()).hexdigest()


def _prefix(source: str) -> str:
    return f"{ROOT}{source_name(source)}/"


def _key(source: str, number: int) -> str:
    return f"{_prefix(source)}{number:0{_DIGITS}}"


def _number(key: str) -> int:
    text = key.rsplit("/", 1)[-1]
    return int(text) if text.isascii() and text.isdigit() else 0
