"""Quotas: how many images an owner may have, and how many bytes of originals.

Usage is counted in the object store, the only certain source: an image is a reference to an original
(streams.object_store.original_references). Both folders are listed side by side, so that a count takes constant
memory; it is cached, and this gateway adds the uploads it accepts itself. Uploads accepted by other gateways appear
at the next count: together, gateways may exceed a quota by what they accept until then. Before an upload is refused,
usage is counted again, since images may have been deleted.

A count of many objects takes minutes, for which no request waits: its sum is kept in the object store, so that a
restarted gateway begins with the last one. The very first count of an owner admits by what it has counted so far.

Owners without a quota are not counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from gateway.http.problems import Problem
from gateway.limits.settings import QuotaSettings
from schemas.http.problems import ProblemCode
from schemas.values import Owner, Value
from streams.concurrency.timeouts import bounded
from streams.errors import DependencyUnavailable
from streams.object_store.protocol import FileStore, ObjectInfo, ObjectMissing

log = logging.getLogger(__name__)

MAX_OWNERS = 10_000  # cached counts; beyond it the least recently used is dropped
COUNT_WAIT_S = 2.0  # a request waits so long for a count, which goes on in the background
KEEP_ABOVE_S = 1.0  # the sum of a count that took longer is kept
MIN_AGE_FACTOR = 20  # a count is cached for at least this multiple of the time it took
RECOUNT_INTERVAL_S = 2.0  # between two counts of an owner over the quota
_PROGRESS_EVERY = 500  # originals


@dataclass(frozen=True, slots=True)
class Usage:
    """An owner's images and bytes of originals."""

    images: int = 0
    bytes: int = 0

    def __add__(self, more: Usage) -> Usage:
        return Usage(self.images + more.images, self.bytes + more.bytes)


class KeptUsage(Value):
    """The sum of an owner's last long count, `usage/{owner}.json`."""

    images: int
    bytes: int
    took_s: float  # seconds of the count


@dataclass(slots=True)
class _Account:
    """The cached usage of one owner."""

    counted: Usage | None = None
    so_far: Usage = Usage()  # of the first count, while it runs
    began: float = float("-inf")  # start of the last count
    took_s: float = 0.0
    since: list[tuple[float, Usage]] = field(default_factory=list)  # accepted by this gateway since the count
    pending: Usage = Usage()  # admitted, not accepted yet
    counting: asyncio.Task[None] | None = None

    def progressed(self, so_far: Usage) -> None:
        """Take the sums of the running count."""
        self.so_far = so_far

    def usage(self) -> Usage:
        """Return the owner's usage as known to this gateway."""
        return sum((usage for _, usage in self.since), (self.counted or self.so_far) + self.pending)


