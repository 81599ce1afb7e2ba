"""Counting uses within a moving window, with the `limits` library: in this process, or in Redis for several."""

from __future__ import annotations

import math
import time
from typing import Any, Protocol

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.limits.settings import RateLimitSettings

_CONNECTIONS = 16  # to Redis, of one gateway
_PREFIX = "darkroom:limits"  # before every key in Redis


class _Windows(Protocol):
    """What the library's storages have, and giving back."""

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Return since when there were how many, of the newest `limit`."""

    async def give_back(self, key: str, amount: int) -> None:
        """Forget the newest, whoever's they are: one taken meanwhile leaves the window a moment early."""


class MemoryWindows(MemoryStorage):
    """Windows in this process."""

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """See _Windows. The library's own looks at the whole window, whatever it is asked; that for Redis does not."""
        start, count = await super().get_moving_window(key, limit, expiry)
        return (self.events[key][limit - 1].atime, limit) if count > limit else (start, count)

    async def give_back(self, key: str, amount: int) -> None:
        """See _Windows."""
        del self.events.get(key, [])[:amount]


class RedisWindows(RedisStorage):
    """Windows in Redis, for all gateways."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        # Typed as any: the library's options are plain values, as its types say.
        pool: Any = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=timeout_s,  # for a free one: with very many requests at once they wait, and are still counted
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),  # at once, on a new connection: the one in the pool may have been cut
        )
        self._client = Redis(connection_pool=pool)
        super().__init__(url, implementation="redispy", key_prefix=_PREFIX, connection_pool=pool)

    async def give_back(self, key: str, amount: int) -> None:
        """See _Windows."""
        await self._client.lpop(f"{_PREFIX}:{key}", amount)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
        await self._client.connection_pool.aclose()


class Counter:
    """Counts uses in one place. Calls raise what the place raises: redis.exceptions.RedisError, OSError."""

    def __init__(self, windows: MemoryWindows | RedisWindows) -> None:
        self._strategy = MovingWindowRateLimiter(windows)
        self._windows: _Windows = windows

    async def take(self, limit: RateLimitItem, whose: tuple[str, ...], cost: int) -> bool:
        """Count `cost` uses if they fit, all or none; say whether they did."""
        return await self._strategy.hit(limit, *whose, cost=cost)

    async def give_back(self, limit: RateLimitItem, whose: tuple[str, ...], cost: int) -> None:
        """Take back what was counted."""
        await self._windows.give_back(limit.key_for(*whose), cost)

    async def left(self, limit: RateLimitItem, whose: tuple[str, ...]) -> tuple[int, int]:
        """Return how many uses are left, and after how many seconds there is one more."""
        reset, remaining = await self._strategy.get_window_stats(limit, *whose)
        return max(0, remaining), max(0, math.ceil(reset - time.time()))

    async def room_after_s(self, limit: RateLimitItem, whose: tuple[str, ...], cost: int) -> int:
        """Return after how many whole seconds `cost` uses fit, if there are no others meanwhile."""
        # The last that must leave the window is the last of so many, counted from the newest.
        newest, window = limit.amount - cost + 1, limit.get_expiry()
        start, count = await self._windows.get_moving_window(limit.key_for(*whose), newest, window)
        left_s = start + window - time.time() if count == newest else 0  # fewer: there is room by now
        return max(1, math.floor(left_s) + 1)


def memory_counter() -> Counter:
    """Return a counter of this process alone."""
    return Counter(MemoryWindows())


def redis_windows(settings: RateLimitSettings) -> RedisWindows | None:
    """Return the windows in Redis, if the settings name one; whoever asks closes them."""
    if settings.redis_url is None:
        return None
    return RedisWindows(settings.redis_url.get_secret_value(), timeout_s=settings.redis_timeout_s)
