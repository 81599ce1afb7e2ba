"""Moving windows in Redis, shared by all gateways. Imported only where the settings name a Redis."""

from __future__ import annotations

from typing import Any

from limits.aio.storage import RedisStorage
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

_CONNECTIONS = 16  # to Redis, per gateway
_PREFIX = "darkroom:limits"  # of every key in Redis


class RedisWindows(RedisStorage):
    """Windows in Redis, shared by all gateways. Methods raise `errors` and OSError."""

    errors: tuple[type[Exception], ...] = (RedisError,)

    def __init__(self, url: str, *, timeout_s: float) -> None:
        # Any: the library types its options as plain values.
        pool: Any = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=timeout_s,  # for a free connection: under load requests wait and are still counted
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),  # immediately, on a new connection: a pooled one may be dead
        )
        self._client = Redis(connection_pool=pool)
        super().__init__(url, implementation="redispy", key_prefix=_PREFIX, connection_pool=pool)

    async def refund(self, key: str, amount: int) -> None:
        """See _Windows."""
        await self._client.lpop(f"{_PREFIX}:{key}", amount)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
        await self._client.connection_pool.aclose()