class Quotas:
    """Admits uploads within their owner's quota."""

    def __init__(
        self,
        settings: QuotaSettings | None = None,
        files: FileStore | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings or QuotaSettings()
        self._files = files
        self._clock = clock
        self._accounts: OrderedDict[Owner, _Account] = OrderedDict()

    @property
    def any(self) -> bool:
        """Whether any quota is set."""
        return self.settings.images is not None or self.settings.bytes is not None

    @asynccontextmanager
    async def room(self, owner: Owner, *, size: int = 0) -> AsyncIterator[None]:
        """Reserve room for one image of `size` bytes; count it when the block succeeds.

        Raises Problem (403) beyond the quota, DependencyUnavailable when the store cannot be listed.
        """
        if not self.any:
            yield
            return
        requested = Usage(1, size)
        account = await self._account_with_room(owner, requested)
        account.pending += requested
        try:
            yield
            account.since.append((self._clock(), requested))
        finally:
            account.pending = Usage(account.pending.images - 1, account.pending.bytes - size)

    async def check(self, owner: Owner, *, size: int = 0) -> None:
        """Check for room for one image of `size` bytes without reserving it. Raises as `room` does."""
        if self.any:
            await self._account_with_room(owner, Usage(1, size))

    async def _account_with_room(self, owner: Owner, requested: Usage) -> _Account:
        account = await self._counted(owner)
        if not self._fits(account, requested) and self._clock() - account.began >= RECOUNT_INTERVAL_S:
            await self._count(owner, account)
        if not self._fits(account, requested):
            raise self._refusal(account)
        return account

    async def usage(self, owner: Owner) -> Usage | None:
        """Return an owner's usage, None while the first count is not complete. Raises DependencyUnavailable."""
        account = await self._counted(owner)
        return account.usage() if account.counted is not None else None

    def _fits(self, account: _Account, requested: Usage) -> bool:
        total, most = account.usage() + requested, self.settings
        return (most.images is None or total.images <= most.images) and (
            most.bytes is None or total.bytes <= most.bytes
        )

    def _refusal(self, account: _Account) -> Problem:
        usage, most = account.usage(), self.settings
        used = [f"{usage.images} of {most.images} images"] if most.images is not None else []
        used += [f"{usage.bytes} of {most.bytes} bytes"] if most.bytes is not None else []
        detail = f"The quota is exceeded: {' and '.join(used)} are used. Delete images to free space."
        return Problem(ProblemCode.QUOTA_EXCEEDED, detail)

    async def _counted(self, owner: Owner) -> _Account:
        account = self._accounts.setdefault(owner, _Account())
        self._accounts.move_to_end(owner)
        if len(self._accounts) > MAX_OWNERS:
            self._evict()
        old = self._clock() - account.began > max(self.settings.recount_s, MIN_AGE_FACTOR * account.took_s)
        if account.counted is None:
            await self._first_count(owner, account)
        elif old and account.counting is None:
            self._begin(owner, account)  # in the background; this request uses the cached count
        return account

    def _evict(self) -> None:
        idle = (
            owner
            for owner, account in self._accounts.items()
            if account.counting is None and not account.pending.images
        )
        with contextlib.suppress(StopIteration):
            del self._accounts[next(idle)]

    async def _first_count(self, owner: Owner, account: _Account) -> None:
        """Begin with the kept sum and count in the background; without one wait for the count, but not long."""
        if account.counting is None and (kept := await self._kept(owner)) is not None and account.counted is None:
            account.counted, account.took_s = Usage(kept.images, kept.bytes), kept.took_s
        if account.counted is None:
            await self._count(owner, account)
        elif account.counting is None:
            self._begin(owner, account)

    async def _count(self, owner: Owner, account: _Account) -> None:
        if account.counting is None:
            self._begin(owner, account)
        assert account.counting is not None  # noqa: S101 - just begun
        try:
            await bounded(asyncio.shield(account.counting), COUNT_WAIT_S)
        except TimeoutError:
            log.warning("counting usage takes long; the quota applies to what is known", extra={"owner": owner})

    def _begin(self, owner: Owner, account: _Account) -> None:
        account.counting = asyncio.create_task(self._walk(owner, account), name=f"count {owner}")
        account.counting.add_done_callback(lambda task: self._ended(task, account))

    def _ended(self, task: asyncio.Task[None], account: _Account) -> None:
        account.counting = None
        if not task.cancelled():
            task.exception()  # marks it as retrieved: a failed background count is repeated by a later request

    async def _walk(self, owner: Owner, account: _Account) -> None:
        if self._files is None:
            raise DependencyUnavailable("no object store to count usage in")
        began = self._clock()
        account.counted = await count(self._files, owner, account.progressed)
        account.since = [(at, usage) for at, usage in account.since if at >= began]
        account.began, account.took_s = began, self._clock() - began
        if account.took_s >= KEEP_ABOVE_S:
            with contextlib.suppress(DependencyUnavailable):  # only the next start would begin with it
                await self._keep(owner, account.counted, account.took_s)

    async def _kept(self, owner: Owner) -> KeptUsage | None:
        if self._files is None:
            return None
        try:
            return KeptUsage.model_validate_json(await self._files.get(_usage_key(owner), limit=1024))
        except (ObjectMissing, ValueError):  # a ValidationError is a ValueError
            return None

    async def _keep(self, owner: Owner, usage: Usage, took_s: float) -> None:
        assert self._files is not None  # noqa: S101 - it has just been listed
        kept = KeptUsage(images=usage.images, bytes=usage.bytes, took_s=took_s)
        await self._files.put(_usage_key(owner), kept.model_dump_json().encode(), content_type="application/json")


async def count(files: FileStore, owner: Owner, progress: Callable[[Usage], None] = lambda _: None) -> Usage:
    """Count an owner's images (references to originals) and bytes of originals. Raises DependencyUnavailable.

    `progress` receives the sums so far from time to time.
    """
    images = size = seen = 0
    originals = files.list(f"originals/{owner}/")
    claims = files.list(f"claims/{owner}/")
    claim = await anext(claims, None)
    async for original in originals:
        size += original.size
        sha256 = original.key.rsplit("/", 1)[-1]
        # Both listings are sorted by hash; references to masters have no original and are skipped.
        while claim is not None and (of := _claimed(claim)) <= sha256:
            images += of == sha256
            claim = await anext(claims, None)
        seen += 1
        if seen % _PROGRESS_EVERY == 0:
            progress(Usage(images, size))
    return Usage(images, size)


def _claimed(claim: ObjectInfo) -> str:
    return claim.key.split("/")[2]


def _usage_key(owner: Owner) -> str:
    return f"usage/{owner}.json"
