"""Rate limits per owner or API key, counted in this process or in Redis for all gateways.

The window moves, with one timestamp per use: `50/hour` applies to any hour, and `Retry-After` is exact. (A sliding
counter takes less memory but approximates both.)

A rejected request uses nothing. Uses are refunded for 5xx responses and for answers replayed for an Idempotency-Key,
because nothing is accepted; not for 4xx, whose body has been received and checked.

While Redis is unavailable each gateway counts separately, so an owner may use the full limit at each of them; rejecting
all requests would be worse. Health reports it.
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
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access.dependencies import Who
from gateway.access.identity import ANONYMOUS, Identity
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
CHANGES = "changes"
KINDS = (UPLOADS, REQUESTS, FEATURES, CHANGES)

_BREAKER = BreakerSettings(failures=3, open_s=5.0)  # of Redis

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of one caller: of the API key if it has its own limits, else of the owner."""

    kind: str
    policy: str  # name in headers, unique per caller
    item: RateLimitItem
    identifiers: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """What remains of one limit for a caller."""

    limit: Limit
    remaining: int
    reset_s: int  # until there is one more


@dataclass(slots=True)
class _RequestUsage:
    """The uses one request has taken, and the status of its caller's limits."""

    taken: list[tuple[Counter, Limit, int]] = field(default_factory=list)
    statuses: dict[str, LimitStatus] = field(default_factory=dict)


class Limits:
    """Counts uses per caller, and rejects uses beyond a limit."""

    def __init__(self, settings: RateLimitSettings, shared: Counter | None = None) -> None:
        self._defaults = {
            UPLOADS: settings.uploads,
            REQUESTS: settings.requests,
            FEATURES: settings.features,
            CHANGES: settings.changes,
        }
        # An anonymous caller is a program of this machine: its own photos need no limit, unless one is set.
        self._anonymous = self._defaults | ({} if "uploads" in settings.model_fields_set else {UPLOADS: UNLIMITED})
        self._timeout_s = settings.redis_timeout_s
        self._local = memory_counter()
        self._shared = shared
        self._breaker = Breaker("redis", _BREAKER, changed=_on_breaker_change)

    @classmethod
    def none(cls) -> Limits:
        """Return limits that apply only to API keys with their own."""
        return cls(RateLimitSettings(uploads=UNLIMITED, changes=UNLIMITED))

    async def take(self, request: Request, identity: Identity, kind: str, *, cost: int = 1) -> None:
        """Count `cost` uses of a kind, all or none, and note the status for the response headers.

        Raises Problem (429). A 5xx response refunds the uses of its request.
        """
        usage = _usage_of(request.scope)
        before = len(usage.taken)
        for limit in self._limits(identity, kind) if cost > 0 else ():
            counter, fits = await self._call(lambda at, of=limit: at.take(of.item, of.identifiers, cost))  # type: ignore[misc]
            if not fits:
                await self._refund(usage, down_to=before)
                usage.statuses[limit.policy] = status = await self._status(limit)
                raise await self._too_many(counter, status, cost)
            usage.taken.append((counter, limit, cost))
            usage.statuses[limit.policy] = await self._status(limit)

    async def refund(self, scope: Scope, kind: str | None = None) -> None:
        """Refund the uses of a request, of one kind or all: for 5xx responses and replayed answers."""
        usage = _usage_of(scope)
        kept = [taken for taken in usage.taken if kind not in (None, taken[1].kind)]
        usage.taken = [taken for taken in usage.taken if taken not in kept]
        await self._refund(usage)
        usage.taken = kept

    async def statuses(self, identity: Identity) -> list[LimitStatus]:
        """Return the status of every limit that applies to a caller."""
        return [await self._status(limit) for kind in KINDS for limit in self._limits(identity, kind)]

    def available(self) -> tuple[bool, str]:
        """Return whether limits are counted as configured, with a detail that is safe to publish."""
        if self._breaker.state is State.CLOSED:
            return True, "counted for all gateways" if self._shared else "counted by this gateway only"
        return False, "the shared counter is unavailable: each gateway counts separately"

    def _limits(self, identity: Identity, kind: str) -> list[Limit]:
        own = identity.limits.get(kind)
        identifiers = (kind, "key", identity.name) if own is not None else (kind, "owner", identity.owner)
        defaults = self._anonymous if identity.name == ANONYMOUS.name else self._defaults
        items = parse_limits(defaults[kind] if own is None else own)
        named = [f"{kind}-{item.get_expiry()}s" if len(items) > 1 else kind for item in items]
        return [Limit(kind, policy, item, identifiers) for policy, item in zip(named, items, strict=True)]

    async def _too_many(self, counter: Counter, status: LimitStatus, cost: int) -> Problem:
        limit = status.limit
        allowed = f"{limit.item.amount} {limit.kind} in {_duration(limit.item.get_expiry())}"
        if cost > limit.item.amount:  # it never fits: no Retry-After
            detail = f"The request contains {cost} {limit.kind}; the limit is {allowed}."
            return Problem(ProblemCode.RATE_LIMITED, detail)
        try:
            wait_s = await bounded(counter.room_after_s(limit.item, limit.identifiers, cost), self._timeout_s)
        except counter.errors:
            wait_s = max(1, status.reset_s)
        detail = f"The limit is {allowed}. Retry after {_duration(wait_s)}."
        return Problem(ProblemCode.RATE_LIMITED, detail, headers={"Retry-After": str(wait_s)})

    async def _status(self, limit: Limit) -> LimitStatus:
        _, (remaining, reset_s) = await self._call(lambda at: at.left(limit.item, limit.identifiers))
        return LimitStatus(limit, remaining, reset_s)

    async def _refund(self, usage: _RequestUsage, *, down_to: int = 0) -> None:
        while len(usage.taken) > down_to:
            counter, limit, cost = usage.taken.pop()
            known = usage.statuses[limit.policy]
            usage.statuses[limit.policy] = replace(known, remaining=known.remaining + cost)
            try:
                await bounded(counter.refund(limit.item, limit.identifiers, cost), self._timeout_s)
            except counter.errors as error:
                log.warning("rate limit refund failed", extra={"error": repr(error)})

    async def _call(self, operation: Callable[[Counter], Awaitable[T]]) -> tuple[Counter, T]:
        """Call the shared counter, or the local one while that is unavailable; return also which one it was."""
        if self._shared is not None:
            try:
                with self._breaker.passing():
                    return self._shared, await self._call_redis(self._shared, operation(self._shared))
            except (DependencyUnavailable, TimeoutError):
                pass  # the breaker logs it; use the local counter
        return self._local, await operation(self._local)

    async def _call_redis(self, counter: Counter, call: Awaitable[T]) -> T:
        try:
            return await bounded(call, self._timeout_s)
        except counter.errors as error:
            raise DependencyUnavailable(f"Redis: {error}") from error


