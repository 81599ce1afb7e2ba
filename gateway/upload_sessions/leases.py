"""Per-upload lock in this process. Across gateways: a lease object in the store, renewed every 3 s, expired after 12 s.

The process-local lock is preemptible: a request that only waits for data from its client is aborted when another
request arrives, because a client reconnects long before its dead connection is detected. Only the completion of an
upload, which creates an image, needs the lease across gateways.
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

LEASE_S = 12.0  # expiry of a lease that its gateway no longer renews
_RENEW_EVERY_S = 3.0


@dataclass(slots=True, eq=False)
class Lease:
    """A request's exclusive access to an upload."""

    preempted: bool = False  # another request waits for the lock
    _reading: asyncio.Timeout | None = None

    def preempt(self) -> None:
        """Abort the current or next wait for data from the client."""
        self.preempted = True
        if self._reading is not None and not self._reading.expired():
            self._reading.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def client_read(self, seconds: float) -> AsyncIterator[None]:
        """Bound a read from the client. Raises TimeoutError after `seconds`, or at once when preempted."""
        try:
            async with asyncio.timeout(0 if self.preempted else seconds) as self._reading:
                yield
        finally:
            self._reading = None


@dataclass(slots=True)
class _UploadLock:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    owner: Lease | None = None
    requests: int = 0  # that own the lock or wait for it


@dataclass(slots=True)
class Leases:
    """One preemptible lock per upload, in this process."""

    acquire_timeout_s: float
    _locks: dict[str, _UploadLock] = field(default_factory=dict)

    @asynccontextmanager
    async def acquire(self, upload_id: str) -> AsyncIterator[Lease]:
        """Lock an upload and preempt its current owner. Raises Problem (423) after `acquire_timeout_s`."""
        entry = self._locks.setdefault(upload_id, _UploadLock())
        entry.requests += 1
        try:
            if entry.owner is not None:
                entry.owner.preempt()
            try:
                async with asyncio.timeout(self.acquire_timeout_s):
                    await entry.lock.acquire()
            except TimeoutError:
                raise busy() from None
            try:
                entry.owner = Lease(preempted=entry.requests > 1)
                yield entry.owner
            finally:
                entry.owner = None
                entry.lock.release()
        finally:
            entry.requests -= 1
            if not entry.requests:
                self._locks.pop(upload_id, None)


@asynccontextmanager
async def distributed_lease(
    files: FileStore, prefix: str, *, clock: Callable[[], float] = time.time
) -> AsyncIterator[None]:
    """Acquire the lease of a prefix across all gateways. Raises Problem (423) while another gateway owns it.

    Each lease is a new object with the next number, created conditionally: when two gateways find the last lease
    expired, only one creates the next. If the lease expires within the block, because the store or this process stood
    still, the block is cancelled, and DependencyUnavailable is raised: another gateway may own the prefix by then.
    """
    key, expires_at = await _acquire(files, prefix, clock)
    try:
        async with asyncio.timeout(None) as owned:
            renewal = asyncio.create_task(_renew(files, key, expires_at, clock), name="lease-renewal")

            def expire(_ended: asyncio.Task[None]) -> None:
                owned.reschedule(asyncio.get_running_loop().time())  # cancels the block

            renewal.add_done_callback(expire)
            try:
                yield
            finally:
                renewal.remove_done_callback(expire)
                renewal.cancel()
                await asyncio.gather(renewal, return_exceptions=True)
    except TimeoutError as error:
        if owned.expired():
            raise DependencyUnavailable(f"the lease {key} expired before its work was done") from error
        raise
    finally:
        if not owned.expired():
            try:
                await asyncio.shield(_release(files, key))
            except DependencyUnavailable as error:
                log.warning("lease release failed; the lease expires", extra={"error": repr(error)})


async def _acquire(files: FileStore, prefix: str, clock: Callable[[], float]) -> tuple[str, float]:
    """Create the next lease; return its key and when it expires. Raises Problem (423)."""
    last, number = "", 0
    async for found in files.list(prefix):
        last = found.key
    if last:
        number = int(last.removeprefix(prefix))
        with contextlib.suppress(ObjectMissing):
            if float(await files.get(last, limit=64)) > clock():
                raise busy()
    key = f"{prefix}{number + 1:06d}"
    expires_at = clock() + LEASE_S
    if not await files.create(key, _expiry(expires_at), content_type="text/plain"):
        raise busy()
    return key, expires_at


async def _renew(files: FileStore, key: str, expires_at: float, clock: Callable[[], float]) -> None:
    """Renew the lease until cancelled; return when it has expired."""
    while (left := expires_at - clock()) > 0:
        await asyncio.sleep(min(_RENEW_EVERY_S, left))
        if (renewed_at := clock()) >= expires_at:
            break
        with contextlib.suppress(DependencyUnavailable, TimeoutError):
            async with asyncio.timeout(expires_at - renewed_at):
                await files.put(key, _expiry(renewed_at + LEASE_S), content_type="text/plain")
            expires_at = renewed_at + LEASE_S
    log.warning("lease expired; cancelling its work", extra={"lease": key})


async def _release(files: FileStore, key: str) -> None:
    if await files.stat(key) is not None:  # missing: the upload, and its leases with it, has been removed
        await files.put(key, _expiry(0.0), content_type="text/plain")


def _expiry(at: float) -> bytes:
    return f"{at:.3f}".encode()


def busy() -> Problem:
    """Return the 423 for an upload that another request is processing."""
    detail = "Another request is processing this upload. Retry after 5 s."
    return Problem(ProblemCode.UPLOAD_BUSY, detail, headers={"Retry-After": "5"})
