"""Quotas: how many images an owner may have, and how many bytes of originals.

Usage is counted in the object store, the only certain source: an image is a reference to an original
(streams.object_store.original_references). Both folders are listed side by side, so that a count takes constant
memory; it is cached, and this gateway adds the uploads it accepts itself. Uploads accepted by other gateways appear
at the next count: together, gateways may exceed a quota by what they accept until then. Before an upload is refused,
usage is counted again, since images may have been deleted.

Owners without a quota are not counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from gateway.http.problems import Problem
from gateway.limits.settings import QuotaSettings
from schemas.http.problems import ProblemCode
from schemas.values import Owner
from streams.concurrency.timeouts import bounded
from streams.errors import DependencyUnavailable
from streams.object_store.protocol import FileStore, ObjectInfo

MAX_OWNERS = 10_000  # cached counts; beyond it the least recently used is dropped
COUNT_TIMEOUT_S = 30.0  # for a count that a request waits for
MIN_AGE_FACTOR = 20  # a count is cached for at least this multiple of the time it took
RECOUNT_INTERVAL_S = 2.0  # between two counts of an owner over the quota


@dataclass(frozen=True, slots=True)
class Usage:
    """An owner's images and bytes of originals."""

    images: int = 0
    bytes: int = 0

    def __add__(self, more: Usage) -> Usage:
        return Usage(self.images + more.images, self.bytes + more.bytes)


@dataclass(slots=True)
class _Account:
    """The cached usage of one owner."""

    counted: Usage | None = None
    began: float = float("-inf")  # start of the last count
    took_s: float = 0.0
    since: list[tuple[float, Usage]] = field(default_factory=list)  # accepted by this gateway since the count
    pending: Usage = Usage()  # admitted, not accepted yet
    counting: asyncio.Task[None] | None = None

    def usage(self) -> Usage:
        """Return the owner's usage as known to this gateway."""
        return sum((usage for _, usage in self.since), (self.counted or Usage()) + self.pending)


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

        Raises Problem (403) beyond the quota, DependencyUnavailable or TimeoutError when usage cannot be counted.
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

    async def usage(self, owner: Owner) -> Usage:
        """Return an owner's usage. Raises DependencyUnavailable or TimeoutError."""
        return (await self._counted(owner)).usage()

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
            await self._count(owner, account)
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

    async def _count(self, owner: Owner, account: _Account) -> None:
        if account.counting is None:
            self._begin(owner, account)
        assert account.counting is not None  # noqa: S101 - just begun
        await bounded(asyncio.shield(account.counting), COUNT_TIMEOUT_S)

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
        account.counted = await count(self._files, owner)
        account.since = [(at, usage) for at, usage in account.since if at >= began]
        account.began, account.took_s = began, self._clock() - began


async def count(files: FileStore, owner: Owner) -> Usage:
    """Count an owner's images (references to originals) and bytes of originals. Raises DependencyUnavailable."""
    images = size = 0
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
    return Usage(images, size)


def _claimed(claim: ObjectInfo) -> str:
    return claim.key.split("/")[2]