@asynccontextmanager
async def open_limits(settings: RateLimitSettings) -> AsyncIterator[Limits]:
    """Open the configured limits. Redis may still be unavailable."""
    windows = redis_windows(settings)
    try:
        yield Limits(settings, Counter(windows) if windows is not None else None)
    finally:
        if windows is not None:
            await windows.close()


async def counted(request: Request, identity: Who) -> None:
    """Count an API request. Raises Problem (429)."""
    if not is_public(request.scope["route"]):
        limits: Limits = request.app.state.limits
        await limits.take(request, identity, REQUESTS)


class LimitHeaders:
    """ASGI middleware: adds rate limit headers to responses, and refunds the uses of 5xx responses."""

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
                    await self._limits.refund(scope)
                MutableHeaders(scope=message).update(limit_headers(list(_usage_of(scope).statuses.values())))
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception:
            await self._limits.refund(scope)
            raise


def limit_headers(statuses: Sequence[LimitStatus]) -> dict[str, str]:
    """Return rate limit headers: draft-ietf-httpapi-ratelimit-headers-11, and X-RateLimit-*."""
    if not statuses:
        return {}
    items = [(known, known.limit.item) for known in statuses]
    policies = [_header_item(known, q=item.amount, w=item.get_expiry()) for known, item in items]
    left = [_header_item(known, r=known.remaining, t=known.reset_s) for known in statuses]
    nearest = min(statuses, key=lambda known: known.remaining)
    return {
        "RateLimit-Policy": http_sf.ser([*policies]),
        "RateLimit": http_sf.ser([*left]),
        "X-RateLimit-Limit": str(nearest.limit.item.amount),
        "X-RateLimit-Remaining": str(nearest.remaining),
        "X-RateLimit-Reset": str(nearest.reset_s),
    }


def _header_item(status: LimitStatus, **parameters: BareItemType) -> http_sf.ItemType:
    return status.limit.policy, parameters


def _usage_of(scope: Scope) -> _RequestUsage:
    usage: _RequestUsage = scope.setdefault("state", {}).setdefault("limits", _RequestUsage())
    return usage


def _duration(seconds: int) -> str:
    for name, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds // length} {name}{'s' if seconds > length else ''}"
    return f"{seconds} s"


def _on_breaker_change(breaker: Breaker, before: State) -> None:
    BREAKER_STATE.labels(breaker.name).set(breaker.state.value)
    if breaker.state is State.OPEN and before is State.CLOSED:
        BREAKER_OPENED.labels(breaker.name).inc()
        log.error("Redis unavailable; counting rate limits in this gateway", extra={"error": breaker.last_error})
    elif breaker.state is State.CLOSED and before is not State.CLOSED:
        log.warning("Redis available; counting rate limits for all gateways")
