"""One at a time: two requests for the same upload never change it at once, here or at another gateway.

Here they take turns, and whoever holds an upload while its client is silent gives way: a client that lost its
connection comes back long before anybody notices that the old one is dead. Between gateways it is only the end of an
upload that must be alone, for it makes an image: that turn is an object in the store, and lasts as long as its holder
keeps saying so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from gateway.http.problems import Problem
from schemas.http.problems import ProblemCode
from streams.errors import DependencyUnavailable
from streams.object_store.protocol import FileStore, ObjectMissing

log = logging.getLogger(__name__)

LASTS_S = 12.0  # a turn whose holder has died is over after this
SAID_EVERY_S = 3.0


@dataclass(slots=True, eq=False)
class Lease:
    """A request's turn at an upload."""

    wanted: bool = False  # by another request
    _reading: asyncio.Timeout | None = None

    def give_way(self) -> None:
        """Ask for the turn to end as soon as its holder only waits for the client."""
        self.wanted = True
        if self._reading is not None:
            self._reading.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def waiting(self, seconds: float) -> AsyncIterator[None]:
        """Wait for the client herein. Raises TimeoutError after so many seconds, or when another wants the turn."""
        try:
            async with asyncio.timeout(0 if self.wanted else seconds) as self._reading:
                yield
        finally:
            self._reading = None


@dataclass(slots=True)
class _Line:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    holder: Lease | None = None
    waiting: int = 0


@dataclass(slots=True)
class Leases:
    """The turns at each upload within this process."""

    patience_s: float
    _lines: dict[str, _Line] = field(default_factory=dict)

    @asynccontextmanager
    async def acquire(self, upload_id: str) -> AsyncIterator[Lease]:
        """Hold an upload; whoever holds it is asked to give way. Raises Problem (423) when that takes too long."""
        line = self._lines.setdefault(upload_id, _Line())
        line.waiting += 1
        try:
            if line.holder is not None:
                line.holder.give_way()
            try:
                async with asyncio.timeout(self.patience_s):
                    await line.lock.acquire()
            except TimeoutError:
                raise busy() from None
            try:
                line.holder = Lease(wanted=line.waiting > 1)
                yield line.holder
            finally:
                line.holder = None
                line.lock.release()
        finally:
            line.waiting -= 1
            if not line.waiting:
                self._lines.pop(upload_id, None)


@asynccontextmanager
async def distributed_lease(
    files: FileStore, prefix: str, *, clock: Callable[[], float] = time.time
) -> AsyncIterator[None]:
    """Hold what the prefix stands for among all gateways. Raises Problem (423) while another one holds it.

    Each turn is a new object, numbered upwards, so that of two who find the last one over only one gets the next.
    """
    key = await _take(files, prefix, clock)
    saying = asyncio.create_task(_keep_saying(files, key, clock), name="turn")
    try:
        yield
    finally:
        saying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await saying
        try:
            await asyncio.shield(_give_back(files, key))
        except DependencyUnavailable as error:
            log.warning("a turn could not be given back; it ends by itself", extra={"error": repr(error)})


async def _take(files: FileStore, prefix: str, clock: Callable[[], float]) -> str:
    last, number = "", 0
    async for found in files.list(prefix):
        last = found.key
    if last:
        number = int(last.removeprefix(prefix))
        with contextlib.suppress(ObjectMissing):
            if float(await files.get(last, limit=64)) > clock():
                raise busy()
    key = f"{prefix}{number + 1:06d}"
    if not await files.create(key, _until(clock), content_type="text/plain"):
        raise busy()
    return key


async def _keep_saying(files: FileStore, key: str, clock: Callable[[], float]) -> None:
    while True:
        await asyncio.sleep(SAID_EVERY_S)
        with contextlib.suppress(DependencyUnavailable):
            await _say(files, key, clock() + LASTS_S)


async def _give_back(files: FileStore, key: str) -> None:
    if await files.stat(key) is not None:  # else what it was held for is no more
        await _say(files, key, 0.0)


async def _say(files: FileStore, key: str, until: float) -> None:
    await files.put(key, f"{until:.3f}".encode(), content_type="text/plain")


def _until(clock: Callable[[], float]) -> bytes:
    return f"{clock() + LASTS_S:.3f}".encode()


def busy() -> Problem:
    """Return the refusal of a request that would have to wait for another one at the same upload."""
    detail = "Another request is at work on this upload. Ask again."
    return Problem(ProblemCode.UPLOAD_BUSY, detail, headers={"Retry-After": "5"})
