"""Moving-window counters of the `limits` library, in this process or shared in Redis."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Protocol

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from gateway.limits.settings import RateLimitSettings

if TYPE_CHECKING:
    from gateway.limits.redis_windows import RedisWindows


class _Windows(Protocol):
    """The part of the library's storages used here, with refunds."""

    errors: tuple[type[Exception], ...]  # of the library, beside OSError

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Return the time of the oldest of the newest `limit` uses in the window, and how many these are."""

    async def refund(self, key: str, amount: int) -> None:
        """Remove the newest uses, of any request: a concurrent use leaves the window slightly early."""


class MemoryWindows(MemoryStorage):
    """Windows in this process."""

    errors: tuple[type[Exception], ...] = ()

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """See _Windows. Unlike its Redis storage, the library's memory storage ignores `limit`."""
        start, count = await super().get_moving_window(key, limit, expiry)
        return (self.events[key][limit - 1].atime, limit) if count > limit else (start, count)

    async def refund(self, key: str, amount: int) -> None:
        """See _Windows."""
        del self.events.get(key, [])[:amount]


class Counter:
    """Counts uses in one storage. Methods raise OSError and `errors`, those of the storage's library."""

    def __init__(self, windows: MemoryWindows | RedisWindows) -> None:
        self._strategy = MovingWindowRateLimiter(windows)
        self._windows: _Windows = windows
        self.errors: tuple[type[Exception], ...] = (OSError, *windows.errors)

    async def take(self, limit: RateLimitItem, identifiers: tuple[str, ...], cost: int) -> bool:
        """Count `cost` uses, all or none; return whether they fit."""
        return await self._strategy.hit(limit, *identifiers, cost=cost)

    async def refund(self, limit: RateLimitItem, identifiers: tuple[str, ...], cost: int) -> None:
        """Remove uses from the count."""
        await self._windows.refund(limit.key_for(*identifiers), cost)

    async def left(self, limit: RateLimitItem, identifiers: tuple[str, ...]) -> tuple[int, int]:
        """Return the remaining uses, and the seconds until there is one more."""
        reset, remaining = await self._strategy.get_window_stats(limit, *identifiers)
        return max(0, remaining), max(0, math.ceil(reset - time.time()))

    async def room_after_s(self, limit: RateLimitItem, identifiers: tuple[str, ...], cost: int) -> int:
        """Return the whole seconds until `cost` uses fit, if there are no others meanwhile."""
        # Room exists once the oldest of the newest `amount - cost + 1` uses has left the window.
        newest, window = limit.amount - cost + 1, limit.get_expiry()
        start, count = await self._windows.get_moving_window(limit.key_for(*identifiers), newest, window)
        left_s = start + window - time.time() if count == newest else 0  # fewer: there is room already
        return max(1, math.floor(left_s) + 1)


def memory_counter() -> Counter:
    """Return a counter in this process."""
    return Counter(MemoryWindows())


def redis_windows(settings: RateLimitSettings) -> RedisWindows | None:
    """Return the windows in Redis, None without a `redis_url`. The caller closes them."""
    if settings.redis_url is None:
        return None
    # Imported here: a gateway without Redis does not load its client.
    from gateway.limits.redis_windows import RedisWindows  # noqa: PLC0415

    return RedisWindows(settings.redis_url.get_secret_value(), timeout_s=settings.redis_timeout_s)
