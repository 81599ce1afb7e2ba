"""Rate limits: how often an owner may do something in any stretch of time, counted here or in Redis for all gateways.

The window moves: an upload counts for exactly as long as the limit says, so that `50/hour` holds for every hour and
not for those of a clock, and so that `Retry-After` is the moment there is room again. (A sliding counter would take
less memory, and would guess both.) What is kept is one time stamp for each use within the window.

Whoever is refused has used nothing. An answer of 5xx gives back what its request had taken: nothing was accepted. So
does one that is repeated for an Idempotency-Key: nothing more was. One of 4xx does not: its body was received and
looked at.

While Redis does not answer, each gateway counts by itself: an owner then has up to the limit at each of them, which is
better than nobody having anything. Health says so.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import http_sf
from fastapi import Request
from http_sf.types import BareItemType
from limits import RateLimitItem
from redis.exceptions import RedisError
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access.dependencies import Who
from gateway.access.identity import Identity
from gateway.access.permissions import is_public
from gateway.http.problems import Problem
from gateway.limits.settings import UNLIMITED, RateLimitSettings, parse_limits
from gateway.limits.window_counters import Counter, memory_counter, redis_windows
from schemas.http.problems import ProblemCode
from streams.concurrency.circuit_breaker import Breaker, State
from streams.concurrency.timeouts import bounded
from streams.errors import DependencyUnavailable
from streams.settings import BreakerSettings
from streams.telemetry.metrics import BREAKER_OPENED, BREAKER_STATE

log = logging.getLogger(__name__)

UPLOADS = "uploads"
REQUESTS = "requests"
FEATURES = "features"
KINDS = (UPLOADS, REQUESTS, FEATURES)

_PATIENCE = BreakerSettings(failures=3, open_s=5.0)  # when Redis is left alone, and for how long
_AWAY = (RedisError, OSError, TimeoutError)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of one caller: by their key if it has limits of its own, else by their owner."""

    kind: str
    policy: str  # its name in headers, unique among those of a caller
    item: RateLimitItem
    whose: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a caller stands with one limit."""

    limit: Limit
    remaining: int
    reset_s: int  # until there is one more


@dataclass(slots=True)
class _Tab:
    """What one request has taken, and where its caller stands."""

    taken: list[tuple[Counter, Limit, int]] = field(default_factory=list)
    standings: dict[str, Standing] = field(default_factory=dict)


class Limits:
    """Counts what callers do, and refuses what is too much."""

    def __init__(self, settings: RateLimitSettings, shared: Counter | None = None) -> None:
        self._defaults = {UPLOADS: settings.uploads, REQUESTS: settings.requests, FEATURES: settings.features}
        self._timeout_s = settings.redis_timeout_s
        self._alone = memory_counter()
        self._shared = shared
        self._breaker = Breaker("redis", _PATIENCE, changed=_tell)

    @classmethod
    def none(cls) -> Limits:
        """Return limits for nobody but API keys that have limits of their own."""
        return cls(RateLimitSettings(uploads=UNLIMITED))

    async def take(self, request: Request, identity: Identity, kind: str, *, cost: int = 1) -> None:
        """Count `cost` uses of a kind, all or none, and have the answer's headers tell what is left.

        Raises Problem (429). An answer of 5xx gives back what its request has taken.
        """
        tab = _tab(request.scope)
        before = len(tab.taken)
        for limit in self._limits(identity, kind) if cost > 0 else ():
            counter, fits = await self._ask(lambda at, of=limit: at.take(of.item, of.whose, cost))  # type: ignore[misc]
            if not fits:
                await self._give_back(tab, down_to=before)
                tab.standings[limit.policy] = standing = await self._standing(limit)
                raise await self._too_many(counter, standing, cost)
            tab.taken.append((counter, limit, cost))
            tab.standings[limit.policy] = await self._standing(limit)

    async def give_back(self, scope: Scope, kind: str | None = None) -> None:
        """Give back what a request has taken, of one kind or all: an answer of 5xx does, and one that is repeated."""
        tab = _tab(scope)
        kept = [taken for taken in tab.taken if kind not in (None, taken[1].kind)]
        tab.taken = [taken for taken in tab.taken if taken not in kept]
        await self._give_back(tab)
        tab.taken = kept

    async def standings(self, identity: Identity) -> list[Standing]:
        """Return where a caller stands with every limit that holds for them."""
        return [await self._standing(limit) for kind in KINDS for limit in self._limits(identity, kind)]

    def available(self) -> tuple[bool, str]:
        """Return whether limits hold as they are meant to, and if not, why, in words that may be shown to anybody."""
        if self._breaker.state is State.CLOSED:
            return True, "counted for all gateways" if self._shared else "counted by this gateway alone"
        return False, "the shared count does not answer: each gateway counts by itself"

    def _limits(self, identity: Identity, kind: str) -> list[Limit]:
        own = identity.limits.get(kind)
        whose = (kind, "key", identity.name) if own is not None else (kind, "owner", identity.owner)
        items = parse_limits(self._defaults[kind] if own is None else own)
        named = [f"{kind}-{item.get_expiry()}s" if len(items) > 1 else kind for item in items]
        return [Limit(kind, policy, item, whose) for policy, item in zip(named, items, strict=True)]

    async def _too_many(self, counter: Counter, standing: Standing, cost: int) -> Problem:
        limit = standing.limit
        said = f"{limit.item.amount} {limit.kind} in {_spoken(limit.item.get_expiry())}"
        if cost > limit.item.amount:  # no time will come at which it fits: no Retry-After
            return Problem(ProblemCode.RATE_LIMITED, f"These are {cost} at once; the limit is {said}. Send fewer.")
        try:
            wait_s = await bounded(counter.room_after_s(limit.item, limit.whose, cost), self._timeout_s)
        except _AWAY:
            wait_s = max(1, standing.reset_s)
        detail = f"The limit is {said}. There is room for {cost} more in {_spoken(wait_s)}."
        return Problem(ProblemCode.RATE_LIMITED, detail, headers={"Retry-After": str(wait_s)})

    async def _standing(self, limit: Limit) -> Standing:
        _, (remaining, reset_s) = await self._ask(lambda at: at.left(limit.item, limit.whose))
        return Standing(limit, remaining, reset_s)

    async def _give_back(self, tab: _Tab, *, down_to: int = 0) -> None:
        while len(tab.taken) > down_to:
            counter, limit, cost = tab.taken.pop()
            known = tab.standings[limit.policy]
            tab.standings[limit.policy] = replace(known, remaining=known.remaining + cost)
            try:
                await bounded(counter.give_back(limit.item, limit.whose, cost), self._timeout_s)
            except _AWAY as error:
                log.warning("what a request had taken could not be given back", extra={"error": repr(error)})

    async def _ask(self, question: Callable[[Counter], Awaitable[T]]) -> tuple[Counter, T]:
        """Ask the shared count, or our own while that does not answer; return also which it was."""
        if self._shared is not None:
            try:
                with self._breaker.passing():
                    return self._shared, await self._reached(question(self._shared))
            except (DependencyUnavailable, TimeoutError):
                pass  # the breaker tells; meanwhile this gateway counts by itself
        return self._alone, await question(self._alone)

    async def _reached(self, answer: Awaitable[T]) -> T:
        try:
            return await bounded(answer, self._timeout_s)
        except (RedisError, OSError) as error:
            raise DependencyUnavailable(f"Redis: {error}") from error


@asynccontextmanager
async def open_limits(settings: RateLimitSettings) -> AsyncIterator[Limits]:
    """Open the limits that the settings say. Redis need not answer yet."""
    windows = redis_windows(settings)
    try:
        yield Limits(settings, Counter(windows) if windows is not None else None)
    finally:
        if windows is not None:
            await windows.close()


async def counted(request: Request, identity: Who) -> None:
    """Count a request to the API. Raises Problem (429)."""
    if not is_public(request.scope["route"]):
        limits: Limits = request.app.state.limits
        await limits.take(request, identity, REQUESTS)


class LimitHeaders:
    """ASGI middleware: tells callers where they stand, and gives back what an answer of 5xx had taken."""

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 500:
                    await self._limits.give_back(scope)
                MutableHeaders(scope=message).update(limit_headers(list(_tab(scope).standings.values())))
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception:
            await self._limits.give_back(scope)
            raise


def limit_headers(standings: Sequence[Standing]) -> dict[str, str]:
    """Return the headers of where a caller stands: draft-ietf-httpapi-ratelimit-headers-11, and the older three."""
    if not standings:
        return {}
    items = [(known, known.limit.item) for known in standings]
    policies = [_named(known, q=item.amount, w=item.get_expiry()) for known, item in items]
    left = [_named(known, r=known.remaining, t=known.reset_s) for known in standings]
    nearest = min(standings, key=lambda known: known.remaining)
    return {
        "RateLimit-Policy": http_sf.ser([*policies]),
        "RateLimit": http_sf.ser([*left]),
        "X-RateLimit-Limit": str(nearest.limit.item.amount),
        "X-RateLimit-Remaining": str(nearest.remaining),
        "X-RateLimit-Reset": str(nearest.reset_s),
    }


def _named(standing: Standing, **parameters: BareItemType) -> http_sf.ItemType:
    return standing.limit.policy, parameters


def _tab(scope: Scope) -> _Tab:
    tab: _Tab = scope.setdefault("state", {}).setdefault("limits", _Tab())
    return tab


def _spoken(seconds: int) -> str:
    for name, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds // length} {name}{'s' if seconds > length else ''}"
    return f"{seconds} s"


def _tell(breaker: Breaker, before: State) -> None:
    BREAKER_STATE.labels(breaker.name).set(breaker.state.value)
    if breaker.state is State.OPEN and before is State.CLOSED:
        BREAKER_OPENED.labels(breaker.name).inc()
        log.error("Redis does not answer; this gateway counts limits by itself", extra={"error": breaker.last_error})
    elif breaker.state is State.CLOSED and before is not State.CLOSED:
        log.warning("Redis answers again; limits are counted for all gateways")
