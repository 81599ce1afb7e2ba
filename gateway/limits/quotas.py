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

OWNERS = 10_000  # whose counts are kept; of more, those who asked longest ago are forgotten
PATIENCE_S = 30.0  # for a count that a request waits for
LEISURE = 20  # a count is kept for so many times as long as it took
AGAIN_S = 2.0  # between two counts of an owner who would be refused


@dataclass(frozen=True, slots=True)
class Usage:
    """What an owner has."""

    images: int = 0
    bytes: int = 0

    def __add__(self, more: Usage) -> Usage:
        return Usage(self.images + more.images, self.bytes + more.bytes)


@dataclass(slots=True)
class _Known:
    """What is known of one owner."""

    counted: Usage | None = None
    began: float = float("-inf")  # when the last count did
    took_s: float = 0.0
    since: list[tuple[float, Usage]] = field(default_factory=list)  # accepted here, and when
    pending: Usage = Usage()  # let in, not accepted yet
    counting: asyncio.Task[None] | None = None

    def usage(self) -> Usage:
        """Return what the owner has, as far as this gateway knows."""
        return sum((usage for _, usage in self.since), (self.counted or Usage()) + self.pending)


class Quotas:
    """Lets in what there is room for."""

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
        self._known: OrderedDict[Owner, _Known] = OrderedDict()

    @property
    def any(self) -> bool:
        """Whether there is a quota at all."""
        return self.settings.images is not None or self.settings.bytes is not None

    @asynccontextmanager
    async def room(self, owner: Owner, *, size: int = 0) -> AsyncIterator[None]:
        """Let one image of so many bytes in, and count it unless it comes to nothing.

        Raises Problem (403) when there is no room, DependencyUnavailable or TimeoutError when that cannot be told.
        """
        if not self.any:
            yield
            return
        known, asked = await self._with_room(owner, Usage(1, size)), Usage(1, size)
        known.pending += asked
        try:
            yield
            known.since.append((self._clock(), asked))
        finally:
            known.pending = Usage(known.pending.images - 1, known.pending.bytes - size)

    async def check(self, owner: Owner, *, size: int = 0) -> None:
        """Look whether there is room for one image of so many bytes, before it is sent; nothing is counted.

        Raises as `room` does.
        """
        if self.any:
            await self._with_room(owner, Usage(1, size))

    async def _with_room(self, owner: Owner, asked: Usage) -> _Known:
        known = await self._counted(owner)
        if not self._fits(known, asked) and self._clock() - known.began >= AGAIN_S:
            await self._count(owner, known)
        if not self._fits(known, asked):
            raise self._refusal(known)
        return known

    async def usage(self, owner: Owner) -> Usage:
        """Return what an owner has. Raises DependencyUnavailable or TimeoutError."""
        return (await self._counted(owner)).usage()

    def _fits(self, known: _Known, asked: Usage) -> bool:
        would, most = known.usage() + asked, self.settings
        return (most.images is None or would.images <= most.images) and (
            most.bytes is None or would.bytes <= most.bytes
        )

    def _refusal(self, known: _Known) -> Problem:
        usage, most = known.usage(), self.settings
        has = [f"{usage.images} of {most.images} images"] if most.images is not None else []
        has += [f"{usage.bytes} of {most.bytes} bytes"] if most.bytes is not None else []
        return Problem(
            ProblemCode.QUOTA_EXCEEDED, f"There is no room: {' and '.join(has)} are used. Delete some to make room."
        )

    async def _counted(self, owner: Owner) -> _Known:
        known = self._known.setdefault(owner, _Known())
        self._known.move_to_end(owner)
        if len(self._known) > OWNERS:
            self._forget()
        old = self._clock() - known.began > max(self.settings.recount_s, LEISURE * known.took_s)
        if known.counted is None:
            await self._count(owner, known)
        elif old and known.counting is None:
            self._begin(owner, known)  # beside the request, which does with what is known
        return known

    def _forget(self) -> None:
        idle = (owner for owner, known in self._known.items() if known.counting is None and not known.pending.images)
        with contextlib.suppress(StopIteration):
            del self._known[next(idle)]

    async def _count(self, owner: Owner, known: _Known) -> None:
        if known.counting is None:
            self._begin(owner, known)
        assert known.counting is not None  # noqa: S101 - just begun
        await bounded(asyncio.shield(known.counting), PATIENCE_S)

    def _begin(self, owner: Owner, known: _Known) -> None:
        known.counting = asyncio.create_task(self._walk(owner, known), name=f"count {owner}")
        known.counting.add_done_callback(lambda task: self._ended(task, known))

    def _ended(self, task: asyncio.Task[None], known: _Known) -> None:
        known.counting = None
        if not task.cancelled():
            task.exception()  # whoever waits hears of it; nobody does of one beside a request, and it is begun again

    async def _walk(self, owner: Owner, known: _Known) -> None:
        if self._files is None:
            raise DependencyUnavailable("there is no object store to count in")
        began = self._clock()
        known.counted = await count(self._files, owner)
        known.since = [(at, usage) for at, usage in known.since if at >= began]
        known.began, known.took_s = began, self._clock() - began


async def count(files: FileStore, owner: Owner) -> Usage:
    """Count an owner's images and bytes: claims on originals, and the originals. Raises DependencyUnavailable."""
    images = size = 0
    originals = files.list(f"originals/{owner}/")
    claims = files.list(f"claims/{owner}/")
    claim = await anext(claims, None)
    async for original in originals:
        size += original.size
        sha256 = original.key.rsplit("/", 1)[-1]
        # Both come in the order of their hashes; claims on masters have no original, and are passed over.
        while claim is not None and (of := _claimed(claim)) <= sha256:
            images += of == sha256
            claim = await anext(claims, None)
    return Usage(images, size)


def _claimed(claim: ObjectInfo) -> str:
    return claim.key.split("/")[2]
